"""Networks as vectors, their layers, smaller ones inside; knows no data, client or training."""
