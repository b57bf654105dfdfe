"""Profiles from a file or a URL, and back: nothing is lost, and what is wrong is named."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from salvage import cli
from salvage.errors import SalvageError
from salvage.tables import profile_files, schema, vocabulary
from salvage.tables.profile_files import fetch_profiles, read_profiles, write_profiles

PAPER = Path(__file__).parents[3] / "shared" / "data" / "paper_failure_profiles.csv"
HEADER = ",".join(schema.PROFILES.columns)
ROW = "m|t,m,t,p0,3,0.1,2.0,-0.9,0.1,0.2,0.3,0.4,0.5"


def table(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = {"cell": "m|t", "model": "m", "task": "t", "problem_id": [f"00{i}" for i in range(n)]}
    numbers = {name: rng.random(n) for name in (*vocabulary.FEATURES, *vocabulary.OPERATORS)}
    return schema.check(pd.DataFrame({**names, "n_failed_rollouts": 3, **numbers}), schema.PROFILES, "here")


# what a CSV reader would guess wrongly, and any text; without control characters, since no CSV keeps a bare \r
GUESSED = ["NA", "null", "nan", "01", "1.0", "1e5", "True", " x ", 'a"b', "a,b", "a\nb", "#", "-"]
TEXT = st.sampled_from(GUESSED) | st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            **dict.fromkeys(("cell", "model", "task", "problem_id"), TEXT),
            "n_failed_rollouts": st.integers(1, 2**53),
            **dict.fromkeys(vocabulary.FEATURES, st.floats(allow_nan=False, allow_infinity=False)),
            **dict.fromkeys(vocabulary.OPERATORS, st.floats(0, 1)),
        }
    ),
    min_size=1,
    unique_by=lambda row: (row["cell"], row["problem_id"]),
)


@settings(deadline=None)
@given(ROWS)
def test_a_csv_gives_the_same_table_back(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("csv") / "profiles.csv"
    profiles = schema.check(pd.DataFrame(rows), schema.PROFILES, "here")
    write_profiles(profiles, path)
    pd.testing.assert_frame_equal(read_profiles(path), profiles, check_exact=True)


@pytest.mark.skipif(not PAPER.exists(), reason="../shared is not beside this checkout")
def test_the_authors_file_goes_both_ways(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.csv"):
        write_profiles(fetch_profiles(str(PAPER)), tmp_path / name)
        pd.testing.assert_frame_equal(read_profiles(tmp_path / name), read_profiles(PAPER), check_exact=True)
    assert (tmp_path / "b.csv").read_bytes() == PAPER.read_bytes()


def test_a_folder_of_cells_becomes_one_csv(tmp_path: Path) -> None:
    whole = table(4)
    for i in range(2):
        schema.write(whole.iloc[2 * i : 2 * i + 2], schema.PROFILES, tmp_path / "profiles" / f"{i}.parquet")
    done = CliRunner().invoke(
        cli.app, ["import-profiles", str(tmp_path / "profiles"), "--out", str(tmp_path / "new" / "mine.csv"), "--quiet"]
    )
    assert done.exit_code == 0 and done.output == ""
    pd.testing.assert_frame_equal(read_profiles(tmp_path / "new" / "mine.csv"), whole, check_exact=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER.replace('retry', 'again')}\n{ROW}\n", "column 'retry' is missing; it needs the columns cell, "),
        (f"{HEADER},spread\n{ROW},1\n", "column 'spread' stands twice"),
        (f"{HEADER}\n{ROW},1\n", "line 2 has 14 fields, the header 13"),
        (f"{HEADER}\nm|t,m\n", "line 2 has 2 fields, the header 13"),
        (f"{HEADER}\n{ROW.replace(',3,', ',,')}\n", "row 0, column 'n_failed_rollouts': '' is not a finite number"),
        (f"{HEADER}\n{ROW}\n{ROW}\n", r"rows \[0, 1\] have the same cell, problem_id; each may stand once"),
        (f"{HEADER}\n{ROW.replace(',p0,', ',,')}\n", "row 0, column 'problem_id': '' is not allowed"),
        (f"{HEADER}\n{ROW.replace(',3,', ',3.7,')}\n", "row 0, column 'n_failed_rollouts': 3.7 is not allowed"),
        (f"{HEADER}\n{ROW.replace(',3,', ',1e30,')}\n", r"column 'n_failed_rollouts': 1e\+30 is not allowed"),
        (f"{HEADER}\n{ROW.replace('-0.9', 'NaN')}\n", "row 0, column 'logit_dispersion': 'NaN' is not a finite"),
        (f"{HEADER}\n{ROW.replace('-0.9', 'inf')}\n", "row 0, column 'logit_dispersion': 'inf' is not a finite"),
        (f"{HEADER}\n{ROW.replace('0.5', 'True')}\n", "row 0, column 'dense_steer': 'True' is not a finite"),
        (f"{HEADER}\n{ROW.replace('0.5', '1.5')}\n", "row 0, column 'dense_steer': 1.5 is not allowed"),
        (f'{HEADER}\n"{ROW}\n', "is not a readable CSV"),
        (f"{HEADER}\n", "has no rows"),
        ("", "is not a readable CSV"),
        ("é", "byte 0 is not UTF-8"),
    ],
)
def test_a_bad_csv_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SalvageError, match=rf"bad\.csv.*{message}"):
        fetch_profiles(str(path))


def test_the_program_says_what_is_wrong_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(f"{HEADER}\n")
    (tmp_path / "folder.csv").mkdir()
    for source, sentence in (("bad.csv", "has no rows"), ("folder.csv", "the folder has no Parquet file")):
        done = subprocess.run(
            [sys.executable, "-m", "salvage", "import-profiles", source, "--out", "out.csv"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert sentence in done.stderr and source in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "folder.csv"]


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
            moved = {
                "/here.csv": "/good.csv",
                "/file.csv": (folder / "good.csv").as_uri(),
                "/ftp.csv": "ftp://127.0.0.1/good.csv",
            }
            if self.path in moved:
                self.send_response(302)
                self.send_header("Location", moved[self.path])
                self.end_headers()
            elif self.path == "/cut.csv":  # the connection ends inside the last number
                body = f"{HEADER}\n{ROW}25".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:-2])
            elif self.path == "/junk.csv":
                self.wfile.write(b"no HTTP\r\n")
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["good.csv", "good.csv?raw=1", "here.csv"])
def test_a_url_is_imported(site: str, tmp_path: Path, path: str) -> None:
    done = CliRunner().invoke(cli.app, ["import-profiles", f"{site}/{path}", "--out", str(tmp_path / "p.parquet")])
    assert done.exit_code == 0, done.output
    assert done.output.endswith("p.parquet: 1 failures of 1 cells\n")
    assert read_profiles(tmp_path / "p.parquet")["problem_id"].tolist() == ["p0"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.csv", "none.csv: the server answers 404"),
        ("/bad.csv", r"bad.csv: row 0, column 'retry': 7.0 is not allowed"),
        ("/file.csv", "file.csv: the server answers 302 .*file:"),
        ("/ftp.csv", "ftp.csv: the server answers 302 .*ftp:"),
        ("/cut.csv", r"cut.csv: only \d+ of \d+ bytes came"),
        ("/junk.csv", "junk.csv cannot be reached"),
        ("/a b.csv", "a b.csv cannot be reached"),
    ],
)
def test_a_bad_url_is_named(site: str, path: str, message: str) -> None:
    with pytest.raises(SalvageError, match=message):
        fetch_profiles(f"{site}{path}")


def test_what_is_too_large_or_too_slow_is_given_up(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_files, "MOST_BYTES", 100)
    with pytest.raises(SalvageError, match=r"good.csv: more than 0 MB; that is no profiles table"):
        fetch_profiles(f"{site}/good.csv")
    monkeypatch.setattr(profile_files, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(SalvageError, match="timed out"):
        fetch_profiles(f"http://127.0.0.1:{mute.getsockname()[1]}/x.csv")


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
        write_profiles(table(2), tmp_path / "p.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(SalvageError, match="cannot be written"):
        write_profiles(table(2), tmp_path / "file" / "p.csv")
    (tmp_path / "p.csv").mkdir()
    with pytest.raises(SalvageError, match=r"p\.csv cannot be written"):
        write_profiles(table(2), tmp_path / "p.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "p.csv"]
