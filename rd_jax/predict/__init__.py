"""Score image files with a trained model: `python -m rd_jax.predict`."""
