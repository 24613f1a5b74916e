"""Names that a configuration may give to clusters and sinks, and where what they name lives: one line adds one.

The paths are text, so nothing is imported here. A class of somebody else's program needs no line: sinks, reward
functions and data hooks are given by their import paths.
"""

from __future__ import annotations

CLUSTERS = {
    "local": "chatlearn.runtime.local:LocalCluster",
    "ray": "chatlearn.runtime.ray.cluster:RayCluster",
}
"""``runtime_env.backend`` -> import path of the class, a :class:`~chatlearn.runtime.base.Cluster`."""

SINKS = {
    "jsonl": "chatlearn.observe.sinks.jsonl:JsonlSink",
    "tensorboard": "chatlearn.observe.sinks.tensorboard:TensorBoardSink",
    "wandb": "chatlearn.observe.sinks.wandb:WandbSink",
    "mlflow": "chatlearn.observe.sinks.mlflow:MlflowSink",
    "trackio": "chatlearn.observe.sinks.trackio:TrackioSink",
}
"""A name in ``runtime.sinks`` -> import path of the class, a :class:`~chatlearn.observe.sinks.base.Sink`."""
