"""From a flow function to its graph, by running it once on stand-ins.

Nothing is read from source code and nothing is patched: the stand-in for the raw batch knows the recorder that it
belongs to, and every step that is called with it adds a node there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

from chatlearn.errors import FlowError
from chatlearn.flow.arguments import Merged, bind
from chatlearn.flow.clients import check_clients
from chatlearn.flow.graph import BATCH, Graph
from chatlearn.flow.recorder import ACTIVE, Recorder, joint_space
from chatlearn.flow.signature import step_signature
from chatlearn.flow.symbols import Poisoned, Symbol, caller_place, find_stand_in


def trace(flow: Callable[[Any], Any]) -> Graph:
    """Runs ``flow`` once with a stand-in for the batch and returns its graph.

    Args:
        flow: function of one argument over modules; it returns nothing, a value, or a tuple, list or dict of values.

    Raises:
        FlowError: the flow needs data while it is traced, calls no step, or returns something that is not a step's
            output. Exceptions of the flow's own code pass through unchanged.
    """
    if not callable(flow):
        raise FlowError(
            f"A flow is a function of one batch; got {type(flow).__name__} {flow!r}. Write "
            f"`def flow(batch): return policy.forward_step(batch)`, and pass `flow`."
        )
    name, where = _identity(flow)
    _check_arity(flow, name, where)
    recorder = Recorder(name)
    with recorder.recording():
        result = flow(Symbol(recorder, BATCH, "the batch"))
    if inspect.isgenerator(result) or inspect.iscoroutine(result):
        result.close()
        raise FlowError(
            f"{where}: {name} is a generator or coroutine; a flow is a plain function that returns its values."
        )
    outputs = _outputs(result, recorder, f"{where}: {name}")
    if not recorder.nodes:
        raise FlowError(
            f"{where}: {name} calls no step of a module. Call steps with the flow's argument, as in "
            f"`out = policy.forward_step(batch)`."
        )
    for place in recorder.idle_waits.values():
        raise FlowError(f"{place}: after(…) does nothing by itself. Write `with chatlearn.after(…):` around the steps.")
    check_clients(recorder.nodes)
    return Graph(name, where, tuple(recorder.nodes), outputs)


def record(
    module: Any, step: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Symbol:
    """Adds the call ``module.step(*args, **kwargs)`` to the trace that its symbolic arguments belong to.

    Args:
        module: of the step.
        step: the method's name.
        function: the plain step, with what its decorator says of it (``_chatlearn_expands``, ``_chatlearn_filters``,
            ``_chatlearn_reads``, ``_chatlearn_writes``).
        args: without ``self``.
        kwargs: of the call.

    Raises:
        FlowError: an argument was read from a stand-in, no argument is a value of the flow, or the arguments do not
            fit the signature.
    """
    call = f"{module.name}.{step}"
    arguments = bind(call, step_signature(function), args, kwargs)
    symbols = {name: value for name, value in arguments.items() if isinstance(value, Merged)}
    constants = {name: value for name, value in arguments.items() if name not in symbols}
    recorder = _recorder_of(call, [symbol for group in symbols.values() for symbol in group])
    inputs = {name: tuple(symbol.chatlearn_index for symbol in group) for name, group in symbols.items()}
    return recorder.add(module, step, function, inputs, constants)


def is_symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True where a call belongs to a trace: one is on, or a stand-in is among the arguments, or inside of one."""
    if ACTIVE.get() is not None:
        return True
    return find_stand_in(args) is not None or (bool(kwargs) and find_stand_in(kwargs) is not None)


def _recorder_of(call: str, symbols: list[Symbol]) -> Recorder:
    """The trace that some values belong to."""
    recorders: dict[int, Recorder] = {id(symbol.chatlearn_recorder): symbol.chatlearn_recorder for symbol in symbols}
    if not recorders:
        active = ACTIVE.get()
        raise FlowError(
            f"{caller_place()}: {call} is called in the flow {active.flow if active else ''} with none of the flow's "
            f"values. The flow is only traced here, before there is any data: pass the batch or outputs of steps, or "
            f"call the step outside of the flow."
        )
    if len(recorders) > 1:
        raise FlowError(f"{caller_place()}: {call} mixes values of two flows; a value lives in the flow that made it.")
    (recorder,) = recorders.values()
    if recorder.closed:
        raise FlowError(
            f"{caller_place()}: {call} takes a value of a flow that has returned; a value lives in the flow that "
            f"made it."
        )
    for symbol in symbols:
        _check_has_output(call, symbol, recorder)
    return recorder


def _check_has_output(call: str, symbol: Symbol, recorder: Recorder) -> None:
    if symbol.chatlearn_index != BATCH and recorder.nodes[symbol.chatlearn_index].step == "train_step":
        raise FlowError(
            f"{caller_place()}: {call} takes {symbol.chatlearn_origin}, but a train_step's value stands for nothing. "
            f"Pass the batch, or the output of another step."
        )


def _outputs(result: Any, recorder: Recorder, where: str) -> tuple[int, ...]:
    if result is None:
        return ()
    values: list[object] = [result]
    if isinstance(result, dict):
        values = list(cast("dict[object, object]", result).values())
    elif isinstance(result, (tuple, list)):
        values = list(cast("list[object]", result))
    outputs: list[int] = []
    for value in values:
        if isinstance(found := find_stand_in(value), Poisoned):
            raise FlowError(
                f"{where} returns {found.chatlearn_read_at}, which holds no data "
                f"while a flow is traced. Return whole outputs of steps."
            )
        if not isinstance(value, Symbol) or value.chatlearn_recorder is not recorder:
            raise FlowError(
                f"{where} returns {value!r}; it may return outputs of steps, alone or in one tuple, list or dict."
            )
        index = value.chatlearn_index
        if index == BATCH or recorder.nodes[index].step != "train_step":
            outputs.append(index)
    joint_space(recorder.nodes, outputs, f"{where} returns")
    return tuple(outputs)


def _identity(flow: Callable[..., Any]) -> tuple[str, str]:
    function = inspect.unwrap(flow)
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else "flow"
    return getattr(function, "__name__", type(flow).__name__), where


def _check_arity(flow: Callable[..., Any], name: str, where: str) -> None:
    if hasattr(getattr(flow, "func", flow), "_step_of"):
        return  # a step is a flow of one call; what else it takes is passed where it runs
    try:
        inspect.signature(flow).bind(object())
    except TypeError:
        raise FlowError(
            f"{where}: {name}{inspect.signature(flow)} can't be called as {name}(batch); a flow takes one batch."
        ) from None
    except ValueError:
        return  # a builtin without a signature; running it tells
