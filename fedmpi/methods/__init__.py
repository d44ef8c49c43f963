"""Methods: one module each, a difference from `fedavg`; knows no rank, file, clock or round."""
