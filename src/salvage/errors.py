"""The one error a user is meant to read."""


class SalvageError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where (file, row, column), and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
