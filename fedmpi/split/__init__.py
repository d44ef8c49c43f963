"""What both sides of a cut do in a step; knows no result, method or exchange."""
