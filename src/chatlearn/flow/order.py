"""Order without data: steps that start when others are complete."""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

from chatlearn.errors import FlowError
from chatlearn.flow.clients import is_module
from chatlearn.flow.graph import BATCH
from chatlearn.flow.recorder import ACTIVE, Recorder
from chatlearn.flow.symbols import Poisoned, Symbol, caller_place, find_stand_in


class after:  # noqa: N801 - used like a statement, as contextlib's are
    """Steps called inside ``with after(x, y):`` start after the steps that make ``x`` and ``y`` have ended.

    The values are not read. Blocks inside of each other add up. When a flow is called with real data, outside of a
    trace, the block does nothing, since steps then run one after another anyway.

    Example::

        def trainer_flow(batch):
            updated = value_trainer.train_step(batch)
            with chatlearn.after(updated):
                policy_trainer.train_step(batch)

    Args:
        values: outputs of steps (a ``train_step``'s too), or lists or tuples of them; none mean no condition.

    Raises:
        FlowError: in a trace, a value is something else, or belongs to another flow.
    """

    def __init__(self, *values: Any) -> None:
        recorder = ACTIVE.get()
        flat = [part for value in values for part in _parts(value)]
        if recorder is None:
            recorder = next((value.chatlearn_recorder for value in flat if isinstance(value, Symbol)), None)
        self._recorder: Recorder | None = recorder
        self._indices: tuple[int, ...] = ()
        if recorder is not None:
            self._indices = tuple(_index(value, recorder) for value in flat)
            recorder.idle_waits[self] = caller_place()

    def __enter__(self) -> None:
        if self._recorder is not None:
            self._recorder.idle_waits.pop(self, None)
            self._recorder.waits.append(self._indices)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            self._recorder.waits.pop()


ControlDependencies = after
"""The name that the interface has had before."""


def _parts(value: object) -> list[object]:
    return list(cast("list[object]", value)) if isinstance(value, (list, tuple)) else [value]


def _index(value: object, recorder: Recorder) -> int:
    where = f"{caller_place()}: after(…)"
    found = find_stand_in(value)
    if isinstance(found, Poisoned):
        raise FlowError(f"{where} is given {found.chatlearn_read_at}. It waits for whole steps: name their outputs.")
    if not isinstance(value, Symbol):
        what = f"the module {getattr(value, 'name', '?')!r}" if is_module(value) else f"{value!r}"
        raise FlowError(
            f"{where} is given {what}; it waits for outputs of steps, alone or in a list or tuple, as in "
            f"`with chatlearn.after(policy_out):`."
        )
    if value.chatlearn_recorder is not recorder or recorder.closed:
        raise FlowError(
            f"{where} names {value.chatlearn_origin} of another flow; a value lives in the flow that made it."
        )
    if value.chatlearn_index == BATCH:
        raise FlowError(f"{where} names the batch, which is there before any step. Name outputs of steps.")
    return value.chatlearn_index
