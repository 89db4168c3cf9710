"""Export a trained scorer as one file: `python -m rd_jax.export`."""
