"""Local training of rows of clients, and their state; knows no cut, result or method."""
