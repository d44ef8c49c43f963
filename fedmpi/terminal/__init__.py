"""Output for people: lists, results, partitions, machines; only the command line imports it."""
