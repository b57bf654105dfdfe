"""A page of what a run has found before it is at its end: how far it is, what fails, and what has helped so far."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from salvage.method.features import rollout_features
from salvage.method.profiles import made_by, make_profiles, regimes
from salvage.reports import pictures
from salvage.tables.files import write_text
from salvage.tables.vocabulary import FEATURES, OPERATORS

EXAMPLES = 3  # failed rollouts that are shown
LONGEST = 1500  # characters of a text


@dataclass(frozen=True)
class SoFar:
    """One cell's tables as far as they go; None where there is nothing yet."""

    name: str
    problems: pd.DataFrame | None
    rollouts: pd.DataFrame | None
    signals: pd.DataFrame | None
    attempts: pd.DataFrame | None
    anchor: str
    continuation: str
    window: int
    unverified: int = 0  # rollouts without a verdict, which are left out

    @property
    def failed(self) -> pd.DataFrame:
        """The failed rollouts."""
        assert self.rollouts is not None
        return self.rollouts[~self.rollouts["correct"].astype(bool)]

    def steps(self) -> list[tuple[str, int, int | None]]:
        """List what is done of each step, and of how much where that is known."""
        sampled = 0 if self.rollouts is None else self.rollouts["problem_id"].nunique()
        steps = [("problems sampled", sampled, None if self.problems is None else len(self.problems))]
        if self.rollouts is not None:
            whole = sampled == steps[0][2]  # before that, more will fail
            scored = 0 if self.signals is None else len(self.signals)
            tried = 0 if self.attempts is None else self.attempts["problem_id"].nunique()
            failures = self.failed["problem_id"].nunique()
            steps += [("failed rollouts scored", scored, len(self.failed) if whole else None)]
            steps += [("failures tried again", tried, failures if whole else None)]
        return steps

    def progress(self) -> str:
        """Say how far the cell is, in one line."""
        return f"{self.name}: " + ", ".join(f"{_of(done, whole)} {what}" for what, done, whole in self.steps())

    def failures(self) -> str:
        """Say what failed, in one sentence."""
        if self.rollouts is None:
            return "No shard of rollouts is finished yet."
        n, asked = self.failed["problem_id"].nunique(), self.rollouts["problem_id"].nunique()
        share = 100 * float(self.rollouts["correct"].mean())
        lost = f" Without a verdict: {self.unverified:,}." if self.unverified else ""
        return (
            f"{n:,} of {asked:,} problems were failed at least once; {share:.0f}% of {len(self.rollouts):,} "
            f"rollouts are right, and they took {self.rollouts['n_tokens'].median():.0f} tokens (the median).{lost}"
        )

    def operators(self) -> list[tuple[str, str, str]]:
        """List what one attempt of each operator has rescued so far: name, share and failures."""
        if self.attempts is None:
            return []
        mine = made_by(self.attempts, self.anchor, self.continuation)
        each = mine.groupby(["operator", "problem_id"], observed=True)["correct"].mean()
        means = each.groupby("operator", observed=True).agg(["mean", "size"])
        return [(o, f"{100 * means['mean'][o]:.1f}", f"{means['size'][o]:,}") for o in OPERATORS if o in means.index]

    def kinds(self) -> list[tuple[str, int]]:
        """Count the failures of each regime among those that were tried under every operator."""
        if self.attempts is None or self.signals is None:
            return []
        scored = rollout_features(self.signals, self.window)
        tried = set(self.attempts["problem_id"])
        scored = scored[scored["problem_id"].isin(tried)]
        made = make_profiles(scored, self.attempts, anchor=self.anchor, continuation=self.continuation)
        counts = pd.Series(regimes(made)).value_counts()
        return [(str(name), int(n)) for name, n in counts.items()]

    def features(self) -> list[tuple[str, str]]:
        """List the features of the failed rollouts that are scored, by their median and their quarters."""
        if self.signals is None:
            return []
        scored = rollout_features(self.signals, self.window)
        quarters = {name: np.percentile(scored[name], (25, 50, 75)) for name in FEATURES}
        return [(name, f"{q[1]:.3g} [{q[0]:.3g}, {q[2]:.3g}]") for name, q in quarters.items()]

    def examples(self) -> list[dict[str, str]]:
        """Return a few failed rollouts, each of a problem of its own, the most often failed first."""
        if self.rollouts is None or self.problems is None:
            return []
        about = self.problems.set_index("problem_id")
        often = self.failed.groupby("problem_id", sort=False).size().sort_values(ascending=False, kind="stable")
        texts = self.failed.drop_duplicates("problem_id").set_index("problem_id")["text"]
        asked = self.rollouts.groupby("problem_id", sort=False).size()
        known = [str(p) for p in often.index if p in about.index][:EXAMPLES]
        return [
            {
                "problem": p,
                "times": f"{often[p]} of {asked[p]}",
                "prompt": str(about["prompt"][p]),
                "answer": str(about["answer"][p]),
                "text": str(texts[p])[-LONGEST:],
            }
            for p in known
        ]


def write(path: Path, cells: list[SoFar]) -> None:
    """Write the page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    source = resources.files("salvage.reports").joinpath("so_far.html.j2").read_text(encoding="utf-8")
    html = environment.from_string(source).render(cells=cells, drawn=_drawn, of=_of)
    write_text(path, html.encode("utf-8", "replace").decode("utf-8"))


def _of(done: int, whole: int | None) -> str:
    return f"{done:,}" if whole is None else f"{done:,} of {whole:,}"


def _drawn(cell: SoFar) -> Markup:
    """Return a picture of how often problems were failed, as SVG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rollouts: Any = cell.rollouts
    wrong = rollouts.assign(wrong=~rollouts["correct"].astype(bool)).groupby("problem_id")["wrong"].agg(["sum", "size"])
    most = int(wrong["size"].max())
    counts = np.bincount(wrong["sum"].astype(int), minlength=most + 1)
    figure = Figure(figsize=(5.5, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(most + 1), counts, color=pictures.COLOURS["steerable-hard"])
    axes.set(xlabel=f"wrong rollouts of {most}", ylabel="problems")
    for axis, most_ticks in ((axes.xaxis, 16), (axes.yaxis, 5)):
        axis.set_major_locator(MaxNLocator(most_ticks, integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return Markup("<svg" + text.getvalue().split("<svg", 1)[1])  # noqa: S704 (matplotlib's, of numbers alone)
