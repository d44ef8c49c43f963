"""Tables and pictures from result files alone.

Run from a checkout, on any machine that has pandas. No MPI and no torch are needed, and nothing of
`fedmpi` is imported, so that results outlive the code that made them.

    python -m analysis.compare DIR...     methods side by side, in the terminal
    python -m analysis.paired DIR...      differences by seed, with tests, in the terminal
    python -m analysis.targets DIR...     costs to reach an accuracy, in the terminal
    python -m analysis.claims [DIR]...    claims of papers beside the results, also as a picture
    python -m analysis.tradeoff DIR...    accuracy against bytes, as a picture
    python -m analysis.trajectory DIR...  accuracy over time, bytes or rounds, as a picture
    python -m analysis.along DIR...       accuracy along a setting, as a picture and in the terminal
    python -m analysis.newcomers DIR...   new clients over epochs of training, likewise
    python -m analysis.slices DIR...      models without some of their channels, in the terminal
    python -m analysis.convergence DIR... gradient norms beside a bound's terms, in the terminal

`frames` turns files into data frames, `groups` decides which runs are compared and which are
averaged, `statements` reads claims, `dots` draws them, `panels` has the common parts of pictures,
`terminal` those of tables. The commands are built on them.
"""
