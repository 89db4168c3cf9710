"""Train three steps with an own loss and optimiser, then score: python -m examples.own_loss."""

import jax
import numpy as np
import optax

import rd_jax


def loss(teacher_features: tuple, student_features: tuple) -> jax.Array:
    """Return the paper's loss, with the deepest scale added once more."""
    deepest = rd_jax.per_position_cosine_loss(teacher_features[2:], student_features[2:])
    return rd_jax.per_position_cosine_loss(teacher_features, student_features) + deepest


model, optimizer = rd_jax.Model("resnet10"), optax.adamw(1e-3)
teacher = rd_jax.load_teacher("resnet10", "random")  # take "imagenet" for real work
state = rd_jax.create_train_state(model, optimizer, jax.random.key(0))
train_step = jax.jit(rd_jax.make_train_step(model, optimizer, loss))
images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
for _ in range(3):
    state, metrics = train_step(state, teacher, images)
    print(f"step {state.step}: loss {metrics['loss']:.4f}")
_, scores = rd_jax.make_scorer(model)(teacher, state.student_variables, images)
print("scores", scores)
