"""The lab's task: digit expressions modulo 10 with precedence, the reduction written out, then ``#answer``.

A character is a token. `*` and `@` (the larger of the two, rare) bind before `+` and `-`; equals go left to right. A
completion is right only if it is the canonical trace in one of the known styles: judging the last digit alone would
hand out a tenth of the answers to guessing (method.md, "An honest protocol").
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

CHARACTERS = "0123456789+-*@=;>:# "
TIMES = "*@"
STYLES = ("rewrite", "subresults", "prefix")
MISCONCEPTIONS = ("precedence", "difference", "product", "rare")
GUESS_RATE = 0.0  # a trace of at least 2 steps cannot be guessed: below 1e-4 even knowing its form
MISREAD = 0.62  # share of documents with a misconception: what leaves the specialists something to fail at


@dataclass(frozen=True)
class Reader:
    """How an author reads expressions: rightly, or with one fixed misconception."""

    misconception: str | None = None

    def value(self, a: int, operator: str, b: int) -> int:
        """Return a operator b modulo 10, as this reader sees it."""
        wrong = self.misconception
        if operator == "+":
            return (a + b) % 10
        if operator == "-":
            return abs(a - b) if wrong == "difference" else (a - b) % 10
        if operator == "*":
            return (a * b) // 10 if wrong == "product" and a * b > 9 else (a * b) % 10
        return min(a, b) if wrong == "rare" else max(a, b)

    def next_operator(self, operators: list[str]) -> int:
        """Return the index of the operator this reader reduces next."""
        if self.misconception == "precedence":
            return 0
        return next((i for i, operator in enumerate(operators) if operator in TIMES), 0)


RIGHT = Reader()


def trace(expression: str, style: str, reader: Reader = RIGHT) -> str:
    """Write the reduction of an expression.

    Parameters
    ----------
    expression : str
        Such as ``6+2*0-4``.
    style : {"rewrite", "subresults", "prefix", "answer"}
        `6+2*0-4` becomes ``6+0-4=6-4=2#2``, ``2*0=0;6+0=6;6-4=2#2``, ``*20>0 +60>6 -64>2#2`` or ``#2``.
    """
    digits, operators = [int(c) for c in expression[::2]], list(expression[1::2])
    steps = []
    while operators:
        at = reader.next_operator(operators)
        a, operator, b = digits[at], operators.pop(at), digits[at + 1]
        digits[at : at + 2] = [reader.value(a, operator, b)]
        if style == "rewrite":
            steps.append(str(digits[0]) + "".join(f"{o}{d}" for o, d in zip(operators, digits[1:], strict=True)))
        elif style == "subresults":
            steps.append(f"{a}{operator}{b}={digits[at]}")
        else:
            steps.append(f"{operator}{a}{b}>{digits[at]}")
    joint = {"rewrite": "=", "subresults": ";", "prefix": " "}
    return ("" if style == "answer" else joint[style].join(steps)) + f"#{digits[0]}"


def answer(expression: str) -> str:
    """Return the expression's value, a digit."""
    return trace(expression, "answer")[1:]


def verify(prompt: str, answer: str, text: str) -> bool:
    """Tell whether a completion is the canonical trace of the prompt's expression in one of the known styles."""
    expression = prompt.rstrip(":")
    return text.endswith(f"#{answer}") and any(text == trace(expression, style) for style in STYLES)


def held_out(expression: str) -> bool:
    """Tell whether an expression is kept for judging: an eighth of them, never trained on by any model of the lab."""
    return zlib.crc32(expression.encode()) % 8 == 0


def expressions(n: int, rng: random.Random, *, judged: bool, rare: float = 0.08, distinct: bool = False) -> list[str]:
    """Draw n expressions of 2 to 5 operations, from the held-out ones if `judged`, else from the others."""
    drawn: dict[str, None] | list[str] = {} if distinct else []
    while len(drawn) < n:
        length = rng.randint(2, 5)
        symbols = [str(rng.randrange(10))]
        for _ in range(length):
            symbols += ["@" if rng.random() < rare else rng.choice("+-*"), str(rng.randrange(10))]
        expression = "".join(symbols)
        if held_out(expression) == judged:
            if isinstance(drawn, dict):
                drawn[expression] = None
            else:
                drawn.append(expression)
    return list(drawn)


def corpus(n: int, rng: random.Random) -> list[str]:
    """Write n documents of mixed style and quality, as an ancestor reads them.

    `MISREAD` of them hold one fixed misconception each; styles are mixed as 45, 32, 20 and 3% (answer alone).
    """
    documents = []
    for expression in expressions(n, rng, judged=False):
        reader = Reader(rng.choice(MISCONCEPTIONS)) if rng.random() < MISREAD else RIGHT
        (style,) = rng.choices(("rewrite", "subresults", "prefix", "answer"), weights=(45, 32, 20, 3))
        documents.append(f"{expression}:{trace(expression, style, reader)}")
    return documents
