"""What is known of a pair before its weights: prompts as tokens, ends, and whether the two mean the same by a token."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import shapes
from salvage.engine.speaker import Speaker
from salvage.errors import SalvageError
from salvage.problems import chat

BOS, EOS, START, STOP = 1, 2, 3, 4
USER = {"role": "user", "content": "6*7?"}


@pytest.fixture(scope="session")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return models without a tokenizer, by their number of embeddings."""
    folders = {}
    for rows in (shapes.LENGTH, shapes.LENGTH + 1):
        folders[str(rows)] = tmp_path_factory.mktemp("body")
        shapes.model("llama", vocab_size=rows).save_pretrained(folders[str(rows)])
    return folders


def put(folder: Path, body: Path, speaker: PreTrainedTokenizerFast, **generation: Any) -> Path:
    """Lay down a model folder of a body and a tokenizer."""
    folder.mkdir()
    for file in body.iterdir():
        (folder / file.name).symlink_to(file)
    speaker.save_pretrained(folder)
    if generation:
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def speaking(tmp_path: Path, bodies: dict[str, Path], **how: Any) -> Speaker:
    return Speaker(put(tmp_path / "mine", bodies[str(shapes.LENGTH)], shapes.tokenizer(**how)), None)


def problem(messages: Any = None, **more: Any) -> dict[str, Any]:
    return {"problem_id": "p1", "messages": chat.chat({"messages": messages or [USER], **more})}


# ---------------------------------------------------------------- ends, BOS


def test_case_18_a_completion_ends_by_whatever_names_an_end(tmp_path: Path, bodies: dict[str, Path]) -> None:
    body = bodies[str(shapes.LENGTH)]
    speaker = shapes.tokenizer(ends="<|spare|>", template=shapes.CHATML)
    folder = put(tmp_path / "mine", body, speaker, eos_token_id=[10, 11])
    # generation config, config, tokenizer, chat template
    assert Speaker(folder, None).ends == [10, 11, EOS, 5, STOP]
    plain = put(tmp_path / "plain", body, shapes.tokenizer(), eos_token_id=10)
    assert Speaker(plain, None).ends == [10, EOS]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (shapes.CHATML, STOP),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }} </s>{% endfor %}", EOS),
        ("{% for m in messages %}{{ m.content | trim }}<|spare|>\n{% endfor %}", 5),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        ("{{ raise_exception('never') }}", None),
        (None, None),
    ],
)
def test_case_18_the_end_of_a_turn_is_what_the_template_writes_after_it(template: str | None, end: int | None) -> None:
    from salvage.engine.template import turn_end

    assert turn_end(shapes.tokenizer(template=template)) == end


def test_case_18_an_engine_stops_at_each_of_its_ends(tmp_path: Path, bodies: dict[str, Path]) -> None:
    from salvage.engine.base import Request, Sampling
    from salvage.engine.transformers import TransformersEngine

    speaker = shapes.tokenizer(template=shapes.CHATML)
    folder = put(tmp_path / "mine", bodies[str(shapes.LENGTH)], speaker, eos_token_id=10)
    engine = TransformersEngine(folder)
    assert engine.ends == [10, EOS, STOP]
    some = [Request(engine.prompt({"prompt": "6*7?"}), seed) for seed in range(300)]
    done = [c.tokens for c in engine.decode(some, sampling=Sampling(20.0), max_tokens=60)]
    assert {tokens[-1] for tokens in done if len(tokens) < 60} == {10, EOS, STOP}
    assert not any(set(tokens[:-1]) & {10, EOS, STOP} for tokens in done)


def test_case_19_a_plain_prompt_begins_as_the_tokenizer_begins_a_text_and_once(
    tmp_path: Path, bodies: dict[str, Path]
) -> None:
    speaker = speaking(tmp_path, bodies, bos=True)
    bare = speaker.encode("6*7?")
    assert speaker.prompt({"prompt": "6*7?"}) == [BOS, *bare] == speaker.tokenizer.encode("6*7?")
    assert speaker.prompt({"prompt": "<s>6*7?"}) == [BOS, *bare]
    assert speaker.encode("6*7?")[0] != BOS  # a completion has none


def test_case_19_a_tokenizer_without_bos_writes_none(tmp_path: Path, bodies: dict[str, Path]) -> None:
    speaker = speaking(tmp_path, bodies)
    assert speaker.prompt({"prompt": "6*7?"}) == speaker.encode("6*7?")


def test_case_19_an_end_that_the_tokenizer_writes_is_no_part_of_a_prompt(
    tmp_path: Path, bodies: dict[str, Path]
) -> None:
    speaker = speaking(tmp_path, bodies, bos=True, eos=True)
    assert speaker.prompt({"prompt": "6*7?"}) == [BOS, *speaker.encode("6*7?")]
    assert speaker.prompt({"prompt": "6*7?</s>"})[-1] == EOS  # the user's own


# ---------------------------------------------------------------- chat


def test_a_chat_is_what_the_template_makes_of_it_with_bos_once(tmp_path: Path, bodies: dict[str, Path]) -> None:
    speaker = speaking(tmp_path, bodies, bos=True, template=shapes.CHATML)
    system = {"role": "system", "content": "Be brief."}
    tokens = speaker.prompt(problem([system, USER]))
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n6*7?<|im_end|>\n<|im_start|>assistant\n"
    assert tokens == [BOS, *speaker.encode(text)]
    theirs = speaker.tokenizer.apply_chat_template([system, USER], add_generation_prompt=True, return_dict=False)
    assert tokens == theirs
    assert speaker.prompt(problem([USER])) != tokens  # the system prompt counts


def test_tools_and_keywords_reach_the_template(tmp_path: Path, bodies: dict[str, Path]) -> None:
    speaker = speaking(tmp_path, bodies, template=shapes.CHATML)
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    told = speaker.tokenizer.decode(speaker.prompt(problem(tools=[tool])))
    assert '"name": "add"' in told
    quick = speaker.tokenizer.decode(speaker.prompt(problem(chat_template_kwargs={"enable_thinking": False})))
    assert quick.endswith("assistant\n<think></think>\n")
    assert not speaker.tokenizer.decode(speaker.prompt(problem())).endswith("</think>\n")


READS_NOTHING = "{% for m in messages %}{{ m.content }}{% endfor %}"
LLAMA_DATE = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        (None, {}, "is given as messages, and the specialist's tokenizer has no chat template; give a prompt"),
        (
            shapes.CHATML,
            {"chat_template_kwargs": {"enable_thinkin": False}},
            "does not read 'enable_thinkin' .*enable_t",
        ),
        (READS_NOTHING, {"chat_template_kwargs": {"enable_thinking": False}}, "'enable_thinking' .it reads: none"),
        (READS_NOTHING, {"tools": [{"name": "add"}]}, "does not read tools; leave them out"),
        (shapes.CHATML, {"chat_template_kwargs": {"add_generation_prompt": False}}, "Salvage's own to set"),
        (shapes.CHATML, {"chat_template_kwargs": {"tokenize": False}}, "Salvage's own to set"),
        (
            shapes.CHATML,
            {"messages": [USER, {"role": "tool", "content": "42"}]},
            "chat template refuses the messages: no tool may speak; correct them",
        ),
        ("{{ messages[9].content }}", {}, "refuses the messages: "),
        ("{% if %}", {}, "refuses the messages: "),
    ],
)
def test_what_a_template_does_not_take_is_one_sentence_that_names_the_problem(
    tmp_path: Path, bodies: dict[str, Path], template: str | None, given: dict[str, Any], message: str
) -> None:
    speaker = speaking(tmp_path, bodies, template=template)
    with pytest.raises(SalvageError, match=f"^problem 'p1'.*{message}") as error:
        speaker.prompt(problem(**{"messages": [USER], **given}))
    assert "\n" not in str(error.value)


def test_a_template_that_asks_for_the_date_gives_the_same_prompt_on_every_day(
    tmp_path: Path, bodies: dict[str, Path]
) -> None:
    speaker = speaking(tmp_path, bodies, template=LLAMA_DATE + "{{ date_string }}: {{ messages[0].content }}")
    assert speaker.text(speaker.prompt(problem())) == "26 Jul 2024: 6*7?"
    own = problem(chat_template_kwargs={"date_string": "1 Jan 2025"})
    assert speaker.text(speaker.prompt(own)) == "1 Jan 2025: 6*7?"


def test_a_template_with_marks_for_training_is_read(tmp_path: Path, bodies: dict[str, Path]) -> None:
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ style }}"
    speaker = speaking(tmp_path, bodies, template=marked)
    assert speaker.text(speaker.prompt(problem(chat_template_kwargs={"style": "!"}))) == "6*7?!"


# ---------------------------------------------------------------- pairs


def both(tmp_path: Path, bodies: dict[str, Path], mine: Any, base: Any, rows: tuple[int, int] = (0, 0)) -> Speaker:
    folders = [
        put(tmp_path / name, bodies[str(shapes.LENGTH + more)], speaker)
        for name, speaker, more in zip(("mine", "base"), (mine, base), rows, strict=True)
    ]
    return Speaker(*folders)


@pytest.mark.parametrize("rows", [(1, 0), (0, 0), (1, 1)])
def test_case_22_a_pad_token_more_is_told_and_taken(
    tmp_path: Path, bodies: dict[str, Path], rows: tuple[int, int]
) -> None:
    mine, base = shapes.tokenizer(more=["[PAD]"]), shapes.tokenizer()
    with pytest.warns(UserWarning, match=rf"'\[PAD\]' \(id {shapes.LENGTH}\), which the ancestor does not know"):
        speaker = both(tmp_path, bodies, mine, base, rows)
    assert speaker.vocabulary == shapes.LENGTH + min(rows) and speaker.ends == [EOS]
    assert speaker.prompt({"prompt": "6*7?"})
    with pytest.raises(SalvageError, match=r"problem 'p': the prompt holds token '\[PAD\]' .*does not know; leave it"):
        speaker.prompt({"problem_id": "p", "prompt": "6*7?[PAD]"})


def test_case_22_a_special_token_renamed_at_its_id_is_told_and_taken(tmp_path: Path, bodies: dict[str, Path]) -> None:
    renamed = [*shapes.SPECIAL[:5], "<|tool|>"]
    with pytest.warns(UserWarning, match=r"'<\|tool\|>' \(id 5\), which the ancestor calls '<\|spare\|>'"):
        speaker = both(tmp_path, bodies, shapes.tokenizer(names=renamed), shapes.tokenizer())
    assert speaker.prompt({"prompt": "6*7?"})
    with pytest.raises(SalvageError, match=r"the prompt holds token '<\|tool\|>' \(id 5\), which the ancestor calls"):
        speaker.prompt({"problem_id": "p", "prompt": "6<|tool|>"})


def test_case_22_tokens_that_only_the_ancestor_has_are_nothing_to_tell(tmp_path: Path, bodies: dict[str, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert both(tmp_path, bodies, shapes.tokenizer(), shapes.tokenizer(more=["[PAD]"])).strange == {}


def test_case_22_an_ordinary_token_that_means_another_is_refused(tmp_path: Path, bodies: dict[str, Path]) -> None:
    mine, base = shapes.tokenizer(), shapes.tokenizer()
    told = json.loads(mine._tokenizer.to_str())
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    mine._tokenizer = type(mine._tokenizer).from_str(json.dumps(told))
    with pytest.raises(
        SalvageError,
        match=rf"different vocabularies, first at token 'b' \(id {vocabulary['b']}\), which the ancestor calls 'a'; "
        "give the model the specialist was trained from",
    ):
        both(tmp_path, bodies, mine, base)


def test_case_22_a_special_token_in_an_ordinary_one_s_place_is_refused(tmp_path: Path, bodies: dict[str, Path]) -> None:
    base = shapes.tokenizer()
    told = json.loads(base._tokenizer.to_str())
    told["model"]["vocab"]["q!"] = told["model"]["vocab"].pop("<|spare|>")
    told["added_tokens"] = [token for token in told["added_tokens"] if token["id"] != 5]
    base._tokenizer = type(base._tokenizer).from_str(json.dumps(told))
    with pytest.raises(SalvageError, match=r"first at token '<\|spare\|>' \(id 5\), which the ancestor calls 'q!'"):
        both(tmp_path, bodies, shapes.tokenizer(), base)


def test_case_22_an_end_that_the_ancestor_has_no_embedding_for_is_refused(
    tmp_path: Path, bodies: dict[str, Path]
) -> None:
    mine = shapes.tokenizer(more=["<|done|>"], ends="<|done|>")
    body = bodies[str(shapes.LENGTH + 1)]
    folder = put(tmp_path / "mine", body, mine, eos_token_id=shapes.LENGTH)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text((body / "config.json").read_text())
    shapes.rewrite(folder / "config.json", eos_token_id=shapes.LENGTH)
    base = put(tmp_path / "base", bodies[str(shapes.LENGTH)], shapes.tokenizer())
    with (
        pytest.warns(UserWarning, match="differ in tokens"),
        pytest.raises(
            SalvageError, match=r"ends what it says with token '<\|done\|>' .*no embedding; give an ancestor"
        ),
    ):
        Speaker(folder, base)


def test_what_is_sampled_keeps_to_the_ancestor_s_tokens_and_context(tmp_path: Path, bodies: dict[str, Path]) -> None:
    mine = put(tmp_path / "mine", bodies[str(shapes.LENGTH + 1)], shapes.tokenizer(more=["[PAD]"]))
    base = put(tmp_path / "base", bodies[str(shapes.LENGTH)], shapes.tokenizer())
    alone = Speaker(mine, None)
    assert alone.vocabulary == shapes.LENGTH + 1
    with pytest.warns(UserWarning, match="differ in tokens"):
        alone.heed(base)
    assert alone.vocabulary == shapes.LENGTH and not alone.has_ancestor
