"""What the result files say: tables and pictures, from the files alone.

Run from a checkout, on any machine that has pandas: no MPI, no torch, and nothing of `fedmpi` is
imported, so that results outlive the code that made them.

    python -m analysis.compare DIR...     methods side by side, in the terminal
    python -m analysis.targets DIR...     what they took to be so accurate, likewise
    python -m analysis.tradeoff DIR...    accuracy against bytes, as a picture
    python -m analysis.trajectory DIR...  accuracy over simulated time, bytes or rounds, likewise
    python -m analysis.along DIR...       accuracy along a setting, likewise, and in the terminal

`frames` turns files into data frames, `groups` says which runs are compared and which averaged,
`panels` is what pictures share, `terminal` what tables do; the commands are built on them.
"""
