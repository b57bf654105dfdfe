"""Profiles from elsewhere, and to elsewhere: the authors' CSV form, from a file or a URL, both ways."""

from __future__ import annotations

import http.client
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd

from salvage.errors import SalvageError
from salvage.tables import brought, csv_tables, schema, vocabulary

SECONDS = 20
MOST_BYTES = 200_000_000
TEXTS = ("cell", "model", "task", "problem_id")
NUMBERS = ("n_failed_rollouts", *vocabulary.FEATURES, *vocabulary.OPERATORS)


def read_profiles(path: str | Path) -> pd.DataFrame:
    """Read a profiles file, CSV (the authors' form) or Parquet by its content, or a folder of Parquet files; check it.

    Raises
    ------
    SalvageError
        Naming the file, the row (0 is the first after the header) and the column.
    """
    path = Path(path)
    one = path.exists() and not path.is_dir()
    table = brought.read(path, TEXTS, NUMBERS) if one else schema.read(path, schema.PROFILES)
    if table.empty:
        raise SalvageError(f"{path} has no rows; give it at least one failure")
    return schema.check(table, schema.PROFILES, path)


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
        path = Path(folder) / "profiles"
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
    if path.suffix.lower() == ".parquet":
        schema.write(profiles, schema.PROFILES, path)
        return
    if path.suffix.lower() != ".csv":
        raise SalvageError(f"--out {path}: the ending says the form; take .csv or .parquet")
    csv_tables.write(schema.check(profiles, schema.PROFILES, path), path)
