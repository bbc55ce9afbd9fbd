"""The one exception for mistakes that a user can mend; the command line turns it into one line, exit 2."""


class UserError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""


class UnreadableImage(Exception):  # noqa: N818  (it is counted, not an error of the run)
    """One image that cannot be used; the message is the reason in a few words."""
