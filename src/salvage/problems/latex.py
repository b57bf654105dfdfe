r"""Answers in LaTeX as math-verify reads them, whole: what it would pass over is written so that it does not.

Left to itself it reads ``1-1/\mathrm{e}`` as 1 (the upright letter is taken for a unit, and the rest falls back to the
first number), ``2t`` as 2, ``1011_2`` as 1011, ``12\,500`` as 512 and ``0.\overline{3}`` as 0.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache, lru_cache
from itertools import product
from typing import Any

from salvage.errors import SalvageError

_MARKED = re.compile(r"\\(?:boxed|fbox)\b")
_MEASURES = "cm|mm|km|kg|mg|ml|mL|ft|lb|lbs|mph|min|sec|hrs|hr"
_COUNTING = (  # words after a number that are no unit
    "alpha|beta|gamma|delta|theta|lambda|sigma|omega|infty|infinity|sqrt|percent|factorial|squared|cubed|plus|minus"
    "|times|hundred|thousand|million|billion|trillion|dozen"
)

# ------------------------------------------------------------------ rewriting

_CHARACTERS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "°": r"^{\circ}",
    "\u00a0": " ", "\u2009": r"\,", "\u202f": r"\,", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "θ": r"\theta ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
}  # fmt: skip
_TABLE = str.maketrans(_CHARACTERS)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_RAISED_TABLE = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_UPRIGHT = re.compile(r"\\(?:mathrm|text|textrm|mbox|operatorname)\s*\{\s*([ei]|\\pi)\s*\}|\{\s*\\rm\s+([ei])\s*\}")
_OTHER_FONT = re.compile(r"\\(?:mathbf|mathit|mathsf|boldsymbol|bm|textbf|textit|emph)\s*(?=\{)")
_WORDY = re.compile(r"\b(?:or|and|if|for|where|when|with|mod|not|no|than|at|least|most|except|all)\b", re.IGNORECASE)
_END = r"(?=\s*(?:\}|\$|\\\)|\\\]|[.,;]?\s*$))"
_UNIT = re.compile(
    r"(?<=[\w)}\]%])(?:\\[,;:! ]|[~\s])*\\(?:text|mathrm|mbox|textrm)\s*\{([^{}\d=+<>*^]{1,60})\}"
    rf"(?:\s*\^\s*(?:\{{\s*-?\d\s*\}}|\d))?{_END}"
)
_BARE_UNIT = re.compile(
    rf"(?<=[\d}})])(?:(?:\\[,;: ]|[~\s])+(?!(?:{_COUNTING})\b)[A-Za-z]{{4,30}}"
    rf"|\s*(?:{_MEASURES})(?:\s*\^\s*(?:\{{\d\}}|\d))?)\.?{_END}"
)
_SIGNS = re.compile(r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree\b|(?<=[\d)}])\s*\\?%)")  # 90°, 50%
_STOP = re.compile(r"(?<=[\d)}])[.,;](?=\s*(?:\}|\$|\\\)|\\\]))")
_BASED = re.compile(r"(?<![\w\\])([\dA-F]*\d[\dA-F]*)_(?:\{\s*(?:\\text\s*\{\s*(\w+)\s*\}|(\w+))\s*\}|(\d))")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d{1,30})\}")
_MODULO = re.compile(r"\(?\s*\\[pb]?mod\s*(?:\{\s*(\d+)\s*\}|(\d+))\s*\)?|\(\s*mod\s+(\d+)\s*\)")
_PRIMES = re.compile(r"(?<=[A-Za-z)])'+(?=[\s(=})$]|$)")  # of a derivative; one in a word stays


def tidied(text: str) -> str:
    """Return a text with what math-verify passes over written so that it reads it, and units taken away."""
    text = text.translate(_TABLE)
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_RAISED_TABLE)}}}", text)
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\w+))", lambda found: rf"\sqrt{{{found[1] or found[2]}}}", text)
    text = text.replace(r"\!", "").replace("{,}", ",")
    text = re.sub(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))", "", text)
    text = _UPRIGHT.sub(_apart, text)
    text = _OTHER_FONT.sub("", text)
    text = _REPEATING.sub(_as_fraction, text)
    text = _BASED.sub(lambda found: rf"\text{{{found[1]}base{found[2] or found[3] or found[4]}}}", text)
    text = _MODULO.sub(lambda found: rf"\text{{mod{found[1] or found[2] or found[3]}}}", text)
    text = _PRIMES.sub(lambda found: rf"^{{{chr(92)}prime}}" * len(found[0]), text)
    text = _STOP.sub("", _SIGNS.sub("", text))
    text = _UNIT.sub(lambda found: found[0] if _WORDY.search(found[1]) else "", text)
    return _BARE_UNIT.sub("", text)


def _apart(found: re.Match[str]) -> str:
    """Return an upright e, i or pi as a plain one, parted from letters: math-verify knows 3i as imaginary, not 3 i."""
    before, after = found.string[max(found.start() - 1, 0) : found.start()], found.string[found.end() : found.end() + 1]
    return f"{' ' * before.isalpha()}{found[1] or found[2]}{' ' * after.isalpha()}"


def _as_fraction(found: re.Match[str]) -> str:
    whole, fixed, repeated = found[1] or "0", found[2], found[3]
    below = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + repeated) - int(whole + fixed)
    return rf"\frac{{{above}}}{{{below}}}"


# ------------------------------------------------------------------ reading


@lru_cache(maxsize=4096)
def reference(answer: str, seconds: int | None) -> list[Any]:
    """Return what math-verify reads of a reference: all of it, or nothing.

    Parameters
    ----------
    seconds : int or None
        For which it may parse; None where no alarm can be set.

    Returns
    -------
    list
        The parsed expression, where it can be parsed, and its text; empty where some of it would be passed over.
    """
    if _MARKED.search(answer):
        return read(answer, seconds)
    body = re.sub(r"(?<!\\)\$|\\[()\[\]]", " ", answer.replace(r"\$", "")).strip().rstrip(".,;").strip()
    found = read(f"${' '.join(body.split())}$", seconds) if body else []
    return [] if found and not _is_whole(tidied(body), found) else found


def _is_whole(body: str, found: list[Any]) -> bool:
    """Tell whether nothing is lost: no words beside mathematics, which are read as products of letters, no dots."""
    if len(found) == 1 and "".join(found[0].split()) != "".join(body.replace("$", "").split()):
        return False  # it is kept as text, and not all of it
    outside = re.sub(r"\\[A-Za-z]+(?:\s*\{[^{}]*\})?", " ", re.sub(r"\\(?:text|mbox)\s*\{[^{}]*\}", " ", body))
    words = re.findall(r"[A-Za-z]{4,}|\b(?:for|all|if|mod|not|the|are)\b", outside)
    words = [word for word in words if word not in ("infinity", "sqrt")]
    return not words or not re.search(r"[\d=+^$\\]", body)


def read(text: str, seconds: int | None) -> list[Any]:
    """Return what math-verify reads of a text's answer: the expression, where all of it can be parsed, and its text."""
    from math_verify import parse

    try:
        found = parse(
            tidied(text),
            _targets(),
            extraction_mode="first_match",  # or it would look on for any number where an answer cannot be parsed
            parsing_timeout=seconds,
            raise_on_error=True,
        )
    except Exception:  # what is no mathematics may break it in many ways
        return []
    except BaseException as error:
        _refuse_late(error, seconds)
    return list(found)


def equal(gold: list[Any], answer: list[Any], seconds: int | None) -> bool:
    """Tell whether math-verify holds one of what was read of the reference equal to one of what was read of a text."""
    from math_verify import verify

    for one, other in product(gold, answer):
        try:
            if verify(one, other, timeout_seconds=seconds, raise_on_error=True):
                return True
        except Exception:  # noqa: S112 (what cannot be compared is not equal)
            continue
        except BaseException as error:
            _refuse_late(error, seconds)
    return False


def _refuse_late(error: BaseException, seconds: int | None) -> None:
    from math_verify.errors import TimeoutException

    if not isinstance(error, TimeoutException):
        raise error
    raise SalvageError(f"the verifier math took longer than {seconds} s") from None


@cache
def _targets() -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    latex = LatexExtractionConfig()
    return [
        replace(latex, normalization_config=replace(latex.normalization_config, units=False)),
        ExprExtractionConfig(),
    ]
