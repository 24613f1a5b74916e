"""Modules that go wrong where they are told to."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from chaos_modules import Learner, Reward, Rollout, network

from chatlearn import BaseModule


def _raise() -> None:
    raise ValueError("a fault on purpose")


def _exit() -> None:
    os._exit(3)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _abort() -> None:
    os.abort()


def _memory_of_torch() -> None:
    torch.ones(1 << 31)


def _memory_of_python() -> None:
    bytearray(1 << 33)


def _sleep() -> None:
    time.sleep(1000)


def _loop() -> None:
    while True:
        pass


def _deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


HOW: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "exit": _exit,
    "kill": _kill,
    "abort": _abort,
    "memory of torch": _memory_of_torch,
    "memory of python": _memory_of_python,
    "sleep": _sleep,
    "loop": _loop,
    "deadlock": _deadlock,
    "stop": _stop,
}
"""Name -> what goes wrong."""


class Faulty(BaseModule):
    """Does what ``models.<name>.args.fault`` says.

    Its keys: ``how`` (see :data:`HOW`), ``where`` (``setup``, ``forward_step``, ``train_step``, ``sync`` or ``save``),
    ``replica``, ``call`` (number of the call there, from 0) and ``moment`` (a file that the time goes to).
    """

    def reach(self, where: str) -> None:
        """Something of the module runs."""
        fault = self.model_args.get("fault", {})
        if fault.get("where") != where or fault["replica"] != self.replica_id:
            return
        number = self.__dict__["reached"] = self.__dict__.get("reached", -1) + 1
        if number == fault["call"]:
            time.sleep(0.2)  # the end of the call before is on its way to the driver
            Path(fault["moment"]).write_text(str(time.time()))
            HOW[fault["how"]]()

    def prepare(self) -> None:
        """``setup``, beside what the module itself does there."""
        slow = self.model_args.get("fault", {}).get("seconds")
        if slow:
            self.__dict__["seconds"] = slow
        if "memory" in self.model_args.get("fault", {}).get("how", ""):
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            used = pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
        self.reach("setup")

    def dawdle(self) -> None:
        """Takes its time for the first two steps, where it was told to."""
        number = self.__dict__["dawdled"] = self.__dict__.get("dawdled", 0) + 1
        if number <= 2:
            time.sleep(self.__dict__.get("seconds", 0.0))


class FaultyModel(torch.nn.Module):
    """The network; a sync that asks for its weights reaches the fault of ``sync``."""

    def __init__(self, owner: Faulty) -> None:
        super().__init__()
        self.layers = network()
        self.__dict__["owner"] = owner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if any("/chatlearn/sync/" in frame.f_code.co_filename for frame, _ in traceback.walk_stack(None)):
            self.__dict__["owner"].reach("sync")
        return super().state_dict(*args, **kwargs)


class FaultyRollout(Rollout, Faulty):
    def setup(self) -> None:
        self.prepare()
        self.model = FaultyModel(self)

    def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
        self.reach("forward_step")
        self.dawdle()
        return super().forward_step(data, iteration)


class FaultyReward(Reward, Faulty):
    def setup(self) -> None:
        self.prepare()

    def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
        self.reach("forward_step")
        self.dawdle()
        return super().forward_step(data)


class FaultyLearner(Learner, Faulty):
    def setup(self) -> None:
        self.prepare()
        self.model = FaultyModel(self)
        self.optimizer = torch.optim.Adam(self.model.layers.parameters(), lr=0.01)

    def train_step(self, data: list[dict[str, Any]], train_info: dict[str, Any]) -> None:
        self.reach("train_step")
        self.dawdle()
        super().train_step(data, train_info)

    def save_checkpoint(self, iteration: int) -> None:
        self.reach("save")
