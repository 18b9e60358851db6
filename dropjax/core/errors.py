"""Errors that people read."""


class InputError(ValueError):
    """The input cannot be used; the message is one line: where, field, expected, got."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # names and cells are the input's own and may hold anything


class NotWritten(InputError):
    """A result is there, and could not be written where it was to go."""
