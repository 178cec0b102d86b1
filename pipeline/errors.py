"""The exceptions that are shown as one line: the input is wrong (exit status 2), or a run cannot come to a good end (1)."""


class InputError(Exception):
    """Something a user can mend. The message reads: found -> expected -> what to do."""


class RunFailed(Exception):
    """A run that trying again would not mend, whatever the cluster does. The message reads like an InputError's."""
