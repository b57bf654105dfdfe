"""Tables that a user brings, through the one reader: identifiers stay, compression and form are told by content."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import string
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from salvage import cli
from salvage.errors import SalvageError
from salvage.serving.answers import read_table
from salvage.tables import brought, csv_tables, schema
from salvage.tables.csv_tables import as_numbers, parse

HEADER = "cell,problem_id,spread,concentration,logit_dispersion"
IDS = ["007", "008", "1e5", "null", "NA", " x ", "1.0", "True", ""]
ROWS = "".join(f"NA,{name},0.{i + 1},{i * i},-{i}\n" for i, name in enumerate(IDS))
TEXT = f"{HEADER}\n{ROWS}"


def zstd(data: bytes) -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_parquet(text: str) -> bytes:
    sink = io.BytesIO()
    table = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(("cell", "problem_id"), str), keep_default_na=False)
    table.to_parquet(sink)
    return sink.getvalue()


def route(folder: Path, name: str, *more: str) -> tuple[int, str, Path]:
    """Route a file to routed.csv; return the exit code, what was said, and that file."""
    out = folder / "routed.csv"
    done = CliRunner().invoke(cli.app, ["route", "--profiles", str(folder / name), "--out", str(out), *more])
    return done.exit_code, str(done.exception or done.output), out


def test_case_01_identifiers_are_text_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(TEXT)
    code, told, out = route(tmp_path, "f.csv")
    assert code == 0, told
    with out.open(newline="") as file:
        assert [row["problem_id"] for row in csv.DictReader(file)] == IDS


def test_case_01_a_parquet_identifier_that_lost_its_spelling_is_refused(tmp_path: Path) -> None:
    columns = {"spread": [0.1, 0.2], "concentration": [1.0, 2.0], "logit_dispersion": [0.0, 1.0]}
    ids = {"ints": [7, 8], "floats": [7.0, 8.0], "nulls": [7, None], "texts": ["007", "NA"], "dates": [True, False]}
    told = {}
    for name, values in ids.items():
        parquet.write_table(arrow.table({"problem_id": values, **columns}), tmp_path / name)
        try:
            told[name] = read_table(tmp_path / name)["problem_id"].tolist()
        except SalvageError as error:
            told[name] = str(error).partition(": column ")[2]
    assert told["ints"] == ["7", "8"] and told["texts"] == ["007", "NA"]
    assert "double" in told["floats"] and "'problem_id', row 1 is null" in told["nulls"] and "bool" in told["dates"]


def test_case_02_a_cell_may_be_called_na(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(TEXT)
    code, told, out = route(tmp_path, "f.csv")
    assert code == 0, told
    assert set(pd.read_csv(out, keep_default_na=False)["cell"]) == {"NA"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("spread,concentration,logit_dispersion\n0.1,1,2,3\n", "line 2 has 4 fields, the header 3"),
        (f'{HEADER}\na,"p\n\n0",1,1,1\na,p1,1\n', "line 5 has 3 fields, the header 5"),
        (f"{HEADER}\na\n", "line 2 has 1 field, the header 5"),
        (f"sep=;\n{HEADER.replace(',', ';')}\na;b\n", "line 3 has 2 fields, the header 5"),
    ],
)
def test_case_03_a_row_of_other_length_is_refused_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    for read in (read_table, lambda path: brought.read(path, ["cell"], [])):
        with pytest.raises(SalvageError, match=rf"f\.csv: {told}"):
            read(tmp_path / "f.csv")


FORMS: dict[str, Callable[[str], bytes]] = {
    "f.CSV": str.encode,
    "f.csv.gz": lambda text: gzip.compress(text.encode()),
    "f.gz": lambda text: zstd(text.encode()),
    "f.txt": lambda text: bz2.compress(text.encode()),
    "f.parquet": lambda text: lzma.compress(text.encode()),
    "semicolons": lambda text: text.replace(",", ";").encode(),
    "tabs.csv": lambda text: text.replace(",", "\t").encode(),
    "excel.csv": lambda text: ("sep=;\n" + text.replace(",", ";")).replace("\n", "\r\n").encode("utf-8-sig"),
    "mac": lambda text: text.replace("\n", "\r").encode(),
    "parquet.csv": as_parquet,
    "parquet.gz": lambda text: gzip.compress(as_parquet(text)),
}


@pytest.mark.parametrize("name", FORMS)
def test_case_04_form_and_compression_are_told_by_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[name](TEXT))
    table = read_table(tmp_path / name)
    assert table["problem_id"].tolist() == IDS and table["cell"].tolist() == ["NA"] * len(IDS)
    assert table["spread"].tolist() == [float(f"0.{i + 1}") for i in range(len(IDS))]


def test_case_04_all_commands_read_the_same_files(tmp_path: Path) -> None:
    header = ",".join(schema.PROFILES.columns)
    rows = "".join(f"NA,m,t,00{i},3,0.{i + 1},2.0,-0.9,0.1,0.2,0.3,0.4,0.5\n" for i in range(3))
    for name in ("f.CSV", "f.csv.gz", "semicolons", "tabs.csv"):
        (tmp_path / name).write_bytes(FORMS[name](f"{header}\n{rows}"))
        for command in (
            ["evaluate", "--profiles", name, "--policies", "rule", "--quiet"],
            ["import-profiles", name, "--out", "p.parquet"],
            ["route", "--profiles", name, "--out", "r.csv"],
        ):
            named = [str(tmp_path / part) if part in (name, "p.parquet", "r.csv") else part for part in command]
            with pytest.warns(UserWarning) if command[0] == "evaluate" else pytest.MonkeyPatch.context():
                done = CliRunner().invoke(cli.app, named)
            assert done.exit_code == 0, (name, command, done.exception)
        assert pd.read_parquet(tmp_path / "p.parquet")["problem_id"].tolist() == ["000", "001", "002"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            TEXT.replace(",", ";").replace(".", ",").encode(),
            "row 0, column 'spread': '0,1' has a decimal comma; write 0.1",
        ),
        (f'{HEADER}\na,b,"0,1",1,1\n'.encode(), "row 0, column 'spread': '0,1' has a decimal comma"),
        (f"{HEADER}\na,b,0,1,1,5,1,0\n".encode(), "line 2 has 8 fields, the header 5; .*write 0.5 for 0,5"),
        (TEXT.encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (TEXT.encode("utf-16-be"), "byte 0 is NUL"),
        (TEXT.encode("utf-32"), "is UTF-32"),
        (TEXT.replace("x", "\0").encode(), r"byte \d+ is NUL"),
        (f"{HEADER},spread\n".encode(), "column 'spread' stands twice"),
        (b"", "is empty"),
        (f"{HEADER.replace(',', ', ')}\n".encode(), "column ' problem_id' has spaces around its name"),
        (f"{HEADER.replace(',', '|')}\n".encode(), "its first line is one field"),
        (f'{HEADER}\na,"b,1,1,1\n'.encode(), "not a readable CSV: line 2"),
        (f'{HEADER}\na,"b"c,1,1,1\n'.encode(), "not a readable CSV: line 2"),
        (b"a;b,c;d\n1;2,3;4\n", "may be cut at a comma or a semicolon; begin the file with a line sep="),
        (gzip.compress(TEXT.encode())[:-9], "cannot be unpacked as gzip"),
        (zstd(TEXT.encode())[:-3], "cannot be unpacked as zstd"),
        (b"PAR1" + TEXT.encode(), "is not a readable Parquet file"),
        (b"PK\x03\x04.......", "seems to be a ZIP archive or an Excel workbook"),
        (b'{"problem_id": "a"}\n{"problem_id": "b"}\n', "seems to be JSON Lines"),
        (b'[\n {"problem_id": "a"}\n]', "seems to be a JSON array"),
        (b"<!DOCTYPE html>\n<p>", "seems to be an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "seems to be a pointer of Git LFS"),
        (TEXT.replace("x", "\xff").encode("latin-1"), r"byte \d+ is not UTF-8"),
    ],
)
def test_case_04_what_cannot_be_read_is_refused_by_name(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "f.csv").write_bytes(data)
    with pytest.raises(SalvageError, match=rf"f\.csv.*{told}"):
        read_table(tmp_path / "f.csv")


def test_case_04_a_folder_without_tables_and_no_file_are_told(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "has no Parquet file"), (tmp_path / "none", "there is no such file")):
        with pytest.raises(SalvageError, match=told):
            read_table(path)


def test_a_header_that_is_cut_in_two_ways_is_cut_into_known_names() -> None:
    assert list(parse(b"problem;id,spread\na;b,1\n", "here", ["spread"])) == ["problem;id", "spread"]
    assert list(parse(b"note, if any;spread\nx, y;1\n", "here", ["spread"])) == ["note, if any", "spread"]


def test_a_folder_with_an_equals_sign_adds_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1e-5"
    folder.mkdir()
    (folder / "f.parquet").write_bytes(as_parquet(TEXT))
    assert "lr" not in read_table(folder / "f.parquet") and "lr" not in read_table(folder)


FIELD = st.sampled_from(
    ["NA", "null", "01", "1e5", " x ", 'a"b', "a,b", "a;b", "a\tb", "a\nb", "a\r\nb", "a\rb", "#", "'"]
)
FIELD |= st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NAMES = st.lists(st.text(st.sampled_from(string.ascii_letters + ' ;,"\n|'), min_size=1), min_size=1, unique=True)


@settings(deadline=None)
@given(st.data(), NAMES)
def test_any_text_comes_back_from_a_csv(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list
) -> None:
    rows = data.draw(st.lists(st.lists(FIELD, min_size=len(names), max_size=len(names)), min_size=1, max_size=4))
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    written = pd.DataFrame(rows, columns=names, dtype=str)
    csv_tables.write(written, path)
    pd.testing.assert_frame_equal(parse(path.read_bytes(), path, names), written, check_column_type=False)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
def test_a_number_is_read_as_it_was_written(value: float) -> None:
    assert as_numbers(pd.Series([repr(value), f" {value} "]), "here").tolist() == [value, value]


@pytest.mark.parametrize("text", ["", "NA", "nan", "inf", "1_000", "0x10", "1e999", "٣", "1 2", "True", "--1", "1.2.3"])
def test_what_only_looks_like_a_number_is_refused(text: str) -> None:
    with pytest.raises(SalvageError, match=r"here: row 1, column 'n': .* is not a finite number"):
        as_numbers(pd.Series(["1", text], name="n"), "here")
