"""The report's page: alone in the world, safe, the same for the same inputs, and whole in a real browser."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import browser
from salvage.pipeline import results
from salvage.project import tracking
from salvage.project.settings import Settings
from salvage.reports import page, traces, words
from salvage.studies import study
from salvage.tables import schema, vocabulary

CELLS = [f"{family}-{method}-0|digits" for family in ("qwen3", "llama") for method in ("sft", "dpo")]
GROUPS = ["all", "qwen3-*", "llama-*", "*-sft-*", "*-dpo-*"]
ATTACK = "<script>alert('j')</script>"
SETTINGS = Settings({"study": {"data": "data/full"}}, 0, "quick", [], [])


def _profiles():
    draw = np.random.default_rng(0)
    n = 60 * len(CELLS)
    cells = np.repeat(CELLS, 60)
    about = {"cell": cells, "model": [c.split("|")[0] for c in cells], "task": "digits"}
    table = pd.DataFrame({**about, "problem_id": [f"{i % 60}" for i in range(n)], "n_failed_rollouts": 3})
    for name in vocabulary.FEATURES:
        table[name] = draw.normal(size=n)
    for name in vocabulary.OPERATORS:
        table[name] = draw.integers(0, 5, size=n) / 4
    return table


def _row(policy, scope="all", protocol="cross-fitted", cell="all", k=1, budget=None, rescue=0.3):
    lift = None if policy == "retry" else 0.02
    row = {"cell": cell, "scope": scope, "protocol": protocol, "policy": policy, "k": k, "budget": budget, "n": 240}
    row |= {"rescue": rescue, "low": rescue - 0.02, "high": rescue + 0.02, "tokens": 50.0, "per_1000": 6.0}
    for name in ("over_retry", "over_best_fixed"):
        row |= {name: lift, f"{name}_low": lift and lift - 0.01, f"{name}_high": lift and lift + 0.01}
    return row | {"p_value": None if lift is None else 0.01}


def evaluation():
    policies, scopes, protocols = ("retry", "dense_steer", "rule"), ("steerable-hard", "all"), ("paper", "cross-fitted")
    rows = [_row(p, s, q, c) for c in (*CELLS, *GROUPS) for s in scopes for q in protocols for p in policies]
    spent = [(b, 0.2 + 0.03 * b) for b in range(2, 17)]
    names = ("retry", "portfolio", "best mix (hindsight)")
    rows += [_row(p, cell=c, k=None, budget=b, rescue=v) for c in GROUPS for p in names for b, v in spent]
    return [*rows, _row("portfolio, stopping at 0.05", k=None, budget=16, rescue=0.6)]


def rescue():
    """Metrics of the closed loop, as metrics/rescue.json has them."""
    rows = []
    for cells in (*GROUPS, *CELLS):
        for a, arm in enumerate(("retry", "rule", "calibrated", "portfolio", "models:/salvage-router@champion")):
            for b, budget in enumerate((4, 8, 16)):
                lift = a * (0.01 + 0.01 * b)
                about = {"cells": cells, "arm": arm, "budget": budget, "problems": 240, "solved": 0.5 + 0.1 * b + lift}
                about |= {"low": 0.48 + 0.1 * b + lift, "high": 0.52 + 0.1 * b + lift, "model_tokens": 30.0 + 25 * b}
                ends = {"over_retry": lift, "over_retry_low": lift - 0.01, "over_retry_high": lift + 0.01}
                about |= ends if a else dict.fromkeys(ends)
                rows.append(about | {"attempts": 1.8 + 0.9 * b, "scored_tokens": 9.0 * (a > 0)})
    return rows


def views():
    """Failed traces, one for each thing that may become of them, with an attack wherever a model or a user speaks."""
    found = []
    for i, status in enumerate(("solved", "spent", "stopped", "unverified")):
        tokens = [*"7+5=12;", ATTACK, "", "\ud83d", "longwordwithoutanyspace" * 8, *"12*3=35;35"]
        attempts = [{"operator": "sample", "correct": False, "model_tokens": 18, "text": "".join(tokens)}]
        verdict = {"solved": True, "unverified": None}.get(status, False)
        attempts.append({"operator": "dense_steer", "correct": verdict, "model_tokens": 36, "text": ATTACK * 30})
        told = {"cell": CELLS[i], "problem_id": f"held-out-{i}", "prompt": f"(7+5)*3: {ATTACK}", "answer": "36"}
        told |= {"tokens": tokens, "j": [0.1 * k for k in range(len(tokens))], "junction": 16, "policy": "rule"}
        told["features"] = dict.fromkeys(vocabulary.FEATURES, 0.5)
        told["alternatives"] = {"specialist": [["5", 0.7], [" ", 0.2]], "ancestor": [[ATTACK, 0.8]]}
        found.append(told | {"status": status, "attempts": attempts})
    return found


def regimes():
    names = ("retry-solvable", "steerable-hard", "beyond reach")
    interval = {"low": 0.2, "high": 0.4}
    score = {"classifier": "tuned", "trained_on": "other problems", "value": 0.3, **interval}
    scores = [{**score, "measure": name} for name in ("brier", "accuracy")]
    told = [{"regime": r, "told": t, "true": t, "n": 9, **interval} for r in names for t in (0.1, 0.5, 0.9)]
    share = {"n": 60, "value": 0.3, **interval}
    shares = [{"cells": cells, "regime": name, **share} for cells in ("all", "qwen3-sft-*") for name in names]
    stable = {"family": "", "measure": "stability", "value": 0.8, "chosen": False, **interval}
    clusters = [{**stable, "kind": kind, "k": k} for kind in ("k-means", "gaussian mixture") for k in (2, 3)]
    return {"regimes": scores, "reliability": told, "shares": shares, "clusters": clusters}


def methods():
    about = {"inputs": "features", "majority": 0.5, "checkpoints": 4, "p_value": 0.01, "low": 0.7, "high": 0.9}
    rows = [
        {"split": split, "way": way, "bag": bag, "measure": "accuracy", "value": 0.8, **about}
        for split in ("unseen seeds", "unseen family")
        for way in ("bag", "vote")
        for bag in (1, 25)
    ]
    share = {"sft": 0.8, "dpo": 0.2}
    return {"methods": rows + [{**rows[0], "measure": f"told: {m}", "told": share, "bag": 25} for m in share]}


def _write(folder, *, whole):
    profiles = _profiles()
    schema.write(profiles, schema.PROFILES, folder / "data/profiles/all.parquet")
    results.write_json(folder / results.EVALUATION, evaluation())
    if whole:
        schema.write(profiles, schema.PROFILES, folder / "data/full/profiles/all.parquet")
        more = {study.REGIMES: regimes(), study.METHODS: methods(), page.RESCUE: rescue(), page.VIEWS: views()}
        for path, told in more.items():
            results.write_json(folder / path, told)
        lost = folder / "data/attempts/a.unverified.jsonl"
        lost.parent.mkdir(parents=True)
        lost.write_text('{"mark": ""}\n' + '{"problem_id": "p", "text": "", "trouble": "too slow"}\n' * 1200)


def _reported(folder, *, whole):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _write(folder, whole=whole)
        results.report(SETTINGS)
    return folder / "report"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report of a project that has everything."""
    return _reported(tmp_path_factory.mktemp("whole"), whole=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The report of a project with profiles and an evaluation alone."""
    return _reported(tmp_path_factory.mktemp("bare"), whole=False)


FETCHED = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")


class Seen(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.styles, self.headings = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.tags.append((tag, told))
        self.ids += [told["id"]] if "id" in told else []
        self.links += [value for name, value in attrs if name in FETCHED]
        self.styles += [told["style"]] if "style" in told else []
        self.headings += [int(tag[1])] if re.fullmatch(r"h[1-6]", tag) else []


@pytest.fixture(scope="module")
def text(whole):
    return (whole / "index.html").read_text()


@pytest.fixture(scope="module")
def seen(text):
    return Seen(text)


def test_what_has_no_verdict_is_told_where_there_is_any(text, bare):
    assert "<dt>without a verdict</dt><dd>1,200 attempts (counted as not rescued)</dd>" in re.sub(r"\s*\n\s*", "", text)
    assert "without a verdict" not in (bare / "index.html").read_text()


def test_it_fetches_nothing_and_runs_nothing(text, seen):
    assert {tag for tag, _ in seen.tags}.isdisjoint({"script", "iframe", "object", "embed", "img", "base", "form"})
    assert not [name for _, told in seen.tags for name in told if name.startswith("on")]
    assert all(link.startswith(("#", "data:")) for link in seen.links)
    assert all(target.startswith("#") for target in re.findall(r"url\((.)", text)) and "@import" not in text


def test_every_id_is_there_once_and_every_link_leads_to_one(text, seen):
    assert len(seen.ids) == len(set(seen.ids))
    wanted = {link[1:] for link in seen.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert wanted <= set(seen.ids)


def test_headings_are_in_order_and_tables_and_pictures_are_told_in_words(seen):
    assert seen.headings[0] == 1 and seen.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(seen.headings, seen.headings[1:], strict=False))
    pictures = [told for tag, told in seen.tags if tag == "svg"]
    assert len(pictures) == 6 and all(told["role"] == "img" and len(told["aria-label"]) > 30 for told in pictures)
    names = [tag for tag, _ in seen.tags]
    assert names.count("table") == names.count("caption") > 10
    assert all(told.get("scope") in ("row", "col") for tag, told in seen.tags if tag == "th")


def test_sections_come_in_their_order(seen):
    sections = [told["aria-labelledby"] for tag, told in seen.tags if tag == "section"]
    assert sections == [
        "run", "tokens", "rescue", "space", "topography", "calibration", "traces", "tables", "data",
    ]  # fmt: skip


def test_it_opens_with_the_bottom_line(text):
    opening = text[: text.index("<nav")]
    assert words.bottom_line(rescue()) in opening.replace("&#39;", "'")


def test_what_a_model_says_is_text(text):
    assert ATTACK not in text and "<script" not in text
    assert "&lt;script&gt;alert(&#39;j&#39;)&lt;/script&gt;" in text


def test_a_trace_is_told_in_words_and_marks_as_well_as_in_colour(text):
    for said in ("✓ right", "✗ wrong", "? no verdict", "✓ solved", "the budget was spent", "the policy stopped"):
        assert said in text
    assert text.count('<span class="hidden">junction: </span>▲') == 4


def test_a_long_trace_is_cut_around_its_junction(whole):
    view = views()[0] | {"tokens": ["a"] * 2000, "j": [float("nan"), *[1.0] * 1999], "junction": 1000}
    told = traces.trace(view)
    assert (len(told["shown"]), told["before"], told["after"]) == (401, 800, 799)
    assert told["shown"][200] == ("a", "0.75", True)


def test_few_traces_are_of_many_kinds_and_cells():
    kinds = [(cell, status) for cell in "abcd" for status in ("solved", "spent")]
    many = [{"cell": cell, "status": status, "problem_id": str(i)} for cell, status in kinds for i in range(3)]
    few = traces.few(many)
    assert len(few) == traces.SHOWN_TRACES
    assert {view["status"] for view in few} == {"solved", "spent"}
    assert {view["cell"] for view in few} == set("abcd")


def test_what_is_not_there_is_left_out(bare):
    text = (bare / "index.html").read_text()
    sections = [told["aria-labelledby"] for tag, told in Seen(text).tags if tag == "section"]
    assert sections == ["run", "tokens", "rescue", "space", "tables", "data"]
    assert "The closed loop</h3>" not in text and re.search(r"\([\d,]+ failures\)", text)
    assert "data/profiles" in text and "data/rollouts" not in text
    assert {path.stem for path in bare.glob("*.svg")} == {"failures", "rescue", "budgets"}


def test_the_same_inputs_give_the_same_bytes(bare, tmp_path):
    again = _reported(tmp_path, whole=False)
    for path in bare.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_pictures_take_the_colours_of_the_page(whole):
    for path in whole.glob("*.svg"):
        svg = path.read_text()
        assert "#000000" not in svg and "currentColor" in svg
        assert "DejaVu" not in svg and "<text" in svg  # text stays text
    assert {path.stem for path in whole.glob("*.svg")} == {path.stem for path in whole.glob("*.png")}
    assert {"arms", "topography", "reliability", "methods"} <= {path.stem for path in whole.glob("*.svg")}


def test_the_hash_of_a_table_is_dvcs(text, whole):
    row = r'<th scope="row">data/profiles</th>\s*<td class="n">240</td>\s*<td>([0-9a-f]{32}\.dir)</td>'
    found = re.search(row, text)
    assert found and found[1] == tracking.dvc_hash(whole.parent / "data/profiles")


def test_mlflow_gets_the_pictures_and_the_page(whole, monkeypatch):
    logged = []
    monkeypatch.setattr("mlflow.log_artifact", lambda path, folder: logged.append(f"{folder}/{Path(path).name}"))
    tracking.log_pictures(whole)
    assert {"pictures/failures.png", "pictures/arms.png", "report/index.html"} <= set(logged)
    assert not [path for path in logged if path.endswith(".svg")]


WIDER = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')
    && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40))"""


@pytest.mark.slow
@pytest.mark.skipif(browser.find() is None, reason=f"none of {', '.join(browser.NAMES)} is on PATH")
def test_a_browser_shows_it_whole_on_a_phone_and_a_desktop_in_light_and_dark(whole):
    grounds = set()
    with browser.browser(browser.find()) as tab, browser.served(whole) as address:
        for width, height in ((360, 800), (1280, 900)):
            for dark in (False, True):
                tab.look(width, height, dark=dark)
                tab.open(f"{address}/index.html")
                tab.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
                assert tab.ask("matchMedia('(prefers-color-scheme: dark)').matches") == dark
                shown, room = tab.ask("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
                assert room == width and shown <= room, json.dumps(tab.ask(WIDER), indent=1)
                assert tab.ask(WIDER) == []
                assert tab.troubles() == []
                assert tab.requested() == [f"{address}/index.html"]
                grounds.add((dark, tab.ask("getComputedStyle(document.body).backgroundColor")))
                ink = tab.ask("getComputedStyle(document.body).color")
                assert tab.ask("getComputedStyle(document.querySelector('svg text')).fill") == ink
    assert len(grounds) == 2
