"""Split networks: cuts, and joint steps across them; knows no result, method or exchange."""
