"""A module around a torch model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatlearn.errors import ModuleError
from chatlearn.modules.base import BaseModule

if TYPE_CHECKING:
    import torch

    from chatlearn.modules.torch.lora import Adapter
    from chatlearn.sync.transport import SyncView


class TorchModule(BaseModule):
    """A module whose ``setup()`` puts a :class:`torch.nn.Module` into ``self.model``.

    Parameter sync covers ``self.model`` (parameters and persistent buffers); checkpoints cover every attribute with a
    ``state_dict``, so an optimizer in ``self.optimizer`` and a schedule in ``self.scheduler`` are resumed too. Of a
    model with adapters (``models.<name>.args.lora``) both cover what is trained.
    """

    model: torch.nn.Module

    def offload(self, tags: Collection[str]) -> None:
        """Gives up memory while the module waits (``models.<name>.free_memory`` and its parts): contents go to host
        memory, in buckets of ``runtime.bucket_size_mb_in_memory_manager``, and the tensors' own memory is released. On
        a GPU host memory is pinned memory, on a CPU a temporary file. Until :meth:`onload` the tensors are empty; they
        stay the same objects. What is offloaded already stays so.

        Args:
            tags: ``weights`` moves the parameters and buffers of ``self.model``, ``gradients`` those gradients that are
                not ``None``, ``optimizer`` the tensors in the state of ``self.optimizer``.

        Raises:
            ModuleError: host memory has no room; nothing more has moved then.
        """
        from chatlearn.modules.torch.offload import memory_of

        held = self.__dict__
        memory_of(self).offload(tags, [held.get("model")], [held.get("optimizer")])

    def onload(self, tags: Collection[str]) -> None:
        """Takes back what :meth:`offload` gave up, to the bit and to where it was; the rest stays as it is.

        Raises:
            ModuleError: weights were replaced in the meantime, or there is no room for them.
        """
        from chatlearn.modules.torch.offload import memory_of

        memory_of(self).onload(tags)

    def sync_view(self, merged: bool = False) -> SyncView:
        """What parameter sync moves: the parameters and persistent buffers of ``self.model``, by name.

        Args:
            merged: of a model with adapters the weights that they are merged into, for a model without any.
        """
        from chatlearn.modules.torch.lora import sync_view
        from chatlearn.sync.transport import plain_view

        return plain_view(self) if self._adapter is None else sync_view(self.model, merged)

    def state_dict(self) -> dict[str, Any]:
        """State that a checkpoint keeps; of a model with adapters its trained weights, and what tells its base."""
        state = super().state_dict()
        if self._adapter is not None:
            from chatlearn.modules.torch.lora import base_fingerprint, scales_of, trained_state

            state["model"] = {
                "base": base_fingerprint(self.model),
                "scales": scales_of(self.model),
                "trained": trained_state(self.model),
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ModuleError: an attribute of the checkpoint is not there after ``setup()``, or the adapters are others, are
                multiplied by another factor, or are on another base model.
        """
        if self._adapter is not None and "model" in state:
            from chatlearn.modules.torch.lora import base_fingerprint, load_trained_state, scales_of

            state = dict(state)
            saved = state.pop("model")
            if saved["base"] != base_fingerprint(self.model):
                raise ModuleError(
                    f"{self.name}: the weights under the adapters are others than in the run that was saved; put the "
                    f"base model back into models.{self.name}.args.model_path"
                )
            ours: dict[str, float] = scales_of(self.model)
            if other := [layer for layer in ours if saved["scales"].get(layer, ours[layer]) != ours[layer]]:
                raise ModuleError(
                    f"{self.name}: adapters are multiplied by {ours[other[0]]:g} and were by "
                    f"{saved['scales'][other[0]]:g} in the run that was saved (alpha / r, of {other[0]}); put "
                    f"models.{self.name}.args.lora back, with the adapter_config.json of its path"
                )
            load_trained_state(self.model, saved["trained"])
        super().load_state_dict(state)

    @property
    def _adapter(self) -> Adapter | None:
        return getattr(self.__dict__.get("model"), "lora_adapter", None)

    def export(self, path: str, max_shard_size: int | str | None = None) -> None:
        """Writes ``self.model`` for use outside: in Hugging Face format with its tokenizer (``self.tokenizer``) where
        it has ``save_pretrained``, else the tensors of its state as ``model.safetensors``. Adapters are merged into
        it, or written alone in peft's format, as ``models.<name>.args.lora.export`` says.

        Args:
            path: of the folder, which is made if need be.
            max_shard_size: the most bytes of one file of weights in Hugging Face format, a number or text such as
                ``5GB``; ``None`` leaves it to the model.

        Raises:
            ModuleError: there is no ``self.model``.
        """
        model = getattr(self, "model", None)
        if model is None:
            raise ModuleError(
                f"{self.name}.export: setup() made no `self.model`. Make one, or take {self.name} off runtime.export."
            )
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if (adapter := self._adapter) is not None:
            from chatlearn.modules.torch.lora import export_adapter, export_merged

            if adapter.args.export == "merged":
                export_merged(model, folder, max_shard_size)
            else:
                export_adapter(model, folder)
        elif hasattr(model, "save_pretrained"):
            from chatlearn.modules.torch.huggingface import save_model_folder

            save_model_folder(model, folder, max_shard_size)
        else:
            save_tensors(model, folder / "model.safetensors")
        if hasattr(model, "save_pretrained") and (tokenizer := getattr(self, "tokenizer", None)) is not None:
            tokenizer.save_pretrained(folder)


def save_tensors(model: torch.nn.Module, file: Path) -> None:
    """Writes the tensors of ``model.state_dict()``, one for each that several names share. The file can't hold what
    else a model's ``get_extra_state`` gives.
    """
    import torch
    from safetensors.torch import save_model

    class Tensors(torch.nn.Module):
        def state_dict(self, *_args: Any, **_options: Any) -> dict[str, Any]:
            return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}

    save_model(Tensors(), str(file))
