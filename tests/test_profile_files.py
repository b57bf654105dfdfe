"""Profiles from a file or a URL, and back: nothing is lost, and what is wrong is named."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from salvage import cli, schema
from salvage.errors import SalvageError
from salvage.profile_files import fetch_profiles, write_profiles
from salvage.profiles import read_profiles

PAPER = Path(__file__).parents[1].parent / "shared" / "data" / "paper_failure_profiles.csv"
HEADER = ",".join(schema.PROFILES.columns)
ROW = "m|t,m,t,p0,3,0.1,2.0,-0.9,0.1,0.2,0.3,0.4,0.5"


def table(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = {"cell": "m|t", "model": "m", "task": "t", "problem_id": [f"00{i}" for i in range(n)]}
    features = {name: rng.normal(size=n) * 10.0 ** rng.integers(-9, 9) for name in schema.FEATURES}
    rates = {name: rng.integers(0, 13, n) / 13 for name in schema.OPERATORS}
    return schema.check(pd.DataFrame({**names, "n_failed_rollouts": 3, **features, **rates}), schema.PROFILES, "here")


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_a_csv_gives_the_same_table_back(tmp_path_factory: pytest.TempPathFactory, n: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("csv") / "profiles.csv"
    write_profiles(table(n, seed), path)
    pd.testing.assert_frame_equal(read_profiles(path), table(n, seed), check_exact=True)


@pytest.mark.skipif(not PAPER.exists(), reason="../shared is not beside this checkout")
def test_the_authors_file_goes_both_ways(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.csv"):
        write_profiles(fetch_profiles(str(PAPER)), tmp_path / name)
        pd.testing.assert_frame_equal(read_profiles(tmp_path / name), read_profiles(PAPER), check_exact=True)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """Serve a folder on loopback and return its address."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "good.csv").write_text(f"{HEADER}\n{ROW}\n")
    (folder / "bad.csv").write_text(f"{HEADER}\n{ROW.replace('0.9,0.1', '0.9,7')}\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/moved.csv":
                self.send_response(302)
                self.send_header("Location", (folder / "good.csv").as_uri())
                self.end_headers()
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_is_imported(site: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["import-profiles", f"{site}/good.csv", "--out", str(tmp_path / "p.parquet")])
    assert done.exit_code == 0, done.output
    assert done.output.endswith("p.parquet: 1 failures of 1 cells\n")
    assert read_profiles(tmp_path / "p.parquet")["problem_id"].tolist() == ["p0"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.csv", "none.csv: the server answers 404"),
        ("/bad.csv", r"bad.csv: row 0, column 'retry': 7.0 is not allowed"),
        ("/moved.csv", "moved.csv: the server answers 302"),
    ],
)
def test_a_bad_url_is_named(site: str, path: str, message: str) -> None:
    with pytest.raises(SalvageError, match=message):
        fetch_profiles(f"{site}{path}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://127.0.0.1:9/x.csv", "cannot be reached"),
        ("file:///etc/passwd", "only http and https"),
        ("ftp://127.0.0.1/x.csv", "only http and https"),
        ("http://[/x.csv", "cannot be reached"),
        ("nowhere.csv", "there is no such table"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(source: str, message: str) -> None:
    with pytest.raises(SalvageError, match=message):
        fetch_profiles(source)


def test_nothing_is_written_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SalvageError, match=r"take \.csv or \.parquet"):
        write_profiles(table(2, 0), tmp_path / "p.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(SalvageError, match="cannot be written"):
        write_profiles(table(2, 0), tmp_path / "file" / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
