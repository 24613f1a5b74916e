"""One hierarchy of errors.

Every error that chatlearn raises on purpose is a :class:`ChatLearnError`. Each kind is also the standard type that a
caller would expect (a bad config is a ``ValueError``, a failed step a ``RuntimeError``), carries nothing but its
text, and so survives pickling.
"""

from __future__ import annotations


class ChatLearnError(Exception):
    """Base of all errors of chatlearn. The text says what happened, where, and how to fix it."""


class ConfigError(ChatLearnError, ValueError):
    """The configuration is wrong. The text lists every problem found, each with its place."""


class FlowError(ChatLearnError, TypeError):
    """A flow function can't be traced, or its graph can't run."""


class MissingStepError(FlowError, AttributeError):
    """A flow (or a caller) asks a module for a step that its class does not define."""


class ModuleError(ChatLearnError, TypeError):
    """A module is constructed, named or used in a way that can't work."""


class DataError(ChatLearnError, ValueError):
    """A data set, a batch or a collation is malformed."""


class StepError(ChatLearnError, RuntimeError):
    """A user's step raised, or returned something that is not a batch. A user's exception is its ``__cause__``."""


class SyncError(ChatLearnError, RuntimeError):
    """Weights can't be transferred from one module to another, or arrived damaged."""


class CheckpointError(ChatLearnError, RuntimeError):
    """A checkpoint can't be written, found or read."""


class WorkerError(ChatLearnError, RuntimeError):
    """A worker died or can't be reached."""


class EngineError(ChatLearnError, RuntimeError):
    """An engine is used out of order: twice, without a data set, after it was stopped."""
