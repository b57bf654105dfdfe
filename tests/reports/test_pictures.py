"""The axes of the pictures: nothing is drawn as nothing, however closely one would have to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures import arm_rows, budget_rows
from salvage.reports import pictures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures instead of files."""
    kept: list[Any] = []

    def keep(plt: Any, figure: Any, path: Path) -> None:
        pictures._plain(figure)
        figure.canvas.draw()
        kept.append(figure)
        plt.close(figure)

    monkeypatch.setattr(pictures, "save", keep)
    return kept


def told(figure: Any) -> list[str]:
    """Return what every tick says, and what stands apart from the ticks (a power of ten, an offset)."""
    axes = [part for one in figure.axes for part in (one.xaxis, one.yaxis)]
    return [label.get_text() for axis in axes for label in (*axis.get_ticklabels(), axis.get_offset_text())]


@pytest.mark.parametrize("gain", [0.0, 1e-6, -1e-8])
def test_no_gain_is_drawn_as_zero(drawn: list[Any], gain: float) -> None:
    pictures.arm_curves(arm_rows(gain), Path("arms.png"))
    pictures.budget_curves(budget_rows(gain), Path("budgets.png"))
    arms, budgets = drawn
    for figure in (arms, budgets):
        below = figure.axes[len(figure.axes) // 2 :]
        for axis in below:
            low, high = axis.get_ylim()
            assert low <= -pictures.LEAST_GAIN and high >= pictures.LEAST_GAIN
        assert not [text for text in told(figure) if "e-" in text or "1e" in text or text[:2] == "+1"]
    points = [y for line in budgets.axes[-1].lines for y in np.asarray(line.get_ydata(), float)]
    assert set(np.abs(points)) <= {0.0}


def test_a_gain_is_drawn_where_it_lies(drawn: list[Any]) -> None:
    pictures.budget_curves(budget_rows(0.05), Path("budgets.png"))
    lines = [np.asarray(line.get_ydata(), float) for line in drawn[0].axes[-1].lines]
    assert any(np.allclose(line, 5.0) for line in lines)


def test_arms_are_drawn_for_as_many_tokens_and_a_point_without_them_is_left_out(drawn: list[Any]) -> None:
    rows = arm_rows(0.05)
    for row in rows:
        if row["arm"] == "portfolio":
            row["over_retry"] = 0.5  # far from what is to be drawn
    unknown = next(row for row in rows if (row["cells"], row["arm"], row["budget"]) == ("*-sft-*", "portfolio", 16))
    del unknown["same_tokens"]
    pictures.arm_curves(rows, Path("arms.png"))
    below = drawn[0].axes[2:]
    points = [np.asarray(bars.lines[0].get_ydata(), float) for axis in below for bars in axis.containers]
    assert [len(some) for some in points] == [3, 2] and np.allclose(np.concatenate(points), 5.0)
    assert "for as many tokens" in below[0].get_ylabel()


def test_equal_shares_do_not_make_an_axis_of_nothing(drawn: list[Any]) -> None:
    pictures.arm_curves(arm_rows(0.0, solved=0.5, step=1e-7), Path("arms.png"))
    above = drawn[0].axes[0]
    low, high = above.get_ylim()
    assert high - low >= pictures.LEAST_SHARE - 1e-9
