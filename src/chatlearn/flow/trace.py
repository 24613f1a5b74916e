"""From a flow function to its graph, by running it once on stand-ins.

Nothing is read from source code and nothing is patched: the stand-in for the raw batch knows the recorder that it
belongs to, and every step that is called with it adds a node there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from chatlearn.errors import FlowError
from chatlearn.flow.graph import BATCH, Graph, Node
from chatlearn.flow.signature import RUN_PARAMETERS, StepSignature, step_signature
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
        raise FlowError(f"A flow is a function of one batch; got {type(flow).__name__} {flow!r}.")
    name, where = _identity(flow)
    _check_arity(flow, name, where)
    recorder = _Recorder()
    result = flow(Symbol(recorder, BATCH, "the batch"))
    if inspect.isgenerator(result) or inspect.iscoroutine(result):
        result.close()
        raise FlowError(
            f"{where}: {name} is a generator or coroutine; a flow is a plain function that returns its values."
        )
    recorder.closed = True
    outputs = _outputs(result, recorder, f"{where}: {name}")
    if not recorder.nodes:
        raise FlowError(
            f"{where}: {name} calls no step of a module. Call steps with the flow's argument, as in "
            f"`out = policy.forward_step(batch)`."
        )
    return Graph(name, where, tuple(recorder.nodes), outputs)


class _Merged(tuple[Symbol, ...]):
    """Batches that one parameter gets, merged into one dict (told apart from a tuple that a user passes)."""


class _Recorder:
    """The nodes of one trace; closed when the flow has returned."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.closed = False

    def add(
        self, module: Any, step: str, inputs: Mapping[str, tuple[int, ...]], constants: Mapping[str, Any]
    ) -> Symbol:
        occurrence = sum(node.module is module and node.step == step for node in self.nodes)
        node = Node(len(self.nodes), module, step, occurrence, inputs, constants, caller_place())
        self.nodes.append(node)
        return Symbol(self, node.index, f"the output of {node.label}")


def record(
    module: Any, step: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Symbol:
    """Adds the call ``module.step(*args, **kwargs)`` to the trace that its symbolic arguments belong to.

    Raises:
        FlowError: an argument was read from a stand-in, or the arguments do not fit the signature.
    """
    call = f"{module.name}.{step}"
    for value in (*args, *kwargs.values()):
        _check_argument(call, value)
    arguments = _bind(call, step_signature(function), args, kwargs)
    symbols = {name: value for name, value in arguments.items() if isinstance(value, _Merged)}
    constants = {name: value for name, value in arguments.items() if name not in symbols}
    recorders = {id(symbol._recorder): symbol._recorder for group in symbols.values() for symbol in group}
    if len(recorders) != 1:
        raise FlowError(f"{caller_place()}: {call} mixes values of two flows; a value lives in the flow that made it.")
    (recorder,) = recorders.values()
    if recorder.closed:
        raise FlowError(
            f"{caller_place()}: {call} takes a value of a flow that has returned; a value lives in the flow that "
            f"made it."
        )
    for group in symbols.values():
        for symbol in group:
            _check_has_output(call, symbol, recorder)
    inputs = {name: tuple(symbol._index for symbol in group) for name, group in symbols.items()}
    return recorder.add(module, step, inputs, constants)


def is_symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """True where a call belongs to a trace: a stand-in is among its arguments, or inside of one."""
    return find_stand_in(args) is not None or (bool(kwargs) and find_stand_in(kwargs) is not None)


def _bind(call: str, signature: StepSignature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Parameter name -> tuple of Symbols, or a constant."""
    where = caller_place()
    if signature.merges:
        merged = [value for value in args if isinstance(value, Symbol)]
        if any(isinstance(value, Symbol) for value in args[len(merged) :]):
            raise FlowError(
                f"{where}: {call} gets a plain value before a batch; pass batches first, the rest by keyword."
            )
        positional = [_Merged(merged), *args[len(merged) :]] if merged else list(args)
        names = signature.positional
    else:
        positional = [_Merged((value,)) if isinstance(value, Symbol) else value for value in args]
        extra = len(args) - len(signature.positional)
        names = signature.positional + tuple(f"*{i}" for i in range(extra) if signature.variadic)
    if len(positional) > len(names):
        wants = ", ".join(signature.data) or "no data"
        raise FlowError(
            f"{where}: {call} takes {wants}, but gets {len(args)} positional arguments. Merge or drop some."
        )
    arguments = dict(zip(names, positional, strict=False))
    for name, value in kwargs.items():
        if name in arguments:
            raise FlowError(f"{where}: {call} gets {name!r} twice, by position and by name.")
        if name not in signature.named and not signature.takes_any_keyword:
            known = ", ".join(sorted(signature.named)) or "none"
            raise FlowError(f"{where}: {call} has no parameter {name!r}; it has {known}.")
        arguments[name] = _Merged((value,)) if isinstance(value, Symbol) else value
    for name in (*signature.data, *signature.required):
        if name not in arguments:
            raise FlowError(f"{where}: {call} is called without its parameter {name!r}.")
    for name in RUN_PARAMETERS:
        if name in arguments:
            raise FlowError(f"{where}: {call} is given {name!r}, which chatlearn fills in itself. Leave it out.")
    return arguments


def _check_argument(call: str, value: Any) -> None:
    """Raises FlowError for what is neither a batch nor a constant."""
    if isinstance(value, Symbol):
        return
    found = find_stand_in(value)
    if isinstance(found, Poisoned):
        raise FlowError(
            f"{caller_place()}: {call} is given {found._origin}, read at {found._where}, which holds no data while a "
            f"flow is traced. Pass the whole batch, and read from it inside the step."
        )
    if found is not None:
        raise FlowError(
            f"{caller_place()}: {call} is given a {type(value).__name__} that contains {found._origin}. Pass "
            f"batches as arguments of their own; several are merged into one dict."
        )
    if hasattr(value, "_step_functions"):
        raise FlowError(
            f"{caller_place()}: {call} is given the module {value.name!r}. Call its steps in the flow and pass "
            f"their outputs."
        )


def _check_has_output(call: str, symbol: Symbol, recorder: _Recorder) -> None:
    if symbol._index != BATCH and recorder.nodes[symbol._index].step == "train_step":
        raise FlowError(
            f"{caller_place()}: {call} takes {symbol._origin}, but a train_step's value stands for nothing. Pass the "
            f"batch, or the output of another step."
        )


def _outputs(result: Any, recorder: _Recorder, where: str) -> tuple[int, ...]:
    if result is None:
        return ()
    if isinstance(result, dict):
        values = list(result.values())
    elif isinstance(result, (tuple, list)):
        values = list(result)
    else:
        values = [result]
    for value in values:
        if isinstance(found := find_stand_in(value), Poisoned):
            raise FlowError(
                f"{where} returns {found._origin}, read at {found._where}, which holds no data while a flow is "
                f"traced. Return whole outputs of steps."
            )
        if not isinstance(value, Symbol) or value._recorder is not recorder:
            raise FlowError(
                f"{where} returns {value!r}; it may return outputs of steps, alone or in a tuple, list or dict."
            )
    indices = [value._index for value in values]
    return tuple(i for i in indices if i == BATCH or recorder.nodes[i].step != "train_step")


def _identity(flow: Callable[..., Any]) -> tuple[str, str]:
    function = inspect.unwrap(flow)
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else "flow"
    return getattr(function, "__name__", type(flow).__name__), where


def _check_arity(flow: Callable[..., Any], name: str, where: str) -> None:
    try:
        inspect.signature(flow).bind(object())
    except TypeError:
        raise FlowError(
            f"{where}: {name}{inspect.signature(flow)} can't be called as {name}(batch); a flow takes one batch."
        ) from None
    except ValueError:
        return  # a builtin without a signature; running it tells
