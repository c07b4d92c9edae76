"""What will run: stages, compilation, content hashes. Pure: no I/O, no torch."""
