"""Methods: one module each, a difference from `fedavg`; none sees ranks, files or clocks."""
