"""The one error type for mistakes that the user can mend, and errors of devices in its words."""

import jax


class UserError(ValueError):
    """Says in one line what is wrong, where, and what to do; `main` prints it and exits with 2."""


def explained(error: Exception) -> str:
    """One line on an error. Raises it again if nobody but a developer could do anything."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return str(error)
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return (
        f"a device is out of memory ({str(error).splitlines()[0][:200]}): lower "
        "--config.batch_size or --config.image_size, choose a smaller --config.backbone, or set "
        "--config.dtype=bfloat16"
    )
