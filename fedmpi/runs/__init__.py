"""Runs as processes and files: jobs, sweeps, launchers; knows not how results are shown."""
