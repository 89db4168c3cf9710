"""Reverse Distillation (Deng and Li, CVPR 2022) in JAX, as pure functions."""

from rd_jax.export.onnx import to_onnx
from rd_jax.export.stablehlo import to_stablehlo
from rd_jax.fitting import fit
from rd_jax.method import models
from rd_jax.method.loss import (
    flattened_cosine_loss,
    mixed_cosine_loss,
    per_position_cosine_loss,
)
from rd_jax.method.metrics import aupro, auroc
from rd_jax.method.models import Model, normalize
from rd_jax.method.score import Scoring, anomaly_map, image_score, make_scorer
from rd_jax.method.train import (
    TrainState,
    create_train_state,
    make_distillation_step,
    make_train_step,
)
from rd_jax.predict.predictor import load_predictor, score_arrays, score_files, score_image
from rd_jax.run.trained import restore
from rd_jax.weights.convert import convert_rd4ad, convert_teacher
from rd_jax.weights.teacher import load_teacher

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Scoring",
    "TrainState",
    "anomaly_map",
    "aupro",
    "auroc",
    "convert_rd4ad",
    "convert_teacher",
    "create_train_state",
    "fit",
    "flattened_cosine_loss",
    "image_score",
    "load_predictor",
    "load_teacher",
    "make_distillation_step",
    "make_scorer",
    "make_train_step",
    "mixed_cosine_loss",
    "models",
    "normalize",
    "per_position_cosine_loss",
    "restore",
    "score_arrays",
    "score_files",
    "score_image",
    "to_onnx",
    "to_stablehlo",
]
