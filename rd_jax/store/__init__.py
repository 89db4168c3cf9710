"""What a run leaves on disk: the workdir's layout, checkpoints, rows of results."""
