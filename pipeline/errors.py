"""The exceptions that are shown as one line: the input is wrong (exit status 2), a run cannot come to a good end, or the

cluster that it was on is gone (1).
"""


class InputError(Exception):
    """Something a user can mend. The message reads: found -> expected -> what to do."""


class RunFailed(Exception):
    """A run that trying again would not mend, whatever the cluster does. The message reads like an InputError's."""


class ClusterGone(Exception):
    """A cluster that does not answer any more: nobody knows what became of its job, which goes on when it is submitted again."""
