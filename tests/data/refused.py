"""Asserting that something is refused in one line."""

from collections.abc import Callable
from typing import Any

import pytest

from rd_jax.system.errors import UserError


def refused(message: str, call: Callable[..., Any], *arguments: Any) -> str:
    """Asserts that a call is refused in one line of text that holds `message`; returns it."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    line = str(error.value)
    assert message in line
    assert len(line.splitlines()) == 1
    line.encode()
    return line
