"""An own loss in the training step: the deepest scale counts twice.

python -m examples.own_loss
"""

import jax
import numpy as np

import rd_jax
from configs.demo import get_config


def loss_function(teacher_features: tuple, student_features: tuple) -> jax.Array:
    """Cosine distances at each position, with the deepest scale once more."""
    all_scales = rd_jax.per_position_cosine_loss(teacher_features, student_features)
    return all_scales + rd_jax.per_position_cosine_loss(teacher_features[2:], student_features[2:])


config = get_config()
teacher = rd_jax.load_teacher(config.backbone, "auto")
state = rd_jax.create_train_state(config, jax.random.key(0))
train_step = jax.jit(rd_jax.make_train_step(config, loss_function=loss_function))
images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
for _ in range(3):
    state, metrics = train_step(state, teacher, images)
    print(f"step {int(state.step)}: loss {float(metrics['loss']):.4f}")
