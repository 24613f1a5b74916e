"""A module around a torch model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from chatlearn.errors import ModuleError
from chatlearn.modules.base import BaseModule

if TYPE_CHECKING:
    import torch


class TorchModule(BaseModule):
    """A module whose ``setup()`` puts a :class:`torch.nn.Module` into ``self.model``.

    Parameter sync covers ``self.model`` (parameters and persistent buffers); checkpoints cover every attribute with a
    ``state_dict``, so an optimizer in ``self.optimizer`` and a schedule in ``self.scheduler`` are resumed too.
    """

    model: torch.nn.Module

    def offload(self, tags: Collection[str]) -> None:
        """Gives up device memory while the module waits (``models.<name>.free_memory`` and its parts).

        Args:
            tags: ``weights`` moves ``self.model`` to host memory, ``optimizer`` the state of ``self.optimizer``,
                ``gradients`` drops them.
        """
        if "gradients" in tags and "model" in self.__dict__:
            self.model.zero_grad(set_to_none=True)
        self._move(tags, "cpu")

    def onload(self, tags: Collection[str]) -> None:
        """Takes back to ``self.device`` what :meth:`offload` gave up; gradients come with the next backward pass."""
        self._move(tags, self.device)

    def _move(self, tags: Collection[str], device: torch.device | str) -> None:
        if "weights" in tags and "model" in self.__dict__:
            self.model.to(device)
        if "optimizer" in tags and "optimizer" in self.__dict__:
            for state in self.__dict__["optimizer"].state.values():
                # what an optimizer keeps on the host (its step counter) stays there
                moved = {key: value.to(device) for key, value in state.items() if getattr(value, "ndim", 0)}
                state.update(moved)

    def export(self, path: str) -> None:
        """Writes ``self.model`` for use outside: in Hugging Face format with its tokenizer (``self.tokenizer``) where
        it has ``save_pretrained``, else its state as ``model.safetensors``.

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
        if hasattr(model, "save_pretrained"):
            from chatlearn.modules.torch.huggingface import quiet

            with quiet():
                model.save_pretrained(folder)
            if (tokenizer := getattr(self, "tokenizer", None)) is not None:
                tokenizer.save_pretrained(folder)
            return
        from safetensors.torch import save_model

        save_model(model, str(folder / "model.safetensors"))
