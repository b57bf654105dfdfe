"""Profiles from elsewhere, and to elsewhere: the authors' CSV form, from a file or a URL, both ways."""

from __future__ import annotations

import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd

from salvage import schema
from salvage.errors import SalvageError
from salvage.files import write_text
from salvage.profiles import read_profiles

SECONDS = 20
MOST_BYTES = 200_000_000


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
    if not url.startswith(("http://", "https://")):
        raise SalvageError(f"{url}: only http and https are read; download the file and give its path")
    # urllib itself refuses to be redirected to anything but http, https and ftp
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - the scheme is checked above
            body: bytes = answer.read(MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise SalvageError(f"{url}: the server answers {error.code} {error.reason}; correct the address") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SalvageError(f"{url} cannot be reached ({reason}); check the address and the network") from None
    if len(body) > MOST_BYTES:
        raise SalvageError(f"{url}: more than {MOST_BYTES // 10**6} MB; that is no profiles table")
    return body


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
