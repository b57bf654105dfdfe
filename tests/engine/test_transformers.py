"""The transformers engine: two models in step, one loop for every intervention, exact signals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from salvage.engine import base
from salvage.engine.base import COV, PATH, Intervention, Request, Sampling, seed_of
from salvage.engine.transformers import TransformersEngine
from salvage.errors import SalvageError
from salvage.method.signals import token_signals

DECODE = {"sampling": Sampling(0.6), "max_tokens": 24}
PROMPTS = ["1+2:", "3*4-5:", "6-7+8*9:", "0+0-1:", "9*9:", "2-2+2-2+2:"]


@pytest.fixture(scope="module")
def engine(pair: tuple[Path, Path]) -> TransformersEngine:
    return TransformersEngine(*pair, top_k_cov=3)


@pytest.fixture(scope="module")
def reversed_engine(pair: tuple[Path, Path]) -> TransformersEngine:
    return TransformersEngine(pair[1], pair[0], top_k_cov=3)


def requests(engine: TransformersEngine, n: int = 4, **changes: object) -> list[Request]:
    plain = [Request(engine.encode(p), seed_of(p, k)) for p in PROMPTS for k in range(n)]
    return [replace(r, **changes) for r in plain]  # type: ignore[arg-type]


def tokens(engine: TransformersEngine, some: list[Request]) -> list[list[int]]:
    return [c.tokens for c in engine.decode(some, **DECODE)]


@pytest.mark.parametrize("mix", [PATH, COV])
@pytest.mark.parametrize("greedy", [True, False])
def test_dense_with_alpha_one_is_the_specialist_and_with_zero_the_ancestor(
    engine: TransformersEngine, reversed_engine: TransformersEngine, mix: int, greedy: bool
) -> None:
    def dense(alpha: float) -> list[list[int]]:
        act = Intervention("dense", mix=mix, alpha=alpha, greedy=greedy)
        return tokens(engine, requests(engine, intervention=act, greedy=greedy))

    whole, none = dense(1.0), dense(0.0)
    assert whole == tokens(engine, requests(engine, greedy=greedy))
    assert none == tokens(reversed_engine, requests(engine, greedy=greedy))
    assert dense(0.5) not in (whole, none)


def test_greedy_decoding_is_transformers_own(engine: TransformersEngine, pair: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(pair[0]).eval()
    for prompt in PROMPTS:
        ids = torch.tensor([engine.encode(prompt)])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        (mine,) = tokens(engine, [Request(engine.encode(prompt), 0, greedy=True)])
        assert mine == theirs[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_a_replay_whose_mix_changes_nothing_is_plain_continuation(engine: TransformersEngine, alpha: float) -> None:
    prefixes = [c[:5] for c in tokens(engine, requests(engine))]
    plain = [replace(r, prefix=p) for r, p in zip(requests(engine), prefixes, strict=True)]
    # alpha 1 takes the specialist's argmax at the position: under greedy continuation that changes nothing
    act = Intervention("sparse", position=5, mix=PATH, alpha=1.0)
    steered = [replace(r, intervention=act, greedy=True) for r in plain]
    assert tokens(engine, steered) == tokens(engine, [replace(r, greedy=True) for r in plain])
    # never reached: the same seed gives the same sample, though two models run in step
    late = [replace(r, intervention=Intervention("sparse", position=99, alpha=alpha)) for r in plain]
    assert tokens(engine, late) == tokens(engine, plain)


def test_answers_do_not_depend_on_order_or_batch(engine: TransformersEngine) -> None:
    kinds = [
        Intervention(),
        Intervention("sparse", threshold=0.5, warmup=2),
        Intervention("dense", mix=COV),
        Intervention("local_temp", threshold=0.8, warmup=1, local_temperature=2.0),
        Intervention("sparse", position=3, mix=PATH),
    ]
    some = [replace(r, intervention=kinds[i % len(kinds)]) for i, r in enumerate(requests(engine))]
    together = engine.decode(some, **DECODE)
    alone = [engine.decode([r], **DECODE)[0] for r in reversed(some)][::-1]
    assert together == alone


def test_online_acts_once_at_the_first_position_past_warmup_and_threshold(engine: TransformersEngine) -> None:
    warmup, threshold = 3, 1.0
    act = Intervention("sparse", threshold=threshold, warmup=warmup, mix=PATH, alpha=0.0)
    plain = engine.decode(requests(engine), **DECODE)
    steered = engine.decode(requests(engine, intervention=act), **DECODE)
    j = [
        s["j"]
        for s in engine.signals(
            [r.prompt for r in requests(engine)], [c.tokens for c in plain], temperature=0.6, top_k_cov=3
        )
    ]
    assert any(c.position >= 0 for c in steered)
    for before, after, pressure in zip(plain, steered, j, strict=True):
        over = [t for t in range(warmup, len(pressure)) if pressure[t] >= threshold]
        assert after.position == (over[0] if over else -1)
        if over:
            assert after.tokens[: over[0]] == before.tokens[: over[0]]
            assert after.n_ancestor_tokens == over[0] + 1
        else:
            assert after.tokens == before.tokens
            assert after.n_ancestor_tokens == after.n_tokens


def test_a_sparse_mix_takes_the_argmax_of_the_mix(engine: TransformersEngine, pair: tuple[Path, Path]) -> None:
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in pair]
    for mix in (PATH, COV):
        some = requests(engine, intervention=Intervention("sparse", position=4, mix=mix, alpha=0.4))
        for request, done in zip(some, engine.decode(some, **DECODE), strict=True):
            if done.position < 0:
                continue
            ids = torch.tensor([request.prompt + done.tokens[:4]])
            with torch.no_grad():
                z_s, z_a = (m(ids).logits[0, -1].double() / 0.6 for m in models)
            mixed = 0.4 * z_s + 0.6 * z_a if mix == PATH else 0.4 * z_s.softmax(-1) + 0.6 * z_a.softmax(-1)
            assert done.tokens[4] == int(mixed.argmax())
            assert done.position == 4


def test_the_wrong_mix_is_the_other_one(engine: TransformersEngine) -> None:
    def decoded(mix: int, wrong: bool) -> list[list[int]]:
        act = Intervention("sparse", position=4, mix=mix, wrong=wrong, alpha=0.4)
        return tokens(engine, requests(engine, intervention=act))

    assert decoded(PATH, wrong=True) == decoded(COV, wrong=False)
    assert decoded(COV, wrong=True) == decoded(PATH, wrong=False)


def test_local_temperature_changes_one_position_and_costs_one_model(engine: TransformersEngine) -> None:
    act = Intervention("local_temp", position=4, local_temperature=5.0)
    plain, hot = (
        engine.decode(requests(engine, 32), **DECODE),
        engine.decode(requests(engine, 32, intervention=act), **DECODE),
    )
    assert all(a.tokens[:4] == b.tokens[:4] for a, b in zip(plain, hot, strict=True))
    assert sum(a.tokens[4:5] != b.tokens[4:5] for a, b in zip(plain, hot, strict=True)) > 20
    assert {c.n_ancestor_tokens for c in hot} == {0}
    assert all(c.n_prefill == len(r.prompt) for c, r in zip(hot, requests(engine, 32), strict=True))


def test_sampling_follows_the_specialists_distribution(engine: TransformersEngine, pair: tuple[Path, Path]) -> None:
    prompt = engine.encode("3*4-5:")
    done = engine.decode([Request(prompt, seed_of("d", k)) for k in range(4000)], sampling=Sampling(0.6), max_tokens=1)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(pair[0]).eval()(torch.tensor([prompt])).logits[0, -1]
    expected = (logits.double() / 0.6).softmax(-1).numpy()
    seen = np.bincount([c.tokens[0] for c in done], minlength=len(expected)) / len(done)
    assert np.abs(seen - expected).max() < 5 * np.sqrt(0.25 / len(done))


def test_signals_batched_and_padded_are_those_of_one_rollout_at_a_time(
    engine: TransformersEngine, pair: tuple[Path, Path]
) -> None:
    prompts = [r.prompt for r in requests(engine)]
    completions = [c.tokens for c in engine.decode(requests(engine), **DECODE)]
    together = engine.signals(prompts, completions, temperature=0.6, top_k_cov=3)
    engine.chunk, chunk = 7, engine.chunk
    chunked = engine.signals(prompts, completions, temperature=0.6, top_k_cov=3)
    engine.chunk = chunk
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in pair]
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        (alone,) = engine.signals([prompt], [completion], temperature=0.6, top_k_cov=3)
        with torch.no_grad():
            span = slice(len(prompt) - 1, -1)
            z = [m(torch.tensor([prompt + completion])).logits[0, span].double().numpy() for m in models]
        exact = token_signals(*z, completion, temperature=0.6, top_k_cov=3)
        for name, values in exact.items():
            for other in (together[i], chunked[i], alone):
                np.testing.assert_allclose(other[name], values, atol=1e-4, err_msg=name)


def test_bad_requests_are_refused_in_a_sentence(engine: TransformersEngine, pair: tuple[Path, Path]) -> None:
    prompt = engine.encode("1+1:")
    with pytest.raises(SalvageError, match=r"prompt of 90 tokens .* context of 96"):
        engine.decode([Request(prompt[:1] * 90, 0)], **DECODE)
    with pytest.raises(SalvageError, match="prompt has no tokens"):
        engine.decode([Request([], 0)], **DECODE)
    with pytest.raises(SalvageError, match="rollout 1 has no tokens"):
        engine.signals([prompt, prompt], [[3], []], temperature=0.6, top_k_cov=3)
    alone = TransformersEngine(pair[0])
    with pytest.raises(SalvageError, match="needs an ancestor"):
        alone.decode([Request(prompt, 0, intervention=Intervention("dense", mix=PATH))], **DECODE)
    with pytest.raises(SalvageError, match="cannot be loaded"):
        TransformersEngine(pair[0] / "nowhere")


def test_models_of_different_vocabularies_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from salvage.lab import ancestors, task

    other = tmp_path / "other"
    ancestors.save(ancestors.blank("llama"), other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace(f'"{task.CHARACTERS[10]}"', '"%"'))
    with pytest.raises(SalvageError, match=r"different vocabularies, first at token"):
        TransformersEngine(pair[0], other)


def test_a_seed_depends_on_its_parts_alone() -> None:
    assert base.seed_of(0, "a", "b") == base.seed_of("0", "a", "b")
    assert len({base.seed_of(0, c, p, a) for c in "xy" for p in "ab" for a in range(3)}) == 12
    assert base.seed_of("ab", "c") != base.seed_of("a", "bc")
