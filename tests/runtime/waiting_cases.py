"""Programs in which steps on several threads wait for each other, run as ``python waiting_cases.py CASE``.

Each ends within a second; where nobody would ever go on, the stacks of all threads come out, and the exit status is 1.
What an engine ends with is printed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import sys
import tempfile
import threading
import time
from collections import defaultdict
from typing import Any

import chatlearn
from chatlearn import BaseModule, Engine, Environment, EvalEngine, step
from chatlearn.runtime.threads import Threads

LIMIT_SECONDS = 30.0
HERE: defaultdict[str, threading.Event] = defaultdict(threading.Event)
"""Places that steps have come to; they meet there."""


def meet(own: str, *others: str) -> None:
    """Says that this step is here, and waits until the others are at their places."""
    HERE[own].set()
    for other in others:
        assert HERE[other].wait(LIMIT_SECONDS), f"{own}: nobody came to {other}"


class Safe(BaseModule):
    thread_safe = True

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, self.name: [1] * len(data["prompt"])}

    eval_step = forward_step


class Unsafe(Safe):
    """What needs the driver's thread; it is never entered twice."""

    thread_safe = False
    inside = 0

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.alone(lambda: super(Unsafe, self).forward_step(data))

    eval_step = forward_step

    @step
    def other(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.alone(lambda: {"other": [1] * len(data["prompt"])})

    def alone(self, function: Any) -> Any:
        assert self.inside == 0, f"{self.name} is entered while a step of it is under way"
        assert threading.current_thread() is threading.main_thread()
        self.inside += 1
        try:
            return function()
        finally:
            self.inside -= 1


class Middle(Safe):
    """On the pool: comes to its place, and asks its client once the driver is inside of a step."""

    def forward_step(self, data: dict[str, Any], client: Any = None) -> dict[str, Any]:
        meet(self.name, "driver")
        time.sleep(0.05)  # so that most likely the driver waits already
        return {**data, **client.eval_step(data)}


class Outer(Unsafe):
    """On the driver: asks a module that is under way on the pool."""

    others: tuple[str, ...] = ("c",)

    def forward_step(self, data: dict[str, Any], client: Any = None) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            meet("driver", *self.others)
            return {**data, **client.eval_step(data)}

        return self.alone(ask)


class Outermost(Outer):
    others = ("a", "c")


class Asker(Safe):
    """On the pool: asks the module whose step the driver is in."""

    def forward_step(self, data: dict[str, Any], client: Any = None) -> dict[str, Any]:
        meet(self.name, "driver")
        return {**data, **client.other(data)}


def start(**sizes: Any) -> None:
    runtime = {"num_episode": 1, "sample_per_episode": 2, "generation_batch_size": 1, **sizes}
    folder = tempfile.mkdtemp()
    chatlearn.init({"runtime": {**runtime, "output_dir": folder}, "runtime_env": {"local_threads": 4}})


def learn(flow: Any) -> None:
    engine = Engine(Environment(flow)).set_dataset(["a", "b", "c"])
    engine.learn()
    engine.stop()


def driver_waits_for_the_pool() -> None:
    """x (driver) asks c, while c (pool) asks d, which needs the driver."""
    start()
    x, c, d = Outer("x"), Middle("c"), Unsafe("d")
    learn(lambda batch: (c.forward_step(batch, client=d), x.forward_step(batch, client=c)))


def driver_waits_for_two() -> None:
    """x (driver) asks c, while c (pool) asks e, and e (pool) asks d, which needs the driver."""
    start()
    x, c, e, d = Outermost("x"), Middle("c"), Middle("a"), Unsafe("d")
    learn(
        lambda batch: (
            e.forward_step(batch, client=d),
            c.forward_step(batch, client=e),
            x.forward_step(batch, client=c),
        )
    )


def others_ask_the_driver_meanwhile() -> None:
    """As the first; and a (pool) asks x, whose step the driver is in."""
    start()
    x, c, d, a = Outermost("x"), Middle("c"), Unsafe("d"), Asker("a")
    learn(
        lambda batch: (
            a.forward_step(batch, client=x),
            c.forward_step(batch, client=d),
            x.forward_step(batch, client=c),
        )
    )


class Raising(Safe):
    """On the driver: raises once the other step is where it should be. Nobody waits for the other before that."""

    thread_safe = False
    error: BaseException = ValueError("bad reward")

    @step(filters=True)
    def keep(self, data: dict[str, Any]) -> dict[str, Any]:
        assert HERE["a"].wait(LIMIT_SECONDS)
        time.sleep(0.05)
        HERE["raised"].set()
        raise self.error

    def eval_step(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.keep(data)


class Interrupted(Raising):
    error = KeyboardInterrupt()


class Early(Safe):
    """On the pool: asks the driver before a step there has raised."""

    def forward_step(self, data: dict[str, Any], client: Any = None) -> dict[str, Any]:
        HERE["a"].set()
        return {**data, **client.forward_step(data)}


class Late(Safe):
    """On the pool: asks the driver after a step there has raised."""

    def forward_step(self, data: dict[str, Any], client: Any = None) -> dict[str, Any]:
        meet("a", "raised")
        time.sleep(0.05)
        return {**data, **client.forward_step(data)}


def driver_fails(asking: type[Safe], raising: type[Raising]) -> None:
    start()
    a, d, x = asking("a"), Unsafe("d"), raising("x")
    learn(lambda batch: (a.forward_step(batch, client=d), x.keep(batch)))


def evaluation_fails() -> None:
    """Its engine is never stopped; the process ends all the same."""
    start()
    a, d, x = Late("a"), Unsafe("d"), Raising("x")

    def flow(batch: Any) -> Any:
        asked = a.forward_step(batch, client=d)
        return x.eval_step(batch), asked

    EvalEngine(flow).set_dataset(["a", "b"]).evaluate()


def futures_outlive_the_threads() -> None:
    """Whoever waits for a call that was dropped hears of it."""
    threads, begun, gate = Threads(1), threading.Event(), threading.Event()
    turn = threads.turn()

    def first() -> Any:
        begun.set()
        assert gate.wait(LIMIT_SECONDS)
        return "first"

    running = threads.submit(("a",), True, first, ())
    after = [threads.submit(("a",), True, str, (i,)) for i in range(3)]
    queued = threads.submit((), True, str, ("queued",))
    inline = [threads.submit((), False, str, (running,)), threads.submit((), False, str, (after[2],), ahead=True)]
    begun.wait(LIMIT_SECONDS)
    threading.Timer(0.05, gate.set).start()
    threads.stop()
    print(running.result())
    for future in [*after, queued, *inline]:
        with contextlib.suppress(chatlearn.WorkerError):
            print("came out:", future.result())
    for refused in (lambda: threads.submit((), True, str, ()), lambda: threads.take(turn)):
        try:
            print("came out:", refused())
        except chatlearn.WorkerError as error:
            print(error)


CASES = {
    "driver waits for the pool": driver_waits_for_the_pool,
    "driver waits for two": driver_waits_for_two,
    "others ask the driver meanwhile": others_ask_the_driver_meanwhile,
    "a step fails before": lambda: driver_fails(Early, Raising),
    "a step fails after": lambda: driver_fails(Late, Raising),
    "interrupted before": lambda: driver_fails(Early, Interrupted),
    "interrupted after": lambda: driver_fails(Late, Interrupted),
    "futures outlive the threads": futures_outlive_the_threads,
    "evaluation fails": evaluation_fails,
}


def main(case: str) -> None:
    """Runs one case and prints what comes of it."""
    HERE.clear()
    try:
        with contextlib.redirect_stdout(io.StringIO() if "futures" not in case else sys.stdout):
            CASES[case]()
    except BaseException as error:
        print(f"{case}: {type(error).__name__}", str(error).splitlines()[:1], flush=True)
    else:
        print(f"{case}: went through", flush=True)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    for name in sys.argv[1:] or CASES:
        main(name)
