"""What a file holds, told by its first bytes and never by its name; what is compressed is unpacked."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from pathlib import Path

import pyarrow as arrow

from salvage.errors import SalvageError

PARQUET = b"PAR1"
PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PACKED |= {b"BZh%d1AY&SY" % level: "bzip2" for level in range(1, 10)}
WIDE = {  # the longer marks first: UTF-32's begins with UTF-16's
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
OTHERS = {
    PARQUET: "a Parquet file",
    b"ARROW1": "an Arrow (Feather) file",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF",
}
OTHERS |= {b"\x80%c" % protocol: "a pickle" for protocol in range(2, 6)}
TEXTS = {
    "version https://git-lfs": "a pointer of Git LFS in place of the file (git lfs pull fetches it)",
    "outs:": "a pointer of DVC in place of the file (dvc pull fetches it)",
    "<!doctype html": "an HTML page",
    "<html": "an HTML page",
}


def contents(path: str | Path) -> bytes:
    """Return what a file holds; one that is compressed by gzip, bzip2, xz or zstd is unpacked.

    Raises
    ------
    SalvageError
        Where there is no such file, it is a folder, or it cannot be read or unpacked.
    """
    path = Path(path)
    if path.is_dir():
        raise SalvageError(f"{path} is a folder; name one file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SalvageError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        told = getattr(error, "strerror", None) or error
        raise SalvageError(f"{path} cannot be read: {told}; check the path and its permissions") from error
    kind = next((kind for mark, kind in PACKED.items() if data.startswith(mark)), "")
    try:
        return _unpacked(data, kind) if kind else data
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise SalvageError(f"{path} cannot be unpacked as {kind} ({error}); fetch or make it again") from None


def _unpacked(data: bytes, kind: str) -> bytes:
    if kind == "zstd":
        with arrow.CompressedInputStream(arrow.BufferReader(data), "zstd") as stream:
            return stream.read()
    unpack = {"gzip": gzip.decompress, "bzip2": bz2.decompress, "xz": lzma.decompress}
    return unpack[kind](data)


def is_parquet(path: str | Path) -> bool:
    """Tell whether a file is Parquet as it lies there, not compressed."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(PARQUET)) == PARQUET
    except (OSError, ValueError):
        return False


def seems(data: bytes) -> str:
    """Return what contents seem to be, as a sentence names it (`a Parquet file`); empty where they may be text."""
    for mark, name in WIDE.items():
        if data.startswith(mark):
            return f"{name} text"
    for mark, name in OTHERS.items():
        if data.startswith(mark):
            return name
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
    for begin, name in TEXTS.items():
        if start[: len(begin)].lower() == begin:
            return name
    return _json_kind(data, start) if start[:1] in ("{", "[") else ""


def _json_kind(data: bytes, start: str) -> str:
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    for part, name in ((first, "JSON Lines"), (data, "JSON")):
        try:
            value = json.loads(part.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            continue
        return name if isinstance(value, dict) else "a JSON array" if isinstance(value, list) else ""
    return "JSON that ends too early" if start[:2] in ('{"', "[{") else ""


def text(data: bytes, where: str | Path) -> str:
    """Return contents as text, in UTF-8 with or without its mark.

    Raises
    ------
    SalvageError
        Where it is UTF-16 or 32, no UTF-8, or has a NUL; each by its name and place.
    """
    kind = next((kind for mark, kind in WIDE.items() if data.startswith(mark)), "")
    if kind:
        raise SalvageError(f"{where} is {kind}; save it as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        wide = " (UTF-16 without its mark?)" if data[:2].count(0) == 1 else ""
        raise SalvageError(f"{where}: byte {at} is NUL, which no text has{wide}; save it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SalvageError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
