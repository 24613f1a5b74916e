"""What a person sees while a run goes on: a live line on a terminal, plain lines elsewhere and under a debugger."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from chatlearn.observe.headline import headline

_REDRAW_SECONDS = 0.1


class Progress:
    """Shows episodes as they complete.

    The live display has no thread of its own and steps aside for a debugger: under one (``python -m pdb``) plain lines
    are printed, and ``breakpoint()`` ends the display first.

    Args:
        title: of the run.
        total: number of episodes.
        done: episodes that were complete before.
        log_interval: episodes between two lines where there is no live display. The live display is drawn anew at
            most ten times a second, whatever the episodes take.
    """

    def __init__(self, title: str, total: int, done: int, log_interval: int) -> None:
        self._title, self._total, self._first, self._log_interval = title, total, done, log_interval
        self._started = time.monotonic()
        self._shown: dict[str, float] = {}
        self._live: Any = None
        self._drawn = -math.inf
        self._hook: Callable[..., Any] | None = None
        if sys.stdout.isatty() and not _debugging():
            self._start_live()

    def update(self, episode: int, row: Mapping[str, Any]) -> None:
        """Shows the row of a complete episode (counted from 1)."""
        self._shown.update(headline(row))
        matters = episode == self._total or any(key.startswith("eval/") for key in row)
        if self._live is not None:
            self._draw(episode, row, matters)
        elif episode % self._log_interval == 0 or matters:
            print(self._line(episode, row), flush=True)

    def note(self, text: str) -> None:
        """Shows a line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._hook is not None:
            sys.breakpointhook = self._hook
            self._hook = None

    def _start_live(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False, redirect_stdout=True, redirect_stderr=True)
        self._live.start()
        self._hook = sys.breakpointhook
        sys.breakpointhook = _StepAside(self._ended)

    def _draw(self, episode: int, row: Mapping[str, Any], matters: bool) -> None:
        """Drawing takes about a millisecond, as much as an episode of a toy."""
        now = time.monotonic()
        if matters or now - self._drawn >= _REDRAW_SECONDS:
            self._live.update(self._panel(episode, row), refresh=True)
            self._drawn = now

    def _ended(self) -> Callable[..., Any]:
        """Ends the display; returns the hook that was there before."""
        hook = self._hook
        self.close()
        return hook or sys.breakpointhook

    def _figures(self, row: Mapping[str, Any]) -> dict[str, str]:
        figures = {name: f"{value:.3f}" for name, value in self._shown.items()}
        if "time/samples_per_second" in row:
            figures["samples/s"] = f"{row['time/samples_per_second']:.0f}"
        return figures

    def _left(self, episode: int) -> str:
        seconds = (time.monotonic() - self._started) / max(episode - self._first, 1) * (self._total - episode)
        return f"{int(seconds // 60)}:{int(seconds % 60):02d} left"

    def _line(self, episode: int, row: Mapping[str, Any]) -> str:
        figures = "  ".join(f"{name} {value}" for name, value in self._figures(row).items())
        return f"{self._title}  episode {episode}/{self._total}  {figures}  {self._left(episode)}"

    def _panel(self, episode: int, row: Mapping[str, Any]) -> Any:
        """Two lines: how far the run is, and its figures."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        course = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self._total, completed=episode, width=30)
        course.add_row(Text(self._title, "bold"), bar, f"{episode}/{self._total}", self._left(episode))
        figures = [part for name, value in self._figures(row).items() for part in ((f"{name} ", "dim"), f"{value}  ")]
        return Group(course, Text.assemble("  ", *figures))


class _StepAside:
    """A breakpoint hook that ends the display and hands over to the hook from before.

    ``__call__`` is a property, so no frame of ours stands between ``breakpoint()`` and the debugger, which stops in the
    frame of its caller.
    """

    def __init__(self, ended: Callable[[], Callable[..., Any]]) -> None:
        self._ended = ended

    @property
    def __call__(self) -> Callable[..., Any]:
        return self._ended()


def _debugging() -> bool:
    """Whether a debugger follows the program: by a trace function, or (from Python 3.12 on) by ``sys.monitoring``."""
    monitoring = getattr(sys, "monitoring", None)
    return sys.gettrace() is not None or bool(monitoring and monitoring.get_tool(monitoring.DEBUGGER_ID))
