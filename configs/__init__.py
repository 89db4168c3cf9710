"""Configs: the values that differ from the defaults of `rd_jax.config`."""
