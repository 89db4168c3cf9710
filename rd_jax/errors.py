"""The one error type for mistakes that the user can mend."""


class UserError(ValueError):
    """Says in one line what is wrong, where, and what to do; `main` prints it and exits with 2."""
