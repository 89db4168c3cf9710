"""Export the scorer as one ONNX file, which needs an ONNX runtime, but no JAX or rd_jax."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from rd_jax.method.models import Model
from rd_jax.method.models.batch_norm import fold_batch_norm
from rd_jax.method.score import Scoring, Size, height_and_width, make_scorer
from rd_jax.system.errors import UserError

_INSTALL = "pip install 'jax2onnx==0.17.1' 'jax<0.12'"
OPSET, IR_VERSION = 18, 8  # of 2022, for older runtimes


def to_onnx(
    model: Model,
    teacher_variables: Any,
    student_variables: Any,
    *,
    size: Size,
    scoring: Scoring = Scoring(),  # noqa: B008 (it is frozen)
    threshold: float | None = None,
) -> bytes:
    """Return the scorer in float32, with its variables, as an ONNX model.

    The file's input is "images", uint8 [B, H, W, 3] of this `size`, any B. Its outputs are "map"
    float32 [B, H, W], "score" float32 [B] and, with a threshold, "anomalous" bool [B]: the score is
    above it. Raise UserError without the package jax2onnx, or with a JAX that is too new for it.
    """
    try:
        import jax2onnx
    except ImportError as error:
        raise UserError(f"ONNX files need the package jax2onnx: {_INSTALL}") from error
    exact = dataclasses.replace(model, dtype=jnp.float32)
    scorer = make_scorer(exact, **dataclasses.asdict(scoring))
    folded = fold_batch_norm(teacher_variables), fold_batch_norm(student_variables)
    variables = jax.tree.map(np.asarray, folded)

    def scored(images: jax.Array) -> tuple[jax.Array, ...]:
        maps, scores = scorer(*variables, images)
        return (maps, scores) if threshold is None else (maps, scores, scores > threshold)

    (batch,) = export.symbolic_shape("batch")
    logger = logging.getLogger("onnx_ir.serde")  # it warns of shapes that nobody needs
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        file = jax2onnx.to_onnx(
            scored,
            [jax.ShapeDtypeStruct((batch, *height_and_width(size), 3), jnp.uint8)],
            model_name="rd_jax",
            opset=OPSET,
            input_names=["images"],
            output_names=["map", "score", "anomalous"][: 2 if threshold is None else 3],
        )
    except AttributeError as error:  # it uses parts of JAX that later versions lack
        raise UserError(f"jax2onnx fails with JAX {jax.__version__}: {_INSTALL}") from error
    finally:
        logger.setLevel(level)
    file.ir_version = IR_VERSION
    return file.SerializeToString()


def with_metadata(content: bytes, known: Mapping[str, Any]) -> bytes:
    """Return the ONNX model in `content` with metadata, each value as JSON."""
    import onnx

    file = onnx.load_from_string(content)
    onnx.helper.set_model_props(file, {name: json.dumps(value) for name, value in known.items()})
    return file.SerializeToString()
