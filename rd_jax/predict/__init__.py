"""A trained model on image files: `python -m rd_jax.predict`."""
