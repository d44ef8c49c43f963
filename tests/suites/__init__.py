"""What mirrors no module: promises that hold for every method, file or rank."""
