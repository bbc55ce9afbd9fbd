"""The one exception for mistakes that a user can mend; the command line turns it into one line, exit 2."""


class UserError(ValueError):
    """Bad input: the message says what was found, what was expected and what to do."""
