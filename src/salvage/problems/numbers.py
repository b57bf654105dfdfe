r"""Numbers as people write them, read exactly or not at all: what `numeric` takes for a text's answer.

A text states its number, in this order of worth: in the last `\boxed{}` or `<answer>` or after GSM8K's ``####``
(whichever begins last); in the last sentence "the answer is ..."; else it is the last number of all. What is in a box
or a tag must be one number, with words and units beside it at most: of ``2\sqrt{3}``, ``(3, 5)`` or ``3 or 5`` none is
read, and nothing equals it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from salvage.problems import thinking

_LONGEST = 1000  # digits of a number that is meant; 1e999999999 would fill the memory with its own


@dataclass(frozen=True)
class Number:
    """A number as written, and the factor that a percent sign or a word such as million puts on it."""

    value: Fraction
    factor: Fraction = Fraction(1)

    def equals(self, other: Number) -> bool:
        """Tell whether both are one number; where only one names a factor, the other may leave it out.

        So 25% is 25 and 0.25. But 0.5% is not 0.5, which is likelier to be a half.
        """
        if self.value * self.factor == other.value * other.factor:
            return True
        named = [number.factor for number in (self, other) if number.factor != 1]
        return len(named) == 1 and self.value == other.value and not (named[0] < 1 and abs(self.value) < 1)


# ------------------------------------------------------------------ one way of writing: LaTeX and signs to plain text

_SPACES = re.compile(r"\\(?:[,;: ]|thinspace\b|quad\b|qquad\b)|[~\u00a0\u2007\u2008\u2009\u202f]")
_TEXT = re.compile(
    r"\\(?:text\w*|math(?:rm|bf|it|sf|tt|normal)|mbox|operatorname|bm|boldsymbol|emph)\s*\{([^{}]{0,200})\}"
)
_QUIET = re.compile(  # what shows nothing that counts
    r"\\(?:begin|end)\s*\{[^{}]{0,40}\}(?:\{[lcr|]*\})?|\\\\(?:\[[^\]]{0,10}\])?"
    r"|\\(?:left|right|big|Big|bigg|Bigg|displaystyle|textstyle|therefore|because|implies|Rightarrow|Longrightarrow"
    r"|rightarrow|to|iff|ldots|dots|hline|item|newline|bf|rm|it|large|Large|checkmark|square|blacksquare|qed)"
    r"(?![A-Za-z])|\\[()\[\]]|\*\*|__|`"
)
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*(?P<a>[-+]?[\d.,]{1,40})\s*\}|(?P<b>\d))\s*(?:\{\s*(?P<c>[\d.,]{1,40})\s*\}|(?P<d>\d))"
)
_SUPERSCRIPTS = {ord(c): d for c, d in zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True)}
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_SIGNS = {c: "-" for c in "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d"} | {c: "*" for c in "×·⋅∗✕"}
_SIGNS |= {"≅": "≈", "≃": "≈", "∼": "≈", "⁄": "/", "÷": "/", "’": "'"}
_SIGNS |= {
    c: f" {unicodedata.normalize('NFKC', c).replace('⁄', '/')}" for c in map(chr, range(0xBC, 0xBF))
}  # 1¼ is 1 1/4
_SIGNS |= {c: f" {unicodedata.normalize('NFKC', c).replace('⁄', '/')}" for c in map(chr, range(0x2150, 0x215F))}
_SIGNS |= {chr(0xFF10 + d): str(d) for d in range(10)} | {"．": ".", "，": ",", "％": "%"}
_SIGN_TABLE = str.maketrans(_SIGNS)
_COMMANDS = {
    r"\times": "*", r"\cdot": "*", r"\div": "/", r"\pm": "±", r"\mp": "±", r"\approx": "≈", r"\simeq": "≈",
    r"\sim": "≈", r"\le": "≤", r"\leq": "≤", r"\ge": "≥", r"\geq": "≥", r"\lt": "<", r"\gt": ">", r"\ne": "≠",
    r"\neq": "≠", r"\equiv": "=", r"\degree": "°", r"\pi": "π", r"\infty": "∞", r"\pounds": "£", r"\euro": "€",
}  # fmt: skip
_COMMAND_NAMES = re.compile("|".join(f"{re.escape(name)}(?![A-Za-z])" for name in _COMMANDS))
_CURRENCY = re.compile(
    r"\b(?:US|AU|CA|NZ|HK|A|C|S|R)(?=\$)|\b(?:USD|EUR|GBP|INR|CHF|AUD|CAD|JPY|CNY|RMB|Rs|RM)\b\.?\s?(?=[-\d.])"
    r"|\b(?:Rs|RM)\.?(?=\d)|[€£¥₹₩₽₱₦](?=\s?[-+\d.])"
)


def _plain(text: str) -> str:
    """Return a text with its numbers in plain characters: no LaTeX around them, one minus sign, one thin space."""
    text = text.translate(_SIGN_TABLE)
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = text.replace(r"\!", "").replace("{,}", ",").replace("{.}", ".").replace(r"\%", "%").replace(r"\$", "$")
    text = _SPACES.sub(" ", text)
    for _ in range(3):  # one within another
        text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"(?<=\d)\*\*(?=[-\d])", "^", text)
    text = _QUIET.sub(" ", text)
    text = re.sub(r"\^\s*\{?\s*(?:\\circ(?![A-Za-z])|°)\s*\}?", "°", text)
    text = _COMMAND_NAMES.sub(lambda found: _COMMANDS[found[0]], text)
    text = _FRACTION.sub(_as_slash, text)
    text = _CURRENCY.sub("", text)
    text = re.sub(r"(?<=[-+])\$|\$(?=-)", "", text).replace("$", "  ")  # two: 12 $500 are two numbers, 12 500 is one
    return re.sub(r"([=≈({])[ \t]*-[ \t]+(?=\.?\d)", r"\1 -", text)


def _as_slash(found: re.Match[str]) -> str:
    top, bottom = found["a"] or found["b"], found["c"] or found["d"]
    before = found.string[found.start() - 1 : found.start()]
    if before in ("-", "+") and top[0] in "-+":
        return found[0]  # two signs: not read
    return f"{' ' if before.isdigit() else ''}{top}/{bottom}"


# ------------------------------------------------------------------ the numbers of a plain text

_GROUPED = (  # 1,234 and 1,00,000 and 1 234 and 1'234 and 1_234
    r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|[1-9]\d{0,2}(?: \d{3})+|[1-9]\d{0,2}(?:'\d{3})+"
    r"|[1-9]\d{0,2}(?:_\d{3})+)(?!\d)"
)
_UNSIGNED = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_POINTED = r"(?:[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?:\.\d{3}){2,})(?![\d.,]*\d)"  # 1.234,50 and 1.234.567
_TENS = r"10\s?\^\s?(?:\{\s?[-+]?\d+\s?\}|[-+]?\d+)"
_TOKEN = re.compile(
    rf"(?P<odd>\d+:\d[\d:]*|\d+/\d+/\d+|(?!{_POINTED})\d+(?:\.\d+){{2,}}|±\s?[\d.,]+"  # a time, a date, a version
    rf"|(?!{_GROUPED})(?<!\d,)\d+,\d+(?!\d)(?!,\d)"  # 3,5: a pair or a decimal comma
    r"|\\[A-Za-z]+(?:\s?\[[^\]{}]{0,40}\])?(?:\s?\{(?:[^{}]|\{[^{}]{0,80}\}){0,200}\})*\d*|[√∛π∞][\d.,]*)"
    r"|(?P<name>(?<=[A-Za-z])\d[\d.,]*|_\s?(?:\{[^{}]{0,40}\}|\w))"  # the 12 of B12, the 1 of x_1
    r"|(?P<power>\^\s?(?:\{[^{}]{0,40}\}|-?\w+|\([^()]{0,40}\)))"
    rf"|(?P<sign>(?<![\w.)\]}}%])[-+])?(?:(?P<pointed>{_POINTED})"
    rf"|(?P<whole>\d+) +(?P<over>\d+)/(?P<under>\d+)(?![/\d.])"
    rf"|(?P<alone>{_TENS})|(?P<top>{_UNSIGNED})(?:\s?[*x]\s?(?P<tens>{_TENS}))?(?:\s?/\s?(?P<bottom>{_UNSIGNED}))?)"
    r"(?:\s*(?P<percent>%|per ?cent(?:age)?\b|pct\b)|\s*(?P<word>hundred|thousand|million|billion|trillion|k)\b)?",
    re.ASCII | re.IGNORECASE,
)
_WORDS = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VARIABLES = "xyznabceipqruvw"
_GLUED = re.compile(rf"[{_VARIABLES}](?![A-Za-z'])")  # 3x
_UNIT = re.compile(r"\s*[^\W\d_][^\W\d_/. ]{0,20}(?:[ ./]+[^\W\d_]{1,20}){0,2}\s*")  # the cm of 25 cm^2


@dataclass
class _Found:
    """A place where digits count: the number that is read there, or None, as of a time, a root, a product."""

    number: Number | None
    start: int
    end: int


def _numbers(plain: str) -> list[_Found]:
    found: list[_Found] = []
    for match in _TOKEN.finditer(plain):
        start, end = match.span()
        between = plain[found[-1].end : start] if found else ""
        if match["odd"]:
            found.append(_Found(None, start, end))
        elif match["name"]:
            if found and not between and match["name"].startswith("_"):  # 1011_2
                found[-1] = _Found(None, found[-1].start, end)
        elif match["power"]:
            if found and _UNIT.fullmatch(between) and between.split()[-1].lower() not in set(_VARIABLES):
                found[-1].end = end
            else:
                found.append(_Found(None, start, end))
        else:
            glued = _GLUED.match(plain, end) if not match["word"] else None
            found.append(_Found(None if glued else _number(match), start, end))
    return found


def _number(match: re.Match[str]) -> Number | None:
    if match["pointed"]:
        value = _fraction(match["pointed"].replace(".", "").replace(",", "."))
    elif match["whole"]:
        whole, over, under = (_fraction(match[part]) for part in ("whole", "over", "under"))
        value = None if whole is None or over is None or not under or over >= under else whole + over / under
    else:
        value, bottom = _fraction(match["top"] or "1"), _fraction(match["bottom"] or "1")
        tens = match["alone"] or match["tens"]
        power = _fraction("1e" + re.sub(r"[{}\s]", "", tens.partition("^")[2])) if tens else Fraction(1)
        value = None if value is None or power is None or not bottom else value * power / bottom
    if value is None:
        return None
    factor = (
        Fraction(1, 100)
        if match["percent"]
        else Fraction(_WORDS[(match["word"] or "").lower()] if match["word"] else 1)
    )
    return Number(-value if match["sign"] == "-" else value, factor)


def _fraction(number: str) -> Fraction | None:
    mantissa, _, exponent = re.sub(r"[, '_]", "", number).lower().partition("e")
    if len(mantissa) > _LONGEST or len(exponent) > 4:
        return None
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


# ------------------------------------------------------------------ which number of a text is its answer

_HEADINGS = 50  # how many lines that begin with #### may come after the one that states a number
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(?P<brace>\{)|(?P<bare>[-+]?[\d.,]+))")
_PHRASE = re.compile(
    r"\banswer\b(?:\s+(?:is|was)\b\s*:?|\s*[:=])\s*(?P<said>[^\n]*?)(?P<end>[.](?=\s|$)|\n|\?|$)", re.IGNORECASE
)
_TAKEN_BACK = re.compile(r"\b(?:wait|actually|correction|mistake|re-?check|instead|no,)", re.IGNORECASE)
_ASIDE = re.compile(r"[;(]|,\s|\s(?:because|since|as|so|which|where|when|after|if|for)\s", re.IGNORECASE)
_HEDGE = re.compile(r"[^.;\n]{0,30}\bor\b[^.;\n]{0,20}", re.IGNORECASE)
_CHANGING = {"not", "no", "nor", "or", "and", "to", "than", "least", "most", "half", "except", "between", "either"}
_BESIDE = re.compile(r"(?:[^\W\d_]|[\s.,;:'\"()\[\]{}$°%#&-]|/(?=\s?[^\W\d_]))*")
_SEPARATE = re.compile(r"[,;]\s|\band\b|\bor\b", re.IGNORECASE)


def stated(text: str) -> Number | None:
    """Return the number that a text states as its answer; None where there is none, or none that is read whole."""
    marked = _marked(text)
    if marked is not None:
        return marked.number
    plain = _plain(text)
    said = _said(plain)
    return said.number if said is not None else _last(plain)


def reference(answer: str) -> Number | None:
    """Return the number that a reference is; None where it is none, or holds more than is read.

    A worked solution of several lines may state its number as a text does; a line must be the number, or say it.
    """
    if _marked(answer) is not None or len(answer.strip().splitlines()) > 1:
        return stated(answer)
    plain = _plain(answer)
    said = _said(plain)
    return said.number if said is not None else _alone(plain)


def _marked(text: str) -> _Found | None:
    """Return the number of the last box, tag or ``####``; a Found without a number where it is not read whole."""
    found = [place for place in (_box(text), _tag(text), _hashes(text)) if place is not None]
    return max(found, key=lambda place: place.start) if found else None


def _box(text: str) -> _Found | None:
    place = _last_box(text)
    if place is None:
        return None
    start, held = place
    return _Found(None if held is None else _alone(_plain(held)), start, start)


def boxed(text: str) -> str | None:
    """Return what the last box of a text holds; None where there is no box, or it is cut off."""
    place = _last_box(text)
    return None if place is None or place[1] is None else place[1].strip()


def _last_box(text: str) -> tuple[int, str | None] | None:
    """Return where the last box begins, and what it holds: None where it is cut off; an empty one is none."""
    for match in reversed(list(_BOX.finditer(text))):
        if match["bare"]:
            return match.start(), match["bare"]
        end = _closing(text, match.end())
        if end is None:
            return match.start(), None
        if text[match.end() : end].strip():  # an empty one is no answer but an instruction
            return match.start(), text[match.end() : end]
    return None


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.start()
    return None


def _tag(text: str) -> _Found | None:
    tag = thinking.tagged(text)
    return None if tag is None else _Found(_alone(_plain(text[slice(*tag)])), *tag)


def _hashes(text: str) -> _Found | None:
    for match in list(re.finditer(r"####[ \t]*([^\n]*)", text))[: -_HEADINGS - 1 : -1]:
        plain = _plain(match[1])
        number = _alone(plain) if re.match(r"\s*[-+.\d]|[^=]*=", plain) else None
        if number is not None:  # else it is a heading
            return _Found(number, match.start(), match.end())
    return None


def _said(plain: str) -> _Found | None:
    """Return the number of the last sentence that says what the answer is, unless it is taken back after it."""
    phrases = list(_PHRASE.finditer(plain))
    if not phrases or phrases[-1]["end"] == "?" or _TAKEN_BACK.search(plain, phrases[-1].end()):
        return None
    said = phrases[-1]["said"].rstrip("!")
    number = _alone(said) or _alone(_ASIDE.split(said, maxsplit=1)[0])
    if number is None and not (_HEDGE.search(said) and len(_numbers(said)) > 1):
        return None
    return _Found(number, *phrases[-1].span())


def _alone(plain: str) -> Number | None:
    """Return the number that a piece of text is, words and units beside it; None where it is or holds anything else."""
    parts = re.split(r"[=≈]", plain)
    if any(_SEPARATE.search(part) for part in parts[1:-1]):  # x = 3, y = 5
        return None
    part = next((part for part in reversed(parts) if re.search(r"\d", part)), "")
    part = re.sub(r"^\s*-\s+(?=\.?\d)", "-", part)
    found = _numbers(part)
    if len(found) != 1 or found[0].number is None:
        return None
    beside = f"{part[: found[0].start]} {part[found[0].end :]}"
    words = {word for word in re.findall(r"[^\W\d_]+", beside)}
    if not _BESIDE.fullmatch(beside) or words & set(_VARIABLES) or {w.lower() for w in words} & _CHANGING:
        return None
    return found[0].number


def _last(plain: str) -> Number | None:
    found = _numbers(plain)
    if not found:
        return None
    number = found[-1].number
    if len(found) > 1 and number is not None and _HEDGE.fullmatch(plain[found[-2].end : found[-1].start]):
        other = found[-2].number
        return number if other is not None and number.equals(other) else None
    return number
