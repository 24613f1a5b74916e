"""Who is inside of a step at the same moment as who, and steps that wait for each other inside of their bodies."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

WAIT_SECONDS = 60.0
"""After so long a meeting that does not come about fails its steps."""

Visit = tuple[str, int]
"""(visitor, number of its visit from 0), such as ``("value[0]", 2)``."""


class Room:
    """Steps enter it when they begin and leave it when they end.

    Args:
        meetings: groups of visits; each waits inside of its step until all of its group are inside, which steps that
            run in turn never are.
        delays: makes each visit up to 3 ms longer.

    Attributes:
        together: pairs of visitors that were inside at the same moment.
        entered: visitors in the order in which they came.
        threads: idents of the threads that they came on.
    """

    def __init__(self, meetings: Iterable[set[Visit]] = (), delays: random.Random | None = None) -> None:
        self.together: set[frozenset[str]] = set()
        self.entered: list[str] = []
        self.threads: set[int] = set()
        self._delays = delays
        self._counts: Counter[str] = Counter()
        self._inside: list[str] = []
        self._lock = threading.Lock()
        self._meetings: dict[Visit, threading.Barrier] = {}
        for group in meetings:
            self._meetings |= dict.fromkeys(group, threading.Barrier(len(group), timeout=WAIT_SECONDS))

    def __deepcopy__(self, memo: object) -> Room:
        return self  # arguments of a module's constructor are copied per replica; the room is one

    @contextmanager
    def visit(self, visitor: str) -> Iterator[None]:
        """Around the body of a step of a visitor, such as ``policy[0]``."""
        with self._lock:
            number = self._counts[visitor]
            self._counts[visitor] += 1
            self.entered.append(visitor)
            self.threads.add(threading.get_ident())
            self.together |= {frozenset((visitor, other)) for other in self._inside}
            self._inside.append(visitor)
            delay = self._delays.random() * 0.003 if self._delays is not None else 0.0
        try:
            if (meeting := self._meetings.get((visitor, number))) is not None:
                meeting.wait()
            if delay:
                time.sleep(delay)
            yield
        finally:
            with self._lock:
                self._inside.remove(visitor)


class Watch:
    """The room that the models of the next program visit."""

    room = Room()
