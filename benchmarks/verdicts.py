"""How long 10,000 verdicts by `math` take, on one worker and on two: python benchmarks/verdicts.py [TEXTS]."""

import random
import sys
import time

import pandas as pd

from salvage.problems.judging import Judge

WRITTEN = [
    r"\frac{{{a}}}{{{b}}}",
    "{a}/{b}",
    r"\dfrac{{{a}}}{{{b}}} \text{{ cm}}",
    r"\sqrt{{{a}}}+{b}",
    "({a}, {b})",
    "{a}x+{b}",
]


def made(n: int) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Make n texts on a quarter as many problems, half of them right."""
    rng = random.Random(0)
    answers = [rng.choice(WRITTEN).format(a=rng.randint(2, 99), b=rng.randint(2, 99)) for _ in range(n // 4)]
    rows = [(f"p{i}", "t", "?", answer, "math", "{}") for i, answer in enumerate(answers)]
    table = pd.DataFrame(rows, columns=["problem_id", "task", "prompt", "answer", "verifier", "metadata"])
    at = [i % len(answers) for i in range(n)]
    texts = [rf"First {i} steps. So the answer is $\boxed{{{answers[k] if i % 2 else i}}}$." for i, k in enumerate(at)]
    return table, [f"p{k}" for k in at], texts


if __name__ == "__main__":
    problems, ids, texts = made(int(sys.argv[1]) if sys.argv[1:] else 10_000)
    for workers in (1, 2):
        with Judge(problems, workers=workers) as judge:
            begun = time.perf_counter()
            verdicts = judge.verify(ids, texts)
            seconds = time.perf_counter() - begun
        right, none = (sum(v.correct is value for v in verdicts) for value in (True, None))
        print(
            f"{workers} worker{'s' * (workers > 1)}: {seconds:.1f} s, {len(texts) / seconds:.0f} a second, "
            f"{right} right, {none} without a verdict",
            flush=True,
        )
