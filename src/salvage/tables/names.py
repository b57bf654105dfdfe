"""One way from names to file names; no two names meet. `|` becomes `--`, what is not plain is percent-encoded.

Letters and digits of ASCII and `-_.~` are plain and stay. A dash beside another or beside a `|` is encoded, since two
of them mean a `|`; so is a dot in front, which would hide the file. A long name is cut, and ends in its hash.
"""

from __future__ import annotations

import hashlib
import re

NOT_PLAIN = re.compile(r"[^A-Za-z0-9._~-]|(?<=[-|])-|-(?=[-|])|^\.")  # one character at a time
LONGEST = 230  # bytes: with an ending, and while it is written, a file system takes 255
KEPT = 160  # of a name that is longer


def file_stem(name: str) -> str:
    """Return the file name, without an ending, that a name has in every folder; another name has another."""
    stem = NOT_PLAIN.sub(_encoded, name)
    if 0 < len(stem) <= LONGEST:
        return stem
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{stem[:KEPT]}%~{digest}"  # no character is encoded as %~


def _encoded(found: re.Match[str]) -> str:
    if found[0] == "|":
        return "--"
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))
