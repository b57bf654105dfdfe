"""A sentence for people stays on one line, whatever the identifiers in it hold."""

import pickle

import pytest

from salvage.errors import SalvageError, shown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cell 'é 数 a'", "cell 'é 数 a'"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("half \ud800", r"half \ud800"),
        (r"a\nb", r"a\nb"),
    ],
)
def test_what_would_break_a_line_is_escaped_once(text: str, told: str) -> None:
    assert shown(text) == shown(shown(text)) == told
    assert str(SalvageError(f"{text}; correct it")) == f"{told}; correct it"


def test_lines_are_those_that_were_meant() -> None:
    error = SalvageError("a\nb", "  c")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "a\\nb\n  c"
