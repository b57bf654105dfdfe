"""Marks of thoughts that are special tokens stay in a completion's text: a verifier could not tell a thought else."""

import shutil

from transformers import AutoTokenizer

from salvage.engine.speaker import Speaker
from salvage.problems.thinking import answer_part


def test_case_14_special_tokens_that_mark_a_thought_are_kept_in_the_text(pair, tmp_path):
    folder = tmp_path / "thinking"
    shutil.copytree(pair[0], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|other|>"]})
    tokenizer.save_pretrained(folder)
    speaker = Speaker(folder, None)
    text = speaker.text(tokenizer.encode("[THINK]1+2[/THINK]#3<|other|>", add_special_tokens=False))
    assert answer_part(text).strip() == "#3"
    assert answer_part(speaker.text(tokenizer.encode("[THINK]#3", add_special_tokens=False))) is None
    plain = tokenizer.encode("1+2#3<|other|>", add_special_tokens=False)
    assert speaker.text(plain) == Speaker(pair[0], None).text(plain[:-1])
