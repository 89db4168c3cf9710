"""Reverse Distillation (Deng and Li, CVPR 2022) in JAX, as pure functions."""

from rd_jax.checkpoint import restore
from rd_jax.convert import convert_rd4ad, convert_teacher
from rd_jax.evaluate import make_scorer
from rd_jax.loss import flattened_cosine_loss, per_position_cosine_loss
from rd_jax.metrics import aupro, auroc
from rd_jax.models import normalize
from rd_jax.onnx_graph import to_onnx
from rd_jax.score import anomaly_map, image_score
from rd_jax.stablehlo import to_stablehlo
from rd_jax.train import TrainState, create_train_state, make_train_step
from rd_jax.weights import load_teacher

__all__ = [
    "TrainState",
    "anomaly_map",
    "aupro",
    "auroc",
    "convert_rd4ad",
    "convert_teacher",
    "create_train_state",
    "flattened_cosine_loss",
    "image_score",
    "load_teacher",
    "make_scorer",
    "make_train_step",
    "normalize",
    "per_position_cosine_loss",
    "restore",
    "to_onnx",
    "to_stablehlo",
]
