"""What people see: lists, results, partitions, machines; only the command line knows it."""
