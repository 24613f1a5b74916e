"""Modules of a checkpoint, written for use outside without running the program that trained them.

A checkpoint names the class of each module and holds the configuration of its run. :mod:`.choice` finds the module,
:mod:`.rebuild` makes it as a worker would and gives it the checkpoint's state, :mod:`.folder` has it write a folder.
"""

from chatlearn.export.choice import chosen
from chatlearn.export.folder import Exported, Form, export_checkpoint

__all__ = ["Exported", "Form", "chosen", "export_checkpoint"]
