"""What devices complain of becomes advice; what only a developer could mend stays as it is."""

import time

import jax
import pytest

from rd_jax.system.errors import UserError, explained, printable


def test_a_device_without_memory_gives_advice_in_one_line() -> None:
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 93.13GiB.\n\tat a.cc:12\n"
    )
    text = explained(error)
    assert "93.13GiB" in text
    assert "lower the batch_size" in text
    assert "dtype=bfloat16" in text
    assert "\n" not in text


def test_memory_that_really_runs_out_is_explained() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.jit(lambda: jax.numpy.zeros((2**50,), jax.numpy.uint8) + 1)().block_until_ready()
    assert "out of memory" in explained(caught.value)


def test_other_errors_of_devices_are_raised_again() -> None:
    error = jax.errors.JaxRuntimeError("INTERNAL: this is a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="this is a bug"):
        explained(error)


def test_mistakes_are_told_as_they_are() -> None:
    assert explained(UserError("data_dir x is not a folder")) == "data_dir x is not a folder"
    assert explained(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert printable("a\n b\udcff") == r"a b\udcff"


def test_long_texts_take_no_time() -> None:
    start = time.process_time()
    assert printable(" " * 300_000) == " " * 300_000
    assert printable("a" + " " * 300_000 + "\n" * 300_000 + "b") == "a b"
    assert time.process_time() - start < 5  # by squares it would be a minute
    assert printable("\n a \n\n b\r\n") == "a b"
    assert printable(" a ") == " a "
