"""Errors that people read."""


class InputError(ValueError):
    """The input cannot be used; the message is one line: where, field, expected, got."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # names and cells come from the input and may hold anything


class NotWritten(InputError):
    """A result was found but could not be written to its destination."""
