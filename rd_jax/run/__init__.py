"""A run from config to results: training, evaluation, resuming, progress."""
