"""A module around a torch model."""

from __future__ import annotations

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

    def export(self, path: str) -> None:
        """Writes ``self.model`` for use outside: in Hugging Face format with its tokenizer (``self.tokenizer``) where
        it has ``save_pretrained``, else its state as ``model.safetensors``.

        Raises:
            ModuleError: there is no ``self.model``.
        """
        model = getattr(self, "model", None)
        if model is None:
            raise ModuleError(f"{self.name}.export: setup() made no `self.model`.")
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
