"""Calls that overlap inside of one process: a pool of threads, and the driver's own thread for what is not thread-safe.

A call starts when the futures among its arguments are there and the call before it in each of its *orders* (that of its
replica, and of each stateful module that it may ask) has ended. Pooled calls run on the threads. All others run on the
driver's thread, one after another in the order of submission (those of training ahead of all others), whenever the
driver waits for something; so modules that use global generators keep them to themselves.

A step may ask other replicas. Each replica has a *turn*, which one call at a time holds. While the driver's thread,
inside of a step, waits for a turn, it runs what the holder of that turn asks it for, directly or through others, and
nothing else: these modules stand below all whose steps the driver is in (circles of clients are refused), so none is
entered twice, and nobody waits for ever.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from chatlearn.errors import WorkerError
from chatlearn.runtime.futures import Pending, pending_in, resolved


class Turn:
    """The right to use a replica, which one call at a time has; a context manager, not re-entrant."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self.taken = False

    def __enter__(self) -> None:
        self._threads.take(self)

    def __exit__(self, *exception: object) -> None:
        self._threads.give_back(self)


class Task:
    """A call that has not ended; ``asker`` is the turn of the replica whose step asks for it."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        future: Pending,
        pooled: bool = False,
        asker: Turn | None = None,
    ) -> None:
        self.function, self.args, self.future, self.pooled, self.asker = function, args, future, pooled, asker
        self.inputs: list[Pending] = []
        self.num_missing = 0


_Ready: TypeAlias = "SimpleQueue[tuple[Callable[[Task], None], Task] | None]"
"""Calls for the pool, each with what runs it; ``None`` ends a thread."""


class Threads:
    """Schedules calls. The thread that makes it is the driver's.

    Args:
        num: threads of the pool.
    """

    def __init__(self, num: int) -> None:
        self._driver = threading.get_ident()
        self._changed = threading.Condition()
        self._last: dict[Hashable, Pending] = {}
        self._ahead: deque[Task] = deque()
        self._inline: deque[Task] = deque()
        self._questions: deque[Task] = deque()
        self._asks: list[tuple[Turn, Turn]] = []
        self._stopped = False
        self._ready: _Ready = SimpleQueue()
        # daemons, since Python joins others before it lets anybody stop them, and a step may wait for the driver
        self._pool = [
            threading.Thread(target=_work, args=(self._ready,), name=f"chatlearn_{i}", daemon=True) for i in range(num)
        ]
        for thread in self._pool:
            thread.start()
        self._forgotten = weakref.finalize(self, _end_threads, self._ready, num)
        self._forgotten.atexit = False
        self._at_exit = partial(_stop, weakref.ref(self))
        atexit.register(self._at_exit)

    def turn(self) -> Turn:
        """The turn of one more replica."""
        return Turn(self)

    def submit(
        self,
        orders: tuple[Hashable, ...],
        pooled: bool,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        ahead: bool = False,
    ) -> Pending:
        """Has ``function(*args)`` run after its inputs and after the last call of each of the ``orders``; on the pool
        if ``pooled``, else on the driver's thread, ``ahead`` of those that are not.
        """
        task = Task(function, args, Pending(self), pooled)
        with self._changed:
            if self._stopped:
                raise _shut_down()
            task.inputs = list(pending_in(args))
            previous = [self._last[order] for order in orders if order in self._last]
            before = {id(future): future for future in [*task.inputs, *previous]}
            missing = [future for future in before.values() if not future.done]
            task.num_missing = len(missing)
            for future in missing:
                future.waiting.append(task)
            for order in orders:
                self._last[order] = task.future
            if not pooled:
                (self._ahead if ahead else self._inline).append(task)
            elif not missing:
                self._ready.put((self._run, task))
        self._run_inline()
        return task.future

    def run_on_driver(self, function: Callable[[], Any], asker: Turn) -> Any:
        """Has the driver's thread run ``function`` next, and waits for it; callable from any thread.

        Args:
            function: to run.
            asker: turn of the replica whose step asks for it.

        Raises:
            WorkerError: the cluster was shut down, before or meanwhile.
        """
        if threading.get_ident() == self._driver:
            return function()
        task = Task(function, (), Pending(self), asker=asker)
        with self._changed:
            if self._stopped:
                raise _shut_down()
            self._questions.append(task)
            self._changed.notify_all()
        return task.future.result()

    @contextmanager
    def asking(self, asker: Turn, asked: Turn) -> Generator[None]:
        """While a step of the replica ``asker`` has asked the replica ``asked`` and waits for the answer."""
        ask = asker, asked
        with self._changed:
            self._asks.append(ask)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._asks.remove(ask)

    def take(self, turn: Turn) -> None:
        """Waits for a turn and takes it.

        Raises:
            WorkerError: the cluster was shut down.
        """
        while True:
            with self._changed:
                if self._stopped:
                    raise _shut_down()
                if not turn.taken:
                    turn.taken = True
                    return
                if (task := self._question_below(turn)) is None:
                    self._changed.wait()
                    continue
            self._run(task)

    def give_back(self, turn: Turn) -> None:
        """Ends a turn."""
        with self._changed:
            turn.taken = False
            self._changed.notify_all()

    def wait(self, futures: Sequence[Pending], num: int | None = None) -> None:
        """Waits until ``num`` of the futures (all if ``None``) are done, running inline calls meanwhile, but none more
        once they are done.
        """
        num = len(futures) if num is None else num
        while True:
            with self._changed:
                if sum(future.done for future in futures) >= num:
                    return
                if (task := self._next_inline()) is None:
                    self._changed.wait()
                    continue
            self._run(task)

    def stop(self) -> None:
        """Drops what has not started, which then has failed, and waits for what runs; questions to the driver, which
        nobody would answer any more, fail.
        """
        with self._changed:
            self._stopped = True
            queues = self._questions, self._ahead, self._inline
            dropped = [*chain(*queues), *_drained(self._ready)]
            for queue in queues:
                queue.clear()
            self._last.clear()
        for task in dropped:
            self._finish(task, _shut_down())
        self._forgotten()
        for thread in self._pool:
            thread.join()
        atexit.unregister(self._at_exit)

    def _next_inline(self) -> Task | None:
        """Takes what the driver's thread has to run next out of its queue, if this is the driver's thread."""
        if threading.get_ident() != self._driver:
            return None
        queues = (self._questions, self._ahead, self._inline)
        return next((queue.popleft() for queue in queues if queue and queue[0].num_missing == 0), None)

    def _question_below(self, turn: Turn) -> Task | None:
        """Takes a question out of the queue that has to be answered before ``turn`` ends, if this is the driver's
        thread.
        """
        if threading.get_ident() != self._driver or not self._questions:
            return None
        below = [turn]  # and, as it grows, the turns that their holders wait for
        for above in below:
            below += [asked for asker, asked in self._asks if asker is above and asked not in below]
        task = next((task for task in self._questions if task.asker in below), None)
        if task is not None:
            self._questions.remove(task)
        return task

    def _run_inline(self) -> None:
        while True:
            with self._changed:
                if (task := self._next_inline()) is None:
                    return
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
        with self._changed:
            ended = deque([(task, error)])
            while ended:
                task, error = ended.popleft()
                task.args, task.inputs = (), []
                task.future.error, task.future.done = error, True
                waiting, task.future.waiting = task.future.waiting, []
                for other in waiting:
                    other.num_missing -= 1
                    if other.num_missing == 0 and other.pooled:
                        if self._stopped:
                            ended.append((other, _shut_down()))
                        else:
                            self._ready.put((self._run, other))
            self._changed.notify_all()


def _shut_down() -> WorkerError:
    return WorkerError("The cluster was shut down.")


def _work(ready: _Ready) -> None:
    """What a thread of the pool does."""
    while (item := ready.get()) is not None:
        run, task = item
        run(task)
        del run, task, item  # so that nothing is held while it waits


def _drained(ready: _Ready) -> list[Task]:
    tasks: list[Task] = []
    while True:
        try:
            item = ready.get_nowait()
        except Empty:
            return tasks
        if item is not None:
            tasks.append(item[1])


def _end_threads(ready: _Ready, num: int) -> None:
    for _ in range(num):
        ready.put(None)


def _stop(threads: weakref.ref[Threads]) -> None:
    """Ends the threads before the interpreter does, in the middle of whatever they are in."""
    if (alive := threads()) is not None:
        alive.stop()
