"""Statistics over runs: rows in, numbers out. Reading the store and printing tables is the command line's."""
