"""The one exception that means "the input is wrong, not the program", as `pipeline.errors.InputError` does."""


class InputError(Exception):
    """Something a user can mend. The message reads: found -> expected -> what to do."""
