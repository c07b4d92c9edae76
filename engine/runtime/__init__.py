"""How one stage runs: its context, its checkpoints, its seeds, its process."""
