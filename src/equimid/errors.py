"""The one exception for mistakes that a user can mend; the command line turns it into one line, exit 2."""


class UserError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


class UnreadableImage(Exception):  # noqa: N818 (a state of the file, not an error of the program)
    """An image that cannot be used; `reason` is a few words on one line ("truncated", "0 bytes")."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
