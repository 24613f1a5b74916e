"""MLflow, in a file of the run folder or on a server."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from chatlearn.errors import ConfigError
from chatlearn.observe.sinks.base import SinkContext, flat, numbers_of, remember_id, remembered_id

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_METRICS_PER_CALL, _PARAMS_PER_CALL, _PARAM_LENGTH = 1000, 100, 500
"""Limits of MLflow's interface."""


class MlflowSink:
    """A run of MLflow: in ``mlflow/mlflow.db`` (SQLite) of the run folder, or wherever a tracking URI points.

    ``MLFLOW_TRACKING_URI`` or ``mlflow.set_tracking_uri`` choose a server, ``MLFLOW_EXPERIMENT_NAME`` the experiment
    (default: the name of the run's experiment). The configuration becomes parameters, each number a metric with the
    episode as its step. After a resume the same run goes on; episodes that it has already are not logged twice. MLflow
    stores an infinity as the largest float. Rows that a server does not take are kept and sent with the next row.

    Raises:
        ConfigError: the store can't be opened, before anything is trained.
    """

    def __init__(self, context: SinkContext) -> None:
        self._pending: list[Metric] = []
        self._warned = False
        try:
            with _quiet():
                self._client, uri = _open_store(context)
                self._run_id, self._last = self._begin(context)
        except MlflowException as error:
            raise ConfigError(
                f"The sink mlflow: {error.message}. Set MLFLOW_TRACKING_URI to a server that runs, or unset it for a "
                "file in the run folder."
            ) from None
        remember_id(context, "mlflow", self._run_id)
        hint = f"; show with `mlflow ui --backend-store-uri {uri}`" if uri.startswith("sqlite:") else ""
        self.note = f"MLflow: run {self._run_id} in {uri}{hint}"

    def write(self, episode: int, row: Mapping[str, Any]) -> None:
        """Logs the numbers of a row in as few calls as MLflow allows."""
        if episode <= self._last:  # a resumed run makes the same rows again
            return
        now = int(time.time() * 1000)
        numbers = {**numbers_of(row), "episode": float(episode)}
        self._pending += [Metric(_metric_name(name), value, now, episode) for name, value in numbers.items()]
        self._send()

    def close(self, status: str = "finished") -> None:
        """Sends what is left and ends the run; a failure of a server is a warning, since the training is done."""
        self._send()
        try:
            self._client.set_terminated(self._run_id, _STATUS.get(status, "FAILED"))
        except MlflowException as error:
            self._warn(error)

    def _begin(self, context: SinkContext) -> tuple[str, float]:
        """Id of the run, and the last episode that it has."""
        if known := remembered_id(context, "mlflow"):
            self._client.update_run(known, status="RUNNING")
            return known, self._client.get_run(known).data.metrics.get("episode", -1)
        run = self._client.create_run(_experiment(self._client, context), run_name=context.folder.name)
        params = [Param(_metric_name(key), str(value)[:_PARAM_LENGTH]) for key, value in flat(context.config)]
        for part in _parts(params, _PARAMS_PER_CALL):
            self._client.log_batch(run.info.run_id, params=part)
        return run.info.run_id, -1  # an evaluation before the training is episode 0

    def _send(self) -> None:
        try:
            while self._pending:
                self._client.log_batch(self._run_id, metrics=self._pending[:_METRICS_PER_CALL], synchronous=True)
                del self._pending[:_METRICS_PER_CALL]
        except MlflowException as error:
            self._warn(error)

    def _warn(self, error: MlflowException) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"MLflow did not take metrics: {error.message}. The run goes on.", stacklevel=3)


def _open_store(context: SinkContext) -> tuple[MlflowClient, str]:
    """A client and its tracking URI."""
    if mlflow.is_tracking_uri_set():
        return MlflowClient(), mlflow.get_tracking_uri()
    folder = context.folder.absolute() / "mlflow"
    folder.mkdir(exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri), uri


def _experiment(client: MlflowClient, context: SinkContext) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or context.exp_name
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    if mlflow.is_tracking_uri_set():
        return client.create_experiment(name)
    return client.create_experiment(name, (context.folder.absolute() / "mlflow" / "artifacts").as_uri())


def _metric_name(name: str) -> str:
    """A name of which MLflow takes every character."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _parts(items: Sequence[Param], size: int) -> Iterator[Sequence[Param]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def _quiet() -> Generator[None]:
    """Without the lines about tables that a new store logs."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
