"""Configs: what a run is told, where it differs from the defaults of `rd_jax.config`."""
