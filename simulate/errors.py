"""The one error the command line turns into exit code 2."""


class InputError(ValueError):
    """What the user gave is wrong. The message says what, where, what was expected, what was found, and what to do."""
