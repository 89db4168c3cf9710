"""The error for mistakes that the user can mend, and device errors in plain words."""

import argparse
import unicodedata
from collections.abc import Sequence

import jax

_NOT_PRINTED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, lone surrogates, separators


def first_few(names: Sequence[object], most: int = 10, separator: str = ", ") -> str:
    """Return the first names, with dots for those that are left out."""
    return separator.join(map(str, names[:most])) + f"{separator}..." * (len(names) > most)


def printable(text: str) -> str:
    r"""Return one line that every encoding of Unicode can write.

    Line breaks in file names become spaces. Bytes that are not UTF-8, which Python reads as lone
    surrogates, become "\udcXX".
    """
    if "\n" in text:
        text = " ".join(filter(None, map(str.strip, text.split("\n"))))
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _NOT_PRINTED else c
        for c in text
    )


class UserError(ValueError, argparse.ArgumentTypeError):  # argparse passes its message on
    """One line on what is wrong, where, and what to do. Commands print it and exit with 2."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's name if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


EXPECTED = (UserError, OSError, jax.errors.JaxRuntimeError)


def explained(error: Exception) -> str:
    """Return one line about an EXPECTED error. Raise it again if only a developer can mend it."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return printable(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return (
        f"a device is out of memory ({printable(first_line(error)[:200])}): lower the "
        "batch_size or image_size, choose a smaller backbone, or set dtype=bfloat16"
    )
