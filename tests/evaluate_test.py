from types import SimpleNamespace

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rd_jax import create_train_state, load_teacher, make_scorer
from rd_jax.errors import UserError
from rd_jax.evaluate import evaluate, score_images
from tests.reference_weights import draw_images


@pytest.fixture
def trained(config: SimpleNamespace) -> tuple:
    state = create_train_state(config, jax.random.key(0))
    return make_scorer(config), load_teacher("tiny", "random"), state.student_variables


def test_variables_that_diverged_give_no_figures(trained: tuple) -> None:
    scorer, teacher, variables = trained
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    with pytest.raises(UserError, match="diverged"):
        evaluate(scorer, teacher, broken, draw_images(2, 32), np.arange(2) < 1, None, 2)


@pytest.mark.parametrize("num_images", [1, 8, 13])
def test_padding_changes_no_map_and_no_score(trained: tuple, num_images: int) -> None:
    images = draw_images(num_images, 32)
    maps, scores = score_images(*trained, images, batch_size=5)
    expected_maps, expected_scores = trained[0](*trained[1:], images)
    np.testing.assert_allclose(maps, expected_maps, atol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_allclose(scores, maps.max((1, 2)))


def test_scales_select_what_the_map_is_made_of(config: SimpleNamespace, trained: tuple) -> None:
    images, single = draw_images(2, 32), []
    for scale in (1, 2, 3):
        config.scales = (scale,)
        single.append(make_scorer(config)(*trained[1:], images)[0])
    np.testing.assert_allclose(trained[0](*trained[1:], images)[0], sum(single), atol=1e-5)


def test_metrics_of_a_split_and_nulls_where_there_is_nothing_to_measure(
    trained: tuple,
) -> None:
    images = draw_images(6, 32)
    labels, masks = np.arange(6) < 3, np.zeros((6, 32, 32), bool)
    masks[:3, 4:9, 4:9] = True
    values = evaluate(*trained, images, labels, masks, 4)
    _, scores = trained[0](*trained[1:], images)
    assert values["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert all(isinstance(value, float) for value in values.values())
    without_masks = evaluate(*trained, images, labels, None, 4)
    undefined = {"pixel_auroc", "aupro", "pixel_ap", "pixel_f1max"}
    assert {name for name, value in without_masks.items() if value is None} == undefined
    normal_only = evaluate(*trained, images[3:], labels[3:], masks[3:], 4)
    empty = evaluate(*trained, images[:0], labels[:0], masks[:0], 4)
    assert set(normal_only.values()) == set(empty.values()) == {None}
