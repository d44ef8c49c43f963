"""How rows of clients learn, and what they keep; knows no cut, result or method."""
