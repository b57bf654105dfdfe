"""The one error a user is meant to read."""


class SalvageError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where (file, row, column), and what to do.

    The command line prints it without a traceback and exits with code 2. Each argument is a line of its own; what would
    break it in two, such as an identifier with a newline, is shown escaped.
    """

    def __str__(self) -> str:
        return "\n".join(shown(str(line)) for line in self.args)


def shown(text: str) -> str:
    r"""Return a text on one line: what cannot be seen, such as control characters, as Python writes it (``\n``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
