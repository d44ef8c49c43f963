"""For the terminal: what there is to choose from, and what a run was."""
