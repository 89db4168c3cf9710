import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rd_jax.config import as_dict, validate
from rd_jax.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def get_config(path: Path, category: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(category)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_complete(path: Path) -> None:
    config = get_config(path, "bottle")
    validate(config)
    assert "bottle" in (config.category, config.dataset)
    assert set(as_dict(config)) == set(config)


def test_the_papers_values_are_those_of_the_paper() -> None:
    (path,) = [path for path in CONFIGS if path.stem == "mvtec"]
    paper = {
        "backbone": "wide_resnet50_2", "image_size": 256, "batch_size": 16, "num_epochs": 200,
        "learning_rate": 0.005, "adam_b1": 0.5, "adam_b2": 0.999, "blur_sigma": 4.0,
        "loss": "per_position", "image_score": "max", "bottleneck": "mff_oce",
        "scales": (1, 2, 3),
    }  # fmt: skip
    config = get_config(path, "")
    assert {name: config[name] for name in paper} == paper


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_dir", ""),
        ("category", None),
        ("image_size", 100),
        ("image_size", 0),
        ("image_size", "256"),
        ("backbone", "resnet101"),
        ("bottleneck", "mff"),
        ("scales", ()),
        ("scales", (0, 1)),
        ("scales", (2, 1)),
        ("scales", (1, 1)),
        ("scales", 3),
        ("loss", "mse"),
        ("batch_size", 0),
        ("batch_size", True),
        ("num_epochs", 1.5),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("adam_b1", 1.0),
        ("adam_b2", -0.1),
        ("seed", -1),
        ("seed", 2**32),
        ("dtype", "float16"),
        ("blur_sigma", -1),
        ("image_score", "mean"),
        ("log_every_steps", 0),
        ("eval_every_epochs", -1),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    config: SimpleNamespace, field: str, value: Any
) -> None:
    config.backbone = "resnet18"
    validate(config)
    setattr(config, field, value)
    with pytest.raises(UserError) as error:
        validate(config)
    message = str(error.value)
    assert message.startswith(f"config.{field}={value!r}: must be ")
    assert "\n" not in message


def test_a_field_that_is_absent_is_named(config: SimpleNamespace) -> None:
    config.backbone = "resnet18"
    del config.loss
    with pytest.raises(UserError, match=r"config\.loss=None"):
        validate(config)


def test_the_devices_must_divide_the_batch(config: SimpleNamespace) -> None:
    config.backbone, config.batch_size = "resnet18", 12
    with pytest.raises(UserError, match=r"config\.batch_size=12: must be a multiple of the 8 dev"):
        validate(config, num_devices=8)
