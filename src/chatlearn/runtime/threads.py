"""Calls that overlap inside of one process: a pool of threads, and the driver's own thread for what is not thread-safe.

A call starts when the futures among its arguments are there and the call before it in its *order* (that of its replica)
has ended. Pooled calls run on the threads. All others run on the driver's thread, one after another in the order of
submission, whenever the driver waits for something; so modules that use global generators keep them to themselves.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chatlearn.errors import WorkerError
from chatlearn.runtime.futures import Pending, pending_in, resolved


class Task:
    """A call that has not ended."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], future: Pending, pooled: bool) -> None:
        self.function, self.args, self.future, self.pooled = function, args, future, pooled
        self.inputs: list[Pending] = []
        self.num_missing = 0


class Threads:
    """Schedules calls.

    Args:
        num: threads of the pool.
    """

    def __init__(self, num: int) -> None:
        self._pool = ThreadPoolExecutor(num, thread_name_prefix="chatlearn")
        self._driver = threading.get_ident()
        self._changed = threading.Condition()
        self._last: dict[Hashable, Pending] = {}
        self._inline: deque[Task] = deque()
        self._stopped = False

    def submit(self, order: Hashable, pooled: bool, function: Callable[..., Any], args: tuple[Any, ...]) -> Pending:
        """Has ``function(*args)`` run after its inputs and, unless ``order`` is ``None``, after the last call of that
        order; on the pool if ``pooled``.
        """
        task = Task(function, args, Pending(self), pooled)
        with self._changed:
            if self._stopped:
                raise WorkerError("The cluster was shut down.")
            task.inputs = list(pending_in(args))
            before = {id(future): future for future in [*task.inputs, *filter(None, [self._last.get(order)])]}
            missing = [future for future in before.values() if not future.done]
            task.num_missing = len(missing)
            for future in missing:
                future.waiting.append(task)
            if order is not None:
                self._last[order] = task.future
            if not pooled:
                self._inline.append(task)
            elif not missing:
                self._pool.submit(self._run, task)
        self._run_inline()
        return task.future

    def run_on_driver(self, function: Callable[[], Any]) -> Any:
        """Has the driver's thread run ``function`` next, and waits for it; callable from any thread."""
        if threading.get_ident() == self._driver:
            return function()
        task = Task(function, (), Pending(self), pooled=False)
        with self._changed:
            self._inline.appendleft(task)
            self._changed.notify_all()
        return task.future.result()

    def wait(self, futures: Sequence[Pending], num: int | None = None) -> None:
        """Waits until ``num`` of the futures (all if ``None``) are done, running inline calls meanwhile."""
        num = len(futures) if num is None else num
        while True:
            with self._changed:
                if sum(future.done for future in futures) >= num:
                    return
                if not self._may_run_inline():
                    self._changed.wait()
                    continue
            self._run_inline()

    def stop(self) -> None:
        """Drops what has not started and waits for what runs."""
        with self._changed:
            self._stopped = True
            self._inline.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._last.clear()

    def _may_run_inline(self) -> bool:
        on_driver = threading.get_ident() == self._driver
        return on_driver and bool(self._inline) and self._inline[0].num_missing == 0

    def _run_inline(self) -> None:
        while True:
            with self._changed:
                if not self._may_run_inline():
                    return
                task = self._inline.popleft()
            self._run(task)

    def _run(self, task: Task) -> None:
        future = task.future
        failed = next((each.error for each in task.inputs if each.error is not None), None)
        try:
            if failed is None:
                future.value = task.function(*map(resolved, task.args))
        except BaseException as error:
            failed = error  # whoever waits for the future gets it
            if not task.pooled and not isinstance(error, Exception):
                raise  # Ctrl-C or the debugger's quit, in the driver's thread
        finally:
            self._finish(task, failed)

    def _finish(self, task: Task, error: BaseException | None) -> None:
        task.args, task.inputs = (), []
        with self._changed:
            task.future.error, task.future.done = error, True
            for waiting in task.future.waiting:
                waiting.num_missing -= 1
                if waiting.num_missing == 0 and waiting.pooled and not self._stopped:
                    self._pool.submit(self._run, waiting)
            task.future.waiting = []
            self._changed.notify_all()
