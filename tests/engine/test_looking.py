"""A pair is looked at before it is run: what is wrong with it is one sentence, and the rest is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shapes
from salvage.engine import looking, opening
from salvage.engine.looking import look, refuse
from salvage.errors import SalvageError


def found(pair: tuple[Path, Path], **chosen: object) -> dict[str, tuple[bool | None, str]]:
    names = map(str, pair)
    return {f.about: (f.ok, f.told) for f in look(*names, "transformers", {}, **chosen)}  # type: ignore[arg-type]


def test_a_pair_that_belongs_together_is_all_well(pair: tuple[Path, Path]) -> None:
    told = found(pair, problems=[{"prompt": "1+2:"}, {"prompt": "1+2*3:"}], max_tokens=24)
    assert all(ok for ok, _ in told.values())
    assert list(told) == ["specialist", "ancestor", "difference", "tokens", "context", "engine", "memory"]
    assert "Qwen3ForCausalLM, 0.64 M parameters, saved in float32" in told["specialist"][1]
    assert told["tokens"][1] == "22 that both have; no first token (BOS), ends with '</s>'; no chat template"
    assert told["context"][1] == "96 tokens; the longest prompt has 6, a completion at most 24"
    assert told["engine"][1] == "transformers (as asked)"
    assert told["memory"][1].startswith("4.9 MiB of weights and 0.6 MiB for one sequence of full length")


def test_the_first_token_of_a_plain_prompt_is_told_where_the_tokenizer_writes_it(tmp_path: Path) -> None:
    bare, bos = (shapes.pair(tmp_path / str(bos), "llama", bos=bos, template=shapes.CHATML) for bos in (False, True))
    rest = "ends with '</s>', '<|im_end|>'; a chat template"
    assert found(bare)["tokens"][1] == f"102 that both have; no first token (BOS), {rest}"  # though it has one
    assert found(bos)["tokens"][1] == f"102 that both have; begins with '<s>', {rest}"


def test_a_specialist_equal_to_its_ancestor_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[0], tmp_path / "same")
    told = found((pair[0], tmp_path / "same"))
    assert told["difference"] == (False, mark) if (mark := told["difference"][1]) else False
    assert "have the same weights" in mark and told["tokens"][0]
    with pytest.raises(SalvageError, match="have the same weights"):
        refuse(look(str(pair[0]), str(tmp_path / "same"), "auto", {}))


def test_what_does_not_load_ends_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    told = found((pair[0], tmp_path / "none"))
    assert list(told) == ["models"] and told["models"][0] is False
    shutil.copytree(pair[1], tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors is not a whole safetensors file" in found((pair[0], tmp_path / "torn"))["models"][1]
    weights.unlink()
    assert "has no weights in safetensors" in found((pair[0], tmp_path / "torn"))["models"][1]


def test_a_prompt_that_does_not_fit_and_too_little_memory_are_told(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ok, told = found(pair, problems=[{"prompt": "1" * 80}], max_tokens=17)["context"]
    assert ok is False and told.endswith("lower max_tokens or shorten that prompt")
    assert found(pair, problems=[{"prompt": "1" * 80}], max_tokens=16)["context"][0]
    monkeypatch.setattr(looking, "memory", lambda: (2**30, 2**20))
    ok, told = found(pair)["memory"]
    assert ok is False and "1.0 MiB of the machine's 1.0 GiB are free; that is too little" in told


def test_memory_is_as_vllm_counts_it_where_vllm_runs_the_pair(pair: tuple[Path, Path]) -> None:
    if opening.chosen("auto")[0] != "vllm":
        pytest.skip("vLLM cannot start here")
    for share, well in ((0.45, True), (1e-6, False)):
        findings = look(*map(str, pair), "auto", {"memory": share})
        ok, told = {f.about: (f.ok, f.told) for f in findings}["memory"]
        assert ok is well
    assert "engine vllm may take 0.00 GiB of the machine's" in told and "raise vllm.memory" in told


@pytest.mark.slow
def test_the_doctor_looks_at_all_and_its_exit_code_tells(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def doctor(*models: Path) -> tuple[int, str, list[dict]]:
        command = [sys.executable, "-m", "salvage", "doctor", "--json", "found.json"]
        command += ["--specialist", str(models[0]), "--ancestor", str(models[1])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, json.loads((tmp_path / "found.json").read_text())

    code, text, told = doctor(*pair)
    assert code == 0 and "WRONG" not in text and text.endswith("\nnothing is wrong\n")
    engines = [one for one in told if one["section"].startswith("every operator")]
    assert [one["about"] for one in engines] == ["engine vllm", "engine transformers"]
    assert all("108 of 108 decodes as the method says" in one["told"] for one in engines)
    code, text, told = doctor(pair[0], pair[0])
    assert code == 1 and text.endswith(f"\n1 wrong: difference ({pair[0].name})\n")
    assert text.count("WRONG") == 1 and sum(one["ok"] is False for one in told) == 1
