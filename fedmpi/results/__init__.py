"""What is known after a round, and the file that holds it; knows no method or exchange."""
