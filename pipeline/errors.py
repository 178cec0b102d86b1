"""The one exception that means "the input is wrong, not the program": shown as one line, exit status 2."""


class InputError(Exception):
    """Something a user can mend. The message reads: found -> expected -> what to do."""
