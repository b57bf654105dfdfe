"""Text that is shown as it is: what users and models wrote is no markup, no emoji code and no terminal command."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 180  # columns where the output is no terminal
# C0 and C1 controls but tab and newline, each as a picture of it: an escape would colour the terminal, or worse
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
CONTROLS |= dict.fromkeys(range(128, 160), 0xFFFD)


def plain(text: str, style: str = "") -> Text:
    """Return text as a terminal is to show it: control characters as pictures, half a surrogate pair as `?`."""
    return Text(text.encode("utf-8", "replace").decode("utf-8").translate(CONTROLS), style=style)


class PlainTable(Table):
    """A table whose title, heads and cells are shown as they are: `sft[lora]|gsm8k` stays."""

    def __init__(self, *heads: str, title: str = "", caption: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.title = plain(title, "table.title") if title else None
        self.say(caption)
        for head in heads:
            self.add_column(head)

    def say(self, caption: str) -> None:
        """Give the table a caption, shown as it is."""
        self.caption = plain(caption, "table.caption") if caption else None

    def add_column(self, header: Any = "", *args: Any, **kwargs: Any) -> None:
        """Add a column, its head as it is."""
        super().add_column(_shown(header), *args, **kwargs)

    def add_row(self, *cells: Any, **kwargs: Any) -> None:
        """Add a row, its cells as they are."""
        super().add_row(*map(_shown, cells), **kwargs)


def _shown(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def console(width: int = WIDTH) -> Console:
    """Return a console without markup: the terminal's width, or the given one where the output is none."""
    made = Console(markup=False, emoji=False, highlight=False)
    return made if made.is_terminal else Console(width=width, markup=False, emoji=False, highlight=False)
