"""Results of a round, and the file that holds them; knows no method or exchange."""
