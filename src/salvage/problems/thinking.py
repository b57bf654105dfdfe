"""What of a text is its answer: what follows its thoughts. One rule, kept before every verifier.

A section of thought stands between two marks of `vocabulary.THINKING`. After the last that closes, what follows is the
answer; a mark that closes without one that opens ends a thought too, since a chat template may have opened it. While a
thought is not closed there is no answer, whatever it says, and a text is not right.
"""

from __future__ import annotations

import re

from salvage.tables.vocabulary import THINKING

_MARK = re.compile("|".join(re.escape(mark) for pair in THINKING for mark in pair), re.IGNORECASE)
_CLOSES = {opening.lower(): closing.lower() for opening, closing in THINKING}


def answer_part(text: str) -> str | None:
    """Return the part of a text that counts as its answer: all of it where there is no thought, None while one is open.

    A mark within a thought is a part of it, unless it closes that very thought.
    """
    start, closing = 0, ""
    for found in _MARK.finditer(text):
        mark = found.group().lower()
        if mark == closing or (not closing and mark not in _CLOSES):
            start, closing = found.end(), ""
        elif not closing:
            closing = _CLOSES[mark]
    return None if closing else text[start:]


TAIL = 16  # tokens at the end of a prompt, enough for a mark


def within(prompt: str, text: str) -> str:
    """Return the text, begun with the mark that its prompt ends on, where that opens a thought."""
    end = prompt.rstrip().lower()
    opening = next((opening for opening, _ in THINKING if end.endswith(opening.lower())), "")
    return opening + text


def tagged(text: str) -> tuple[int, int] | None:
    """Return where what the last ``<answer>...</answer>`` holds begins and ends."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return start, text.index("</answer>", start)
