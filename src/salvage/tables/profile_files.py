"""Profiles from elsewhere, and to elsewhere: the authors' CSV form, from a file or a URL, both ways."""

from __future__ import annotations

import http.client
import io
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.tables import schema, vocabulary
from salvage.tables.files import write_text

SECONDS = 20
MOST_BYTES = 200_000_000


def read_profiles(path: str | Path) -> pd.DataFrame:
    """Read a profiles file, CSV (the authors' form) or Parquet, or a folder of Parquet files, and check it.

    Raises
    ------
    SalvageError
        Naming the file, the row (0 is the first after the header) and the column.
    """
    path = Path(path)
    table = _read_csv(path) if path.suffix == ".csv" else schema.read(path, schema.PROFILES)
    if table.empty:
        raise SalvageError(f"{path} has no rows; give it at least one failure")
    return schema.check(table, schema.PROFILES, path)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # all as text: pandas would guess that a problem "NA" is missing and that a model "01" is 1; and the header as a
        # row, since pandas would rename a name that stands twice and take a field too many for an index
        rows = pd.read_csv(io.StringIO(text), header=None, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise SalvageError(f"{path}: there is no such table; check the path") from None
    except OSError as error:
        raise SalvageError(f"{path} cannot be read: {error.strerror or error}; check the path") from None
    except UnicodeDecodeError as error:
        raise SalvageError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise SalvageError(f"{path} is not a readable CSV ({str(error).strip()}); correct it") from None
    names = rows.iloc[0].tolist()
    twice = [name for name in schema.PROFILES.columns if names.count(name) > 1]
    if twice:
        raise SalvageError(f"{path}: column {twice[0]!r} stands twice; drop one")
    table = rows.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)
    for name in (n for n in ("n_failed_rollouts", *vocabulary.FEATURES, *vocabulary.OPERATORS) if n in table):
        table[name] = _numbers(table[name], path)
    return table


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    # ahead of the schema, which cannot tell the row of a text among numbers
    values = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = ~np.isfinite(values.to_numpy())
    if bad.any():
        row = int(np.argmax(bad))
        told = f"{path}: row {row}, column {column.name!r}: {column.iloc[row]!r}"
        raise SalvageError(f"{told} is not a finite number; correct or drop it")
    return values


def fetch_profiles(source: str) -> pd.DataFrame:
    """Read and check profiles from a CSV or Parquet file, a folder of Parquet files, or an http or https URL.

    Raises
    ------
    SalvageError
        Naming the source and what is wrong: unreachable, too large, or as `profiles.read_profiles` says it.
    """
    if "://" not in source:
        return read_profiles(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"profiles{'.parquet' if source.split('?')[0].endswith('.parquet') else '.csv'}"
        path.write_bytes(_downloaded(source))
        try:
            return read_profiles(path)
        except SalvageError as error:
            raise SalvageError(str(error).replace(str(path), source)) from None


def _downloaded(url: str) -> bytes:
    if not _is_web(url):
        raise SalvageError(f"{url}: only http and https are read; download the file and give its path")
    try:
        with urllib.request.build_opener(_StayOnTheWeb).open(url, timeout=SECONDS) as answer:
            body: bytes = answer.read(MOST_BYTES + 1)
            promised = int(answer.headers.get("Content-Length", len(body)))
    except urllib.error.HTTPError as error:
        raise SalvageError(f"{url}: the server answers {error.code} {error.reason}; correct the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)).strip()
        raise SalvageError(f"{url} cannot be reached ({reason}); check the address and the network") from None
    if len(body) > MOST_BYTES:
        raise SalvageError(f"{url}: more than {MOST_BYTES // 10**6} MB; that is no profiles table")
    if len(body) < promised:  # http.client does not mind, and the last number may have lost digits
        raise SalvageError(f"{url}: only {len(body)} of {promised} bytes came; try again")
    return body


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


class _StayOnTheWeb(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib would go to ftp too."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not _is_web(newurl):
            raise urllib.error.HTTPError(req.full_url, code, f"{msg} to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def write_profiles(profiles: pd.DataFrame, path: str | Path) -> None:
    """Write profiles as Parquet, or as CSV in the authors' form, by the path's ending; no half file is ever seen.

    Raises
    ------
    SalvageError
        Where the ending is another, or the path cannot be written.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        schema.write(profiles, schema.PROFILES, path)
        return
    if path.suffix != ".csv":
        raise SalvageError(f"--out {path}: the ending says the form; take .csv or .parquet")
    # floats as repr: nothing is lost
    write_text(path, schema.check(profiles, schema.PROFILES, path).to_csv(index=False))
