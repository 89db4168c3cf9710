"""The one error type for mistakes that the user can mend, and errors of devices in its words."""

import re
import unicodedata

import jax


def printable(text: str) -> str:
    r"""One line that every encoding of Unicode can write.

    File names may hold line breaks, which become spaces, and bytes that are not UTF-8, which
    Python reads as lone surrogates and which are shown as "\udcXX".
    """
    not_printed = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, separators
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in not_printed else c
        for c in re.sub(r"\s*\n\s*", " ", text)
    )


class UserError(ValueError):
    """Says in one line what is wrong, where, and what to do; `main` prints it and exits with 2."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def first_line(error: Exception) -> str:
    """The first line of what an error says, or else its name."""
    return (str(error) or type(error).__name__).splitlines()[0]


EXPECTED = (UserError, OSError, jax.errors.JaxRuntimeError)


def explained(error: Exception) -> str:
    """One line on one of the EXPECTED. Raises it again if none but a developer could mend it."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return printable(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return (
        f"a device is out of memory ({printable(first_line(error)[:200])}): lower the "
        "batch_size or image_size, choose a smaller backbone, or set dtype=bfloat16"
    )
