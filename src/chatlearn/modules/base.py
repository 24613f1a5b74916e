"""The contract of a module: what a user writes, and what every step finds on ``self``.

In the driver a module object is a *description*: its class, its constructor's arguments and a unique name. Each replica
constructs an instance of its own on its worker and calls ``setup()`` there; that is where models belong.

A step (``forward_step``, ``train_step``, ``eval_step``, or any method marked with :func:`step`) that is called with
stand-ins, in a flow that is being traced, records a node; called with real data it just runs, so a module can be tested
without an engine.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from chatlearn.errors import MissingStepError, ModuleError
from chatlearn.flow.hidden import check_constructor
from chatlearn.flow.signature import step_signature
from chatlearn.flow.trace import is_symbolic, record
from chatlearn.guards import is_instance
from chatlearn.modules.context import ModuleContext, snapshot
from chatlearn.modules.marks import step
from chatlearn.modules.noise import uniforms
from chatlearn.modules.padding import check_declared, declared_rule
from chatlearn.types import Batch, SampleIds

if TYPE_CHECKING:
    import torch

    from chatlearn.data.padding import Padding

__all__ = [
    "STEPS",
    "BaseModule",
    "Description",
    "ModuleContext",
    "describe",
    "merge_batches",
    "step",
    "step_functions",
    "take_ownership",
]

STEPS = ("forward_step", "train_step", "eval_step")
"""Methods that are steps by their name."""


@dataclass(frozen=True)
class Description:
    """What a worker needs to construct a replica: by import path and arguments, never the driver's object itself."""

    module_class: type[BaseModule]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str


class BaseModule:
    """A model, or a rule, with steps.

    Args:
        name: unique in a run; the module's section in the configuration is ``models.<name>``.

    Class attributes:
        Args: a pydantic model that checks ``models.<name>.args``; ``self.model_args`` is then an instance of it.
        mutates_inputs: steps get copies of their inputs and may change them.
        stateful: steps keep state from call to call; such a module has one replica.
        thread_safe: steps draw from ``self.uniforms``, ``self.generator`` or a generator of their own only, and touch
            nothing that other modules do; with ``runtime_env.local_threads`` they may run beside others. Not for
            what they put into ``self``: one replica runs one step at a time.
        optional_entry: the module may do without an entry under ``models`` though others have one.
        padding: key -> :class:`~chatlearn.data.padding.Padding`: how its values become equally wide where batches of
            different widths are put together; the rule of a key holds in the whole run.
        reads: keys that every step of the module needs in its first data parameter.
        writes: keys that its steps add.
    """

    Args: ClassVar[type | None] = None
    mutates_inputs: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    thread_safe: ClassVar[bool] = False
    optional_entry: ClassVar[bool] = False
    padding: ClassVar[Mapping[str, Padding]] = {}
    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    _step_functions: ClassVar[dict[str, Callable[..., Any]]] = {}

    _name: str
    _construction: tuple[tuple[Any, ...], dict[str, Any]]
    _context: ModuleContext
    _owned: bool

    def __new__(cls, *args: Any, **kwargs: Any) -> BaseModule:
        module = super().__new__(cls)
        check_constructor(cls, args, kwargs)
        module.__dict__.update(_construction=(args, kwargs), _context=ModuleContext(), _owned=False)
        if (name := _name_of(cls, args, kwargs)) is not None:
            module.__dict__["_name"] = name
        return module

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = _checked_name(type(self), name)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not is_instance(rules := inspect.getattr_static(cls, "padding"), property):
            check_declared(cls.__name__, rules)
        cls._step_functions = _find_steps(cls)
        for name, function in cls._step_functions.items():
            if not _records_as(getattr(cls, name), name):
                setattr(cls, name, _as_step(name, function))

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_owned"):
            raise ModuleError(
                f"{self.name}.{name} is set after an Engine took the module. Workers run replicas of their own and "
                f"would never see it: pass the value to the constructor, put it under `models.{self.name}.args`, or "
                "set it in setup()."
            )
        if name == "padding":
            check_declared(self.name, value)
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "_name":
            raise ModuleError(
                f"{type(self).__name__} has no name. Give the constructor a parameter `name`, or call "
                "super().__init__(name) in it."
            )
        if name in STEPS:
            raise MissingStepError(
                f"{type(self).__name__} (module {self.name!r}) has no {name}. Define `def {name}(self, data, …)` in "
                f"the class; it has {', '.join(self._step_functions) or 'no steps yet'}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def name(self) -> str:
        """The module's unique name."""
        return self._name

    @property
    def model_args(self) -> Any:
        """The user's hyper-parameters, ``models.<name>.args``: an instance of ``Args`` if there is one, else a dict
        whose keys are attributes too (``self.model_args.lr`` is ``self.model_args["lr"]``).
        """
        return self._context.model_args

    @property
    def module_args(self) -> Any:
        """The module's own section of the configuration, ``models.<name>``."""
        return self._context.module_args

    @property
    def runtime_args(self) -> Any:
        """The configuration's section ``runtime``."""
        return self._context.runtime_args

    @property
    def replica_id(self) -> int:
        """Number of this replica, from 0."""
        return self._context.replica_id

    @property
    def rank(self) -> int:
        """Rank of this process inside of its replica."""
        return self._context.rank

    @property
    def world_size(self) -> int:
        """Number of ranks of a replica."""
        return self._context.world_size

    @property
    def device(self) -> torch.device:
        """Where this replica's model belongs."""
        if self._context.device is None:
            import torch

            self._context.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return self._context.device

    @property
    def batch(self) -> SampleIds:
        """Ids of the rows of the current call: ``self.batch.sample_ids``, ``.group_ids``, ``.weight_version``."""
        return self._context.ids

    @property
    def checkpoint_path(self) -> Any:
        """Folder of this module's own files (a ``Path``), while ``save_checkpoint`` or ``load_checkpoint`` runs."""
        return self._context.checkpoint_path

    def uniforms(self, ids: Sequence[int], n: int) -> torch.Tensor:
        """Noise that belongs to samples: the same for a sample in any batch and on any replica.

        Args:
            ids: sample ids, usually ``self.batch.sample_ids``.
            n: numbers per sample.

        Returns:
            ``[len(ids), n]`` float32 in the open interval (0, 1), on the CPU; keyed by run seed, phase, module, step
            and occurrence too, outside of steps by the function's place in the run (module, hook, episode).
        """
        return uniforms(self._context.noise_seed, ids, n)

    @property
    def generator(self) -> torch.Generator:
        """A generator on ``self.device`` for the current call, seeded from the call's place in the run (module, step,
        occurrence in the flow, batch index): the same in a run that is resumed, whatever was drawn before.
        """
        context, thread = self._context, threading.get_ident()
        if thread not in context.generators:
            import torch

            context.generators[thread] = torch.Generator(self.device)
            context.generators[thread].manual_seed(context.call_seeds.get(thread, 0))
        return context.generators[thread]

    def put(self, key: str, value: Any) -> None:
        """Leaves a value for other modules, which :meth:`get` it from the next episode on (what ``setup`` puts, from
        the first). Of several values for one key the last counts, in the order of batches and of the flow.

        Args:
            key: one name space for all modules.
            value: anything that a batch may hold, or a number, a string, a dict or list of these. It is copied, so
                what the caller does to it afterwards changes nothing.

        Raises:
            ModuleError: the key is no string, or the value can't be copied.
        """
        if not is_instance(key, str):
            raise ModuleError(f"{self.name}.put: the key is a string, got {key!r}.")
        try:
            self._context.puts.append((key, snapshot(value)))
        except Exception as error:
            raise ModuleError(
                f"{self.name}.put({key!r}, …): {type(value).__name__} can't be copied ({error}). Put tensors, arrays, "
                f"numbers, strings, and dicts and lists of these."
            ) from error

    def get(self, key: str, default: Any = None) -> Any:
        """A copy of what some module has :meth:`put` before this episode; ``default`` where none has."""
        shared = self._context.shared
        return snapshot(shared[key]) if key in shared else default

    def add_padding_config(self, key: str, padding_value: float = 0.0, padding_type: str = "right") -> None:
        """Called in ``setup``: how values of a key become equally wide where batches of different widths are put
        together. The same as an entry of the class attribute ``padding``.

        Args:
            key: of the batch; dotted for nested dicts.
            padding_value: what padding holds.
            padding_type: ``right`` or ``left``.

        Raises:
            DataError: an unknown side, or a value that is no number.
            ModuleError: the key is no string, or ``setup`` is over.
        """
        late = self._context.num_entered > 1
        self._context.padding[key] = declared_rule(self.name, key, padding_value, padding_type, is_late=late)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of ``x`` over the ranks of the replica; every loss normaliser uses it. One rank: ``x`` itself."""
        return x

    def log(self, name: str, value: float | torch.Tensor, reduction: str = "mean") -> None:
        """Records a metric; it appears as ``<module>/<name>``, reduced over the calls of an episode.

        Args:
            name: metric name.
            value: a number or a 0-d tensor (read at the end of the step).
            reduction: ``mean`` (weighted by samples), ``sum``, ``max`` or ``min``. Several values of one name in one
                call share its samples: if there is one for each micro-batch of a ``train_step``, each stands for its
                micro-batch, else for an equal part.

        Raises:
            ModuleError: unknown reduction, or a value that is no number.
        """
        if reduction not in ("mean", "sum", "max", "min"):
            raise ModuleError(
                f"{self.name}.log({name!r}): reduction is 'mean', 'sum', 'max' or 'min', not {reduction!r}."
            )
        if not isinstance(value, numbers.Real) and getattr(value, "ndim", None) != 0:
            size = getattr(value, "shape", None)
            shape = "" if size is None else f" {list(size)}"
            raise ModuleError(f"{self.name}.log({name!r}): a metric is one number, got {type(value).__name__}{shape}.")
        if isinstance(value, numbers.Real):
            try:
                value = float(value)
            except OverflowError:
                raise ModuleError(
                    f"{self.name}.log({name!r}): the number is too large for a float. Log its logarithm instead."
                ) from None
        self._context.metrics.append((name, value, reduction))

    @classmethod
    def why_not(cls, step: str, args: Mapping[str, Any]) -> tuple[str, str] | None:
        """Why a flow can't call a step under a configuration; asked for each step of each flow before anything starts.

        Args:
            step: its name.
            args: ``models.<name>.args`` as they were written.

        Returns:
            What is wrong and how to put it right, as parts of a sentence; ``None`` where nothing is.
        """
        return None

    def stateful_attributes(self) -> dict[str, Any]:
        """Attributes with ``state_dict`` and ``load_state_dict`` (model, optimizer, scheduler, …), sorted by name."""
        return {
            name: value
            for name, value in sorted(self.__dict__.items())
            if not isinstance(value, type)
            and callable(getattr(value, "state_dict", None))
            and callable(getattr(value, "load_state_dict", None))
        }

    def state_dict(self) -> dict[str, Any]:
        """State that a checkpoint keeps: by default the ``state_dict()`` of each of :meth:`stateful_attributes`."""
        return {name: value.state_dict() for name, value in self.stateful_attributes().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ModuleError: an attribute of the checkpoint is not there after ``setup()``.
        """
        attributes = self.stateful_attributes()
        if missing := sorted(set(state) - set(attributes)):
            raise ModuleError(
                f"{self.name}: the checkpoint holds {', '.join(missing)}, which setup() did not make. Make the same "
                f"attributes as in the run that was saved."
            )
        for name, value in state.items():
            attributes[name].load_state_dict(value)


def describe(module: BaseModule) -> Description:
    """The description of a driver's module object."""
    args, kwargs = vars(module)["_construction"]
    return Description(type(module), args, kwargs, module.name)


def step_functions(module: BaseModule) -> Mapping[str, Callable[..., Any]]:
    """The plain function of each step of a module, by name; without what records it in a flow."""
    return vars(type(module))["_step_functions"]


def take_ownership(module: BaseModule) -> None:
    """Marks a driver's module object as belonging to an engine: from here on setting attributes on it is an error."""
    if (torch := sys.modules.get("torch")) is not None:
        heavy = [
            name for name, value in vars(module).items() if isinstance(value, (torch.nn.Module, torch.nn.Parameter))
        ]
        if heavy:
            warnings.warn(
                f"{type(module).__name__}.__init__ makes parameters ({', '.join(heavy)}) in the driver, where nothing "
                f"uses them. Make them in setup(), which runs on each replica.",
                stacklevel=4,
            )
    module.__dict__["_owned"] = True


def merge_batches(batches: Sequence[Batch]) -> Batch:
    """Several batches as one dict; later ones win where keys are equal."""
    return {key: value for batch in batches for key, value in batch.items()}


def _find_steps(cls: type) -> dict[str, Callable[..., Any]]:
    """The plain function of each step of a class, mixins and inherited marks included."""
    names: dict[str, None] = dict.fromkeys(STEPS)
    for parent in reversed(cls.__mro__):
        names.update(dict.fromkeys(n for n, f in vars(parent).items() if getattr(f, "_is_chatlearn_step", False)))
    found = {name: inspect.getattr_static(cls, name, None) for name in names}
    return {name: _wrapped_step(f) or f for name, f in found.items() if callable(f)}


def _wrapped_step(function: Any) -> Callable[..., Any] | None:
    """The user's function that :func:`_as_step` wrapped; ``None`` for all else, decorators' copies of the mark too."""
    wrapper, original, _ = getattr(function, "_step_of", (None, None, None))
    return original if wrapper is function else None


def _records_as(function: Any, name: str) -> bool:
    """Whether a flow records this method as the step ``name``; one that a class has under two names is recorded as one
    of them (``eval_step = Parent.forward_step``).
    """
    wrapper, _, recorded = getattr(function, "_step_of", (None, None, None))
    return wrapper is function and recorded == name


def _as_step(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The method that users call: records a node in a trace, runs on real data."""

    @functools.wraps(function)
    def call(self: BaseModule, *args: Any, **kwargs: Any) -> Any:
        if is_symbolic(args, kwargs):
            return record(self, name, function, args, kwargs)
        signature = step_signature(function)
        num_batches = _leading_dicts(args) if signature.merges else 1
        if num_batches > 1:
            args = (merge_batches(args[:num_batches]), *args[num_batches:])
        return function(self, *args, **kwargs)

    vars(call)["_step_of"] = (call, function, name)
    return call


def _leading_dicts(args: tuple[Any, ...]) -> int:
    return next((i for i, value in enumerate(args) if not isinstance(value, dict)), len(args))


def _name_of(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The constructor's argument ``name``, since a subclass may forget ``super().__init__(name)``."""
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
    except TypeError:
        return None  # Python's own error follows, from __init__
    bound.apply_defaults()
    if "name" not in bound.arguments:
        return None
    return _checked_name(cls, bound.arguments["name"])


def _checked_name(cls: type, name: object) -> str:
    if not isinstance(name, str) or not name or any(c in name for c in "/\\,.\0") or name != name.strip():
        raise ModuleError(
            f"{cls.__name__}: a module's name is a non-empty string without '/', '\\', ',' or '.', got {name!r}. It "
            f"names the section `models.<name>` of the configuration."
        )
    return name
