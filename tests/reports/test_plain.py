"""Text from users and models is shown as it is, in every table, screen, page and picture."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from salvage.evaluation.protocols import evaluate
from salvage.project.tracking import allowed_names
from salvage.reports import page, pictures, show, study_report, tables
from salvage.reports.plain import PlainTable, plain
from worlds import planted

ODD = ["sft[lora]|gsm8k", "x[/INST]", "[/]", "[red]a[/red]", ":smile:", "\\[b]", "[link=a]"]


def printed(what: object) -> str:
    """Print as a careless caller would, with markup on."""
    stream = io.StringIO()
    Console(file=stream, width=400).print(what)
    return stream.getvalue()


@pytest.mark.parametrize("text", ODD)
def test_case_08_tables_show_names_as_they_are(text: str) -> None:
    routed = pd.DataFrame({"cell": [text], "problem_id": [text], "operator": ["retry"], "margin": [0.5]})
    assert printed(tables.answer_table(routed)).count(text) == 2
    table = PlainTable(text, title=text, caption=text)
    table.add_row(text)
    assert printed(table).count(text) == 4


def test_case_08_controls_are_no_commands_to_the_terminal() -> None:
    assert plain("a\x1b[31mb\rc\x9b").plain == "a␛[31mb␍c\ufffd"
    assert plain("a\tb\nc\ud800").plain.endswith("c?")


@pytest.mark.parametrize("text", ODD)
def test_case_08_a_failed_rollout_is_shown_as_it_is(text: str) -> None:
    look = {"tokens": [text, text], "j": [0.1, 0.2], "junction": 1, "features": {"spread": 0.1}}
    told = {
        "cell": text,
        "problem_id": text,
        "prompt": text,
        "reference": text,
        "failure": look | {"alternatives": {"specialist": [(text, 0.5)], "ancestor": [(text, 0.5)]}},
        "why": {"policy": text, "operator": text},
        "attempts": [{"operator": text, "correct": None, "model_tokens": 3, "position": 1, "text": text}],
        "status": text,
        "model_tokens": 3,
        "scored_tokens": 3,
    }
    stream = io.StringIO()
    show.show(told, Console(file=stream, width=400))
    shown = stream.getvalue().replace("\\\\", "\\")  # tokens are shown by their repr
    assert shown.count(text) == 14


def test_case_08_evaluations_pages_and_pictures_show_cells_as_they_are(tmp_path: Path) -> None:
    cell = "<b>[/x]</b> $\\frac$ & 'q'|t"
    profiles, _ = planted(np.random.default_rng(0).random((12, 5)), seed=1)
    profiles = profiles.assign(cell=cell)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = evaluate(profiles, resamples=20, permutations=10, policies=())
    for made in (tables.evaluation_table(rows), tables.transfer_table(rows)):
        printed(made)
    pictures.panel(profiles, ["retry"] * 12, tmp_path / "failures.png")
    svg = (tmp_path / "failures.svg").read_text()
    assert "$\\frac$" in svg and "&lt;b&gt;[/x]&lt;/b&gt;" in svg and "<b>" not in svg
    for name in ("rescue", "budgets"):
        (tmp_path / f"{name}.svg").write_text(svg)
    html = page.render(page.Contents("quick", 0, profiles, ["retry"] * 12, rows, tmp_path))
    assert "&lt;b&gt;[/x]&lt;/b&gt; $\\frac$ &amp; &#39;q&#39;|t" in html and "<b>" not in html


def test_case_08_a_study_shows_families_as_they_are() -> None:
    row = {"family": "[/a]", "kind": "k-means", "k": 2, "value": 0.5, "chosen": True, "measure": "stability"}
    told = {"clusters": [row, {"family": "[/a]", "measure": "explained by [/x]", "value": 0.5}]}
    shown = printed(study_report.cluster_table(told))
    assert "[/a] 0.50" in shown and "explained by [/x] 0.500" in shown


def test_case_08_mlflow_takes_every_name_and_keeps_them_apart() -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    names = [
        "a+b",
        "a_b",
        "a=b",
        "/abs/p.json",
        "./p.json",
        "../p",
        "a//b",
        "é[x]",
        "calibrated:20",
        "x" * 300,
        "y" * 300,
    ]
    names.append("x" * 299 + "z")
    told = allowed_names(names)
    assert len(set(told)) == len(names) and told[8] == "calibrated_20"
    for name in told:
        _validate_metric_name(name)
        _validate_param_name(name)
