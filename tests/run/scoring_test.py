import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rd_jax.config import Config
from rd_jax.data import Split
from rd_jax.method.metrics import METRICS, metrics_of, metrics_of_scored
from rd_jax.run import scoring
from rd_jax.run.plan import teacher_of
from rd_jax.run.scoring import Score, score_images, score_split
from rd_jax.run.trained import bound_scorer
from rd_jax.system.errors import UserError
from tests.reference_weights import draw_images
from tests.trained import first_state


def scorer(config: Config, broken: bool = False) -> Score:
    """The score of the state before the first step, or of one that diverged."""
    variables = jax.device_get(first_state(config).student_variables)
    if broken:
        variables = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    return bound_scorer(config, teacher_of(config), variables)


@pytest.fixture
def score(config: Config) -> Score:
    return scorer(config)


def test_variables_that_diverged_give_no_figures(config: Config) -> None:
    with pytest.raises(UserError, match="diverged"):
        score_images(scorer(config, broken=True), draw_images(2, 32), 8)


@pytest.mark.parametrize("num_images", [1, 8, 13])
def test_padding_changes_no_map_and_no_score(score: Score, num_images: int) -> None:
    images = draw_images(16, 32)
    maps, scores = score_images(score, images[:num_images], batch_size=7)  # computed as 8
    expected_maps, expected_scores = score_images(score, images, batch_size=16)
    np.testing.assert_allclose(maps, expected_maps[:num_images], atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores[:num_images], atol=1e-5)
    np.testing.assert_allclose(scores, maps.max((1, 2)))
    assert [part.shape for part in score_images(score, images[:0], 7)] == [(0, 32, 32), (0,)]


def test_maps_that_are_not_held_are_made_again(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, masks = draw_images(7, 32), np.zeros((7, 32, 32), bool)
    masks[4:, 3:9, 3:9] = True
    names = tuple(f"{i}.png" for i in range(7))
    split = Split(
        name="x",
        train=images[:0],
        train_names=(),
        train_hashes=(),
        test=images,
        test_names=names,
        test_sha256="",
        labels=np.arange(7) > 3,
        masks=masks,
    )
    held, made_of_maps = score_split(score, split, 3)
    expected = made_of_maps(np.array([5, 0]), np.copy)
    monkeypatch.setattr(scoring, "_MOST_BYTES", 1000)
    again, made_again = score_split(score, split, 3)
    for a, b in zip(held.pixels, again.pixels, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(held.maxima, again.maxima)
    np.testing.assert_allclose(made_again(np.array([5, 0]), np.copy), expected, atol=1e-6)
    maps, scores = score_images(score, images, 3)
    np.testing.assert_allclose(expected, maps[[5, 0]], atol=1e-6)
    whole = metrics_of(maps, scores, split.labels, masks)
    assert metrics_of_scored(held, split.labels) == pytest.approx(whole, abs=1e-9)


def test_scales_select_what_the_map_is_made_of(config: Config, score: Score) -> None:
    images, single = draw_images(4, 32), []
    for scale in (1, 2, 3):
        config.scales = (scale,)
        single.append(score_images(scorer(config), images, 4)[0])
    np.testing.assert_allclose(score_images(score, images, 4)[0], sum(single), atol=1e-5)


def test_metrics_of_a_split_and_nulls_where_there_is_nothing_to_measure() -> None:
    rng = np.random.default_rng(0)
    labels, masks = np.arange(6) < 3, np.zeros((6, 32, 32), bool)
    masks[:3, 4:9, 4:9] = True
    maps = rng.gamma(2, 0.2, (6, 32, 32)).astype(np.float32)
    scores = maps.max((1, 2))
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
