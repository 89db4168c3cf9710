"""Images that are not square: networks, map and training step equal PyTorch's."""

import jax
import numpy as np
import optax
import pytest
from scipy import ndimage

from rd_jax import Model, convert_rd4ad, convert_teacher, make_scorer, make_train_step
from rd_jax.method.train import TrainState
from tests.reference_weights import draw_images, draw_state_dict
from tests.trained import largest_difference

HEIGHT, WIDTH = 96, 64


def test_features_map_gradients_and_statistics_equal_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity` is not installed")
    from benchmarks import torch_reference as reference
    from tests.make_golden import channels_last, networks

    modules, shapes = networks("resnet10")
    drawn = {name: draw_state_dict(shapes[name]) for name in shapes}
    teacher = convert_teacher(drawn["teacher"], "resnet10")
    variables = convert_rd4ad(drawn["bottleneck"], drawn["student"], "resnet10")
    images = draw_images(2, HEIGHT)[:, :, :WIDTH]
    with torch.no_grad():
        expected = modules["teacher"](reference.normalize(torch.from_numpy(images)))
        expected_student = modules["student"](modules["bottleneck"](expected))
        upsampled = reference.upsampled_map(expected, expected_student, (HEIGHT, WIDTH))
    model = Model("resnet10")
    features = model.teacher_features(teacher, images)
    student = model.student_features(teacher, variables, images, features)
    for own, other in zip((*features, *student), (*expected, *expected_student), strict=True):
        other = channels_last(other)
        np.testing.assert_allclose(own, other, atol=1e-4 * np.abs(other).max())
    maps, scores = make_scorer(model)(teacher, variables, images)
    assert maps.shape == (2, HEIGHT, WIDTH)
    blurred = np.stack([ndimage.gaussian_filter(m, 4) for m in upsampled.numpy()])
    np.testing.assert_allclose(maps, blurred, atol=1e-5)
    np.testing.assert_allclose(scores, blurred.max((1, 2)), atol=1e-5)

    bottleneck, decoder = modules["bottleneck"].train(), modules["student"].train()
    reference.per_position_loss(expected, decoder(bottleneck(expected))).backward()
    optimizer = optax.sgd(1.0)  # a step is the gradient itself
    before = TrainState(**variables, opt_state=optimizer.init(variables["params"]), step=0)
    after, _ = jax.jit(make_train_step(model, optimizer))(before, teacher, images)
    states = [module.state_dict() for module in (bottleneck, decoder)]
    for module, state in zip((bottleneck, decoder), states, strict=True):
        state |= {name: parameter.grad for name, parameter in module.named_parameters()}
    values = [{k: v.numpy() for k, v in state.items() if v.ndim} for state in states]
    wanted = convert_rd4ad(*values, "resnet10")
    assert largest_difference(after.batch_stats, wanted["batch_stats"]) < 1e-4
    gradients = jax.tree.map(lambda a, b: a - b, before.params, after.params)
    for own, other in zip(*map(jax.tree.leaves, (gradients, wanted["params"])), strict=True):
        # Differences of numbers of the size of 1 in float32.
        np.testing.assert_allclose(own, other, atol=1e-2 * np.abs(other).max() + 1e-6)
