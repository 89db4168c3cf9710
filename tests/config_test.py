import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rd_jax.config import (
    FIELDS,
    Config,
    Depends,
    as_dict,
    differing,
    from_dict,
    get_config,
    markdown,
    validate,
)
from rd_jax.method.models import BACKBONES
from rd_jax.system.errors import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("[a-z]*.py"))


def config_in(path: Path, category: str) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(category)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_complete(path: Path) -> None:
    config = config_in(path, "bottle")
    validate(config)
    assert isinstance(config, Config)
    assert "bottle" in (config.category, config.dataset)
    assert set(as_dict(config)) == set(FIELDS)


def test_the_papers_values_are_those_of_the_paper() -> None:
    (path,) = [path for path in CONFIGS if path.stem == "mvtec"]
    paper = {
        "backbone": "wide_resnet50_2", "image_size": 256, "batch_size": 16, "num_epochs": 200,
        "learning_rate": 0.005, "adam_b1": 0.5, "adam_b2": 0.999, "blur_sigma": 4.0,
        "loss": "per_position", "image_score": "max", "bottleneck": "mff_oce",
        "scales": (1, 2, 3),
    }  # fmt: skip
    config = config_in(path, "")
    assert {name: getattr(config, name) for name in paper} == paper


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_dir", ""),
        ("data_dir", 3),
        ("data_dir", "/\udce9"),
        ("category", None),
        ("category", "a\nb"),
        ("image_size", 100),
        ("image_size", 0),
        ("image_size", "256"),
        ("image_size", (64, 100)),
        ("image_size", (64,)),
        ("image_size", (64, 64, 64)),
        ("backbone", "resnet101"),
        ("bottleneck", "mff"),
        ("scales", ()),
        ("scales", (0, 1)),
        ("scales", (2, 1)),
        ("scales", (1, 1)),
        ("scales", 3),
        ("scales", "12"),
        ("loss", "mse"),
        ("loss", np.array(["flattened"] * 2)),
        ("batch_size", 0),
        ("batch_size", True),
        ("num_epochs", 1.5),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("adam_b1", 1.0),
        ("adam_b2", -0.1),
        ("seed", -1),
        ("seed", 2**32),
        ("seeds", (1, 1)),
        ("holdout", 1.5),
        ("dtype", "float16"),
        ("blur_sigma", -1.0),
        ("blur_sigma", float("nan")),
        ("blur_sigma", 33.0),
        ("image_score", "mean"),
        ("log_every_steps", 0),
        ("eval_every_epochs", -1),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(config: Config, field: str, value: Any) -> None:
    config.backbone = "resnet18"
    validate(config)
    setattr(config, field, value)
    with pytest.raises(UserError) as error:
        validate(config)
    message = str(error.value)
    assert message.startswith(f"config.{field}={value!r}: must be ")
    assert "\n" not in message


def test_the_documented_table_is_that_of_the_fields() -> None:
    own = f", {', '.join(['tiny', 'tiny10', 'tiny50', 'micro'])}"  # backbones of the tests
    assert set(BACKBONES) > {"tiny", "tiny10", "tiny50", "micro"}
    assert (ROOT / "docs" / "config.md").read_text() == markdown().replace(own, "")


def test_a_config_survives_json_and_what_is_missing_has_its_default(config: Config) -> None:
    config.seeds, config.scales, config.image_size = (1, 2), (1, 3), (64, 32)
    saved = json.loads(json.dumps(as_dict(config)))
    assert from_dict(saved) == config
    del saved["blur_sigma"]
    assert from_dict(saved | {"of_tomorrow": 1}).blur_sigma == FIELDS["blur_sigma"].default


def test_a_square_is_the_same_as_a_number(config: Config) -> None:
    number = as_dict(config)
    config.image_size = (32, 32)
    assert as_dict(config) == number


@pytest.mark.parametrize(
    ("field", "value", "goes_on", "is_evaluated", "scores_alike"),
    [
        ("learning_rate", 0.1, False, False, True),
        ("backbone", "resnet34", False, False, False),
        ("image_size", 64, False, True, False),
        ("image_size", (32, 64), False, True, False),
        ("batch_size", 4, False, True, True),
        ("blur_sigma", 1.0, True, True, False),
        ("false_positive_rate", 0.1, True, True, False),
        ("log_every_steps", 7, True, True, True),
    ],
)
def test_a_fields_row_says_what_depends_on_it(
    config: Config,
    field: str,
    value: Any,
    goes_on: bool,
    is_evaluated: bool,
    scores_alike: bool,
) -> None:
    before = as_dict(config)
    now = before | {field: value}
    found = [
        not differing(before, now, depends)
        for depends in (Depends.STEPS, Depends.CHECKPOINT, Depends.SCORES)
    ]
    assert found == [goes_on, is_evaluated, scores_alike]
    assert not differing(before, json.loads(json.dumps(before)), ~Depends.NOTHING)


def test_a_field_that_there_is_not_is_named() -> None:
    with pytest.raises(
        UserError, match=r"config\.leraning_rate: there is no such field; there are "
    ):
        get_config(leraning_rate=0.1)


def test_a_config_of_another_kind_is_refused(config: Config) -> None:
    with pytest.raises(UserError, match=r"returned a dict: let it return rd_jax\.config\.get"):
        validate(dataclasses.asdict(config))


def test_the_devices_must_divide_the_batch(config: Config) -> None:
    config.backbone, config.batch_size = "resnet18", 12
    with pytest.raises(UserError, match=r"config\.batch_size=12: must be a multiple of the 8 dev"):
        validate(config, num_devices=8)
