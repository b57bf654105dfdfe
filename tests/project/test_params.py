"""params.yaml is checked, every key, type and range, and near misses are named."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from salvage.errors import SalvageError
from salvage.project import params, settings

ROOT = Path(__file__).parents[2]
TEMPLATE = resources.files("salvage.project").joinpath("template/params.yaml").read_text(encoding="utf-8")
LAB = "{families: [qwen3], seeds: {qwen3: 1}, ancestors: 1, steps: {qwen3: 1}}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: abc", "seed is 'abc', but must be a whole number; correct it"),
        ("seed: true", "seed is True, but must be a whole number"),
        ("seed: -1", "seed is -1, but must be greater than or equal to 0"),
        ("cells: [a]", "cells[0] is 'a', but must be a table of settings"),
        ("cells: {name: a}", "cells is {'name': 'a'}, but must be a list"),
        ("cells: [{name: a, specialist: b, ancestor: c}]", "cells[0].problems is missing; add it"),
        ("cells: [{name: 5, specialist: b, ancestor: c, problems: d}]", "cells[0].name is 5, but must be a text"),
        ("cells: [{name: a, specialst: b}]", "cells[0].specialst is not known; did you mean specialist?"),
        ("sample: {max_tokens: 1.5}", "sample.max_tokens is 1.5, but must be a whole number, or auto"),
        ("sample: {max_tokens: 0}", "sample.max_tokens is 0, but must be greater than or equal to 1, or auto"),
        ("sample: {max_tokens: atuo}", "sample.max_tokens is 'atuo', but must be a whole number, or auto"),
        ("bacth: 3", "bacth is not known; known are seed, profile, profiles, cells"),
        ("sample: {bacth: 3}", "sample.bacth is not known; did you mean batch?"),
        ("sample: {temperature: -1}", "sample.temperature is -1, but must be greater than 0"),
        ("sample: {temperature: 0}", "sample.temperature is 0, but must be greater than 0"),
        ("sample: {temperature: .nan}", "sample.temperature is nan, but must be a finite number"),
        ("sample: {temperature: '0.6'}", "sample.temperature is '0.6', but must be a number"),
        ("sample: [1]", "sample is [1], but must be a table of settings"),
        ("engine: vlm", "engine is 'vlm', but must be 'auto', 'vllm' or 'transformers'"),
        (
            "intervene: {local_temperatures: []}",
            "temperatures is [], but must be a list that is not empty",
        ),
        ("intervene: {local_temperatures: [1, x]}", "intervene.local_temperatures[1] is 'x', but must be a number"),
        ("intervene: {alpha: 1.1}", "intervene.alpha is 1.1, but must be less than or equal to 1"),
        ("evaluate: {folds: 1}", "evaluate.folds is 1, but must be greater than or equal to 2"),
        ("register: {polic: a}", "register.polic is not known; did you mean policy?"),
        ("profiles: 3", "profiles is 3, but must be a table of settings"),
        ("profiles: {own: 3}", "profiles.own is 3, but must be a table of settings"),
        ("profiles: {own: {attemps: 3}}", "profiles.own.attemps is not known; did you mean attempts?"),
        (
            "profiles: {own: {lab: {families: [qwen]}}}",
            "lab.families[0] is 'qwen', but must be 'qwen3' or",
        ),
        (f"profiles: {{own: {{lab: {LAB.replace('seeds: {qwen3', 'seeds: {x')}}}}}", "seeds has no number for qwen3"),
        (
            f"profiles: {{own: {{lab: {LAB.replace('ancestors: 1', 'ancestors: 0')}}}}}",
            "ancestors is 0, but",
        ),
        (f"methods: [sft]\nprofiles: {{own: {{lab: {LAB}}}}}", "profiles.own.lab.steps has no number for sft"),
        ("profile: quik", "profile 'quik' is not one of own"),
        ("seed: 1\nseed: 2", "not readable YAML: key 'seed' stands twice"),
        ("1: 2", "not readable YAML: key 1 is no text"),
        ("seed: [", "not readable YAML"),
        ("a text", "not a table of settings but 'a text'"),
    ],
)
def test_case_31_a_hurried_params_yaml_is_refused_by_key(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(SalvageError, match=re.escape(told)) as error:
        settings.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_file_that_is_not_utf8_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with pytest.raises(SalvageError, match="not readable YAML"):
        params.read(tmp_path / "a")
    with pytest.raises(SalvageError, match="cannot be read: Is a directory"):
        params.read(tmp_path)


def test_what_is_left_empty_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed:\nsample:\nfeaturize: {window: }\ncells:\n")
    assert settings.load(path).raw == settings.load(tmp_path / "none").raw


@pytest.mark.parametrize("text", [TEMPLATE, (ROOT / "params.yaml").read_text()])
def test_our_own_files_pass(text: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(text)
    settings.load(tmp_path / "params.yaml")


def leaves(values: Any, name: str = "") -> list[str]:
    if not isinstance(values, dict):
        return [name]
    return [leaf for key, value in values.items() for leaf in leaves(value, key)]


def test_every_setting_is_explained_where_it_is_laid_down() -> None:
    lines = TEMPLATE.splitlines()
    for name in leaves(yaml.safe_load(TEMPLATE)):
        at = [i for i, line in enumerate(lines) if re.match(rf"\s*{name}:", line)]
        assert at, name
        for i in at:
            assert "# " in lines[i] or lines[i - 1].startswith("#"), lines[i]


def test_a_cells_own_settings_stand_over_those_of_all(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    pair = "name: a, specialist: s, ancestor: b, problems: p.jsonl"
    path.write_text(f"cells: [{{{pair}, max_tokens: 7, warmup: 0, batch: 1, top_k_cov: 2}}]\n")
    whole = settings.load(path)
    own = whole.of(whole.cells[0])
    assert own["sample"] == whole["sample"] | {"max_tokens": 7, "batch": 1} and own["intervene"]["warmup"] == 0
    assert own["featurize"] == whole["featurize"] | {"top_k_cov": 2} and own["vllm"] == whole["vllm"]
    assert whole["sample"]["max_tokens"] == "auto" and whole.own == whole.cells


def test_what_is_auto_still_is_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sample: {max_tokens: 9}\ncells: [{name: a, specialist: s, ancestor: b, problems: p.jsonl}]\n")
    plain = settings.load(path)
    with pytest.raises(SalvageError, match=r"sample.batch is auto, and 'a\|p' was not looked at yet; start with"):
        plain.of(plain.cells[0])
