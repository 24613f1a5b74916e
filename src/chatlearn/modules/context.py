"""What a replica knows of its run while a user's function runs."""

from __future__ import annotations

import copy
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatlearn.guards import is_instance, kind_of
from chatlearn.modules.settings import Settings
from chatlearn.types import SampleIds

if TYPE_CHECKING:
    import torch

    from chatlearn.data.padding import Padding


@dataclass
class ModuleContext:
    """What a replica knows of its run; the public attributes of :class:`~chatlearn.modules.base.BaseModule` read from
    here.

    Attributes:
        seed: of the noise of the last step, for threads that a step has started itself.
        noise_seeds: thread -> seed of the noise in the user's function that runs there.
        call_seeds: thread -> seed of the call that runs there.
        num_entered: user's functions that have begun; the first of a run is ``setup``.
    """

    model_args: Any = field(default_factory=Settings)
    module_args: Any = None
    runtime_args: Any = None
    replica_id: int = 0
    rank: int = 0
    world_size: int = 1
    device: Any = None
    seed: int = 0
    ids: SampleIds = field(default_factory=lambda: SampleIds((), ()))
    noise_seeds: dict[int, int] = field(default_factory=dict[int, int])
    call_seeds: dict[int, int] = field(default_factory=dict[int, int])
    generators: dict[int, torch.Generator] = field(default_factory=dict[int, "torch.Generator"])
    shared: dict[str, Any] = field(default_factory=dict[str, Any])
    padding: dict[str, Padding] = field(default_factory=dict[str, "Padding"])
    puts: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    metrics: list[tuple[str, float | torch.Tensor, str]] = field(
        default_factory=list[tuple[str, "float | torch.Tensor", str]]
    )
    checkpoint_path: Any = None
    num_entered: int = 0

    def enter(self, seed: int, noise_seed: int | None = None) -> None:
        """Begins a user's function on this thread; a data set may be read on one while a step runs on another.

        Args:
            seed: of the call.
            noise_seed: of a step's ``uniforms``, which don't depend on the batch; left out, ``seed``.
        """
        self.num_entered += 1
        thread = threading.get_ident()
        self.call_seeds[thread] = seed
        self.generators.pop(thread, None)
        self.noise_seeds[thread] = seed if noise_seed is None else noise_seed
        if noise_seed is not None:
            self.seed = noise_seed

    @property
    def noise_seed(self) -> int:
        """Seed of ``uniforms`` on this thread."""
        return self.noise_seeds.get(threading.get_ident(), self.seed)


def snapshot(value: Any) -> Any:
    """A copy that later changes of the original don't reach; tensors come detached."""
    torch = sys.modules.get("torch")
    if torch is not None and is_instance(value, torch.Tensor):
        return value.detach().clone()
    container = kind_of(value)
    if container is dict:
        return {key: snapshot(part) for key, part in value.items()}
    if container is list:
        return [snapshot(part) for part in value]
    if container is tuple:
        return tuple([snapshot(part) for part in value])
    return copy.deepcopy(value)
