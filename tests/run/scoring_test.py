import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rd_jax import load_teacher
from rd_jax.config import Config
from rd_jax.data import Split
from rd_jax.method.metrics import METRICS, metrics_of, metrics_of_scored
from rd_jax.run import scoring
from rd_jax.run.build import scorer_of
from rd_jax.run.scoring import score_images, score_split
from rd_jax.system.errors import UserError
from tests.reference_weights import draw_images
from tests.trained import first_state


@pytest.fixture
def trained(config: Config) -> tuple:
    state = first_state(config)
    return scorer_of(config), load_teacher("tiny", "random"), state.student_variables


def test_variables_that_diverged_give_no_figures(trained: tuple) -> None:
    scorer, teacher, variables = trained
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(UserError, match="diverged"):
        score_images(scorer, teacher, broken, draw_images(2, 32), 2)


@pytest.mark.parametrize("num_images", [1, 8, 13])
def test_padding_changes_no_map_and_no_score(trained: tuple, num_images: int) -> None:
    images = draw_images(num_images, 32)
    maps, scores = score_images(*trained, images, batch_size=5)
    expected_maps, expected_scores = trained[0](*trained[1:], images)
    np.testing.assert_allclose(maps, expected_maps, atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_allclose(scores, maps.max((1, 2)))
    assert [part.shape for part in score_images(*trained, images[:0], 5)] == [(0, 32, 32), (0,)]


def test_maps_that_are_not_held_are_made_again(
    trained: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = draw_images(7, 32), np.zeros((7, 32, 32), bool)
    masks[4:, 3:9, 3:9] = True
    names = [f"{i}.png" for i in range(7)]
    split = Split("x", images[:0], [], "", images, names, "", np.arange(7) > 3, masks)
    held, made_of_maps = score_split(*trained, split, 3)
    expected = made_of_maps(np.array([5, 0]), np.copy)
    monkeypatch.setattr(scoring, "_MOST_BYTES", 1000)
    again, made_again = score_split(*trained, split, 3)
    for a, b in zip(held.pixels, again.pixels, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(held.maxima, again.maxima)
    np.testing.assert_allclose(made_again(np.array([5, 0]), np.copy), expected, atol=1e-6)
    maps, scores = score_images(*trained, images, 3)
    np.testing.assert_allclose(expected, maps[[5, 0]], atol=1e-6)
    whole = metrics_of(maps, scores, split.labels, masks)
    assert metrics_of_scored(held, split.labels) == pytest.approx(whole, abs=1e-9)


def test_scales_select_what_the_map_is_made_of(config: Config, trained: tuple) -> None:
    images, single = draw_images(2, 32), []
    for scale in (1, 2, 3):
        config.scales = (scale,)
        single.append(scorer_of(config)(*trained[1:], images)[0])
    np.testing.assert_allclose(trained[0](*trained[1:], images)[0], sum(single), atol=1e-5)


def test_metrics_of_a_split_and_nulls_where_there_is_nothing_to_measure(
    trained: tuple,
) -> None:
    images = draw_images(6, 32)
    labels, masks = np.arange(6) < 3, np.zeros((6, 32, 32), bool)
    masks[:3, 4:9, 4:9] = True
    maps, scores = score_images(*trained, images, 4)
    values = metrics_of(maps, scores, labels, masks)
    assert set(values) == set(METRICS)
    assert values["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert all(isinstance(value, float) for value in values.values())
    without_masks = metrics_of(maps, scores, labels, None)
    undefined = {"pixel_auroc", "aupro", "pixel_ap", "pixel_f1max"}
    assert {name for name, value in without_masks.items() if value is None} == undefined
    normal_only = metrics_of(maps[3:], scores[3:], labels[3:], masks[3:])
    empty = metrics_of(maps[:0], scores[:0], labels[:0], masks[:0])
    assert set(normal_only.values()) == set(empty.values()) == {None}
