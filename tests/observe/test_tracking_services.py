"""W&B, MLflow and Trackio in their local forms, read back with the libraries themselves. Servers are not covered, apart
from one that is not there.
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatlearn.errors import ConfigError
from chatlearn.observe.sinks import Sink, open_sinks

CONFIG = {"runtime": {"seed": 7, "exp_name": "toy"}, "models": {"policy": {"args": {"lr": 0.5}}}}
ROWS = {
    1: {"a/loss": 0.1, "a/bad": math.nan, "num_samples": 20, "text": "left out"},
    2: {"a/loss": 1 / 3, "num_samples": 40},
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings and no home of whoever runs the tests; W&B, which reads its environment once, starts anew."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def _open(folder: Path, name: str, first_episode: int = 1) -> Sink:
    folder.mkdir(exist_ok=True)
    opened = open_sinks(folder, first_episode, [name], exp_name="toy", config=CONFIG)
    opened[0].close()
    return opened[1]


def _write(folder: Path, name: str, rows: dict[int, dict[str, Any]], first_episode: int = 1) -> Sink:
    sink = _open(folder, name, first_episode)
    for episode, row in rows.items():
        sink.write(episode, row)
    sink.close()
    return sink


def _ids(folder: Path) -> dict[str, str]:
    return json.loads((folder / "sinks.json").read_text())


# W&B ------------------------------------------------------------------------------------------------------------------


def _wandb_records(folder: Path) -> Iterator[Any]:
    """The records of all parts of an offline run, in order, as W&B's own messages."""
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        yield from _wandb_part(path)


def _wandb_part(path: Path) -> list[Any]:
    """W&B's service may write the last records a moment after the end of a run; the one of the exit is the last."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + 60
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in _log_records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.02)


def _log_records(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, fragments behind headers of 7 bytes."""
    assert data[:4] in (b":W&B", b"")
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if left < 7 or kind == 0:  # the rest of the block is padding
            at += left
            continue
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last fragment
            yield whole
            whole = b""


def _wandb_history(folder: Path) -> list[dict[str, Any]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in _wandb_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def _wandb_runs(folder: Path) -> list[Any]:
    return [r.run for r in _wandb_records(folder) if r.WhichOneof("record_type") == "run"]


@pytest.mark.parametrize("mode", ["offline", None])
def test_wandb_offline(mode: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key and without a mode nothing asks, nothing connects: the run is offline and says how to send it."""
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    sink = _write(tmp_path / "toy-2", "wandb", ROWS)
    history = _wandb_history(tmp_path / "toy-2")
    assert [row["_step"] for row in history] == [1, 2]
    assert [row["a/loss"] for row in history] == [0.1, 1 / 3]
    assert [row["num_samples"] for row in history] == [20, 40]
    assert "text" not in history[0]
    assert math.isnan(float(history[0]["a/bad"]))
    run = _wandb_runs(tmp_path / "toy-2")[0]
    assert (run.project, run.display_name, run.run_id) == ("toy", "toy-2", _ids(tmp_path / "toy-2")["wandb"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["runtime"] == CONFIG["runtime"]
    assert "wandb sync " + str(tmp_path / "toy-2" / "wandb") in sink.note


def test_wandb_follows_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_NAME", "first try")
    _write(tmp_path / "toy", "wandb", ROWS)
    run = _wandb_runs(tmp_path / "toy")[0]
    assert (run.project, run.display_name) == ("ours", "first try")


def test_wandb_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "disabled" in _write(tmp_path / "toy", "wandb", ROWS).note
    assert list((tmp_path / "toy").rglob("*.wandb")) == []


def test_wandb_goes_on_with_the_same_run(tmp_path: Path) -> None:
    _write(tmp_path / "toy", "wandb", ROWS)
    first = _ids(tmp_path / "toy")["wandb"]
    _write(tmp_path / "toy", "wandb", {3: {"a/loss": 3.0}}, first_episode=3)
    assert _ids(tmp_path / "toy")["wandb"] == first
    assert {run.run_id for run in _wandb_runs(tmp_path / "toy")} == {first}
    assert sorted(row["_step"] for row in _wandb_history(tmp_path / "toy")) == [1, 2, 3]
    _write(tmp_path / "toy", "wandb", ROWS)  # started again from the beginning: another run
    assert _ids(tmp_path / "toy")["wandb"] != first


def test_wandb_leaves_a_run_of_the_program_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    users = wandb.init(project="mine", dir=tmp_path, settings=wandb.Settings(quiet=True))
    try:
        _write(tmp_path / "toy", "wandb", ROWS)
        assert wandb.run is users
        users.log({"still": 1})
    finally:
        users.finish()


def test_wandb_that_can_not_be_reached_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens here
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
        with pytest.raises(ConfigError, match=r"(?s)The sink wandb: .*WANDB_MODE=offline"):
            _open(tmp_path / "toy", "wandb")


def test_wandb_that_fails_at_the_end_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = _open(tmp_path / "toy", "wandb")
    with monkeypatch.context() as patch:

        def fail(*args: Any, **kwargs: Any) -> None:
            raise wandb.errors.CommError("the server is away")

        patch.setattr(wandb.Run, "finish", fail)
        with pytest.warns(UserWarning, match=r"the server is away.*wandb sync"):
            sink.close()


# MLflow ---------------------------------------------------------------------------------------------------------------


def _mlflow(folder: Path) -> tuple[Any, Any]:
    """A client of the run folder's store, and the run."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow/mlflow.db")
    return client, client.get_run(_ids(folder)["mlflow"])


def _mlflow_values(folder: Path, name: str) -> list[tuple[int, float]]:
    client, run = _mlflow(folder)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_mlflow_in_the_run_folder(tmp_path: Path) -> None:
    sink = _write(tmp_path / "toy-2", "mlflow", {**ROWS, 3: {"kl@end [nats]": 2.0}})
    client, run = _mlflow(tmp_path / "toy-2")
    assert _mlflow_values(tmp_path / "toy-2", "a/loss") == [(1, 0.1), (2, 1 / 3)]
    assert math.isnan(_mlflow_values(tmp_path / "toy-2", "a/bad")[0][1])
    assert _mlflow_values(tmp_path / "toy-2", "kl_end _nats_") == [(3, 2.0)]
    assert run.data.params["runtime.seed"] == "7"
    assert run.data.params["models.policy.args.lr"] == "0.5"
    assert (run.info.run_name, run.info.status) == ("toy-2", "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "toy"
    assert f"sqlite:///{tmp_path / 'toy-2' / 'mlflow' / 'mlflow.db'}" in sink.note


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_evaluation_before_the_training_is_episode_0(name: str, tmp_path: Path) -> None:
    _write(tmp_path / "toy", name, {0: {"eval/a/loss": 0.5}, **ROWS})
    if name == "wandb":
        assert [row["_step"] for row in _wandb_history(tmp_path / "toy")] == [0, 1, 2]
    else:
        assert _mlflow_values(tmp_path / "toy", "eval/a/loss") == [(0, 0.5)]


def test_mlflow_takes_wide_rows_and_long_values(tmp_path: Path) -> None:
    config = {"models": {"policy": {"args": {f"p{i}": "x" * 9000 for i in range(130)}}}}
    (tmp_path / "toy").mkdir()
    _, sink = open_sinks(tmp_path / "toy", 1, ["mlflow"], exp_name="toy", config=config)
    sink.write(1, {f"m{i}": float(i) for i in range(1500)})
    sink.close("interrupted")
    _, run = _mlflow(tmp_path / "toy")
    assert len(run.data.params) == 130
    assert {name: run.data.metrics[name] for name in ("m0", "m999", "m1499")} == {"m0": 0, "m999": 999, "m1499": 1499}
    assert run.info.status == "KILLED"


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path) -> None:
    _write(tmp_path / "toy", "mlflow", ROWS)
    first = _ids(tmp_path / "toy")["mlflow"]
    _write(tmp_path / "toy", "mlflow", {2: ROWS[2], 3: {"a/loss": 3.0}}, first_episode=2)
    assert _ids(tmp_path / "toy")["mlflow"] == first
    assert _mlflow_values(tmp_path / "toy", "a/loss") == [(1, 0.1), (2, 1 / 3), (3, 3.0)]
    _write(tmp_path / "toy", "mlflow", ROWS)
    assert _ids(tmp_path / "toy")["mlflow"] != first


def test_mlflow_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    _write(tmp_path / "toy", "mlflow", ROWS)
    assert not (tmp_path / "toy" / "mlflow").exists()
    run = MlflowClient(tracking_uri=uri).get_run(_ids(tmp_path / "toy")["mlflow"])
    assert run.data.metrics["a/loss"] == 1 / 3
    assert MlflowClient(tracking_uri=uri).get_experiment_by_name("ours").experiment_id == run.info.experiment_id


def test_mlflow_that_stumbles_gets_its_rows_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    sink = _open(tmp_path / "toy", "mlflow")
    with monkeypatch.context() as patch:

        def fail(*args: Any, **kwargs: Any) -> None:
            raise MlflowException("the server is away")

        patch.setattr(MlflowClient, "log_batch", fail)
        with pytest.warns(UserWarning, match=r"the server is away.*The run goes on"):
            sink.write(1, ROWS[1])
    sink.write(2, ROWS[2])
    sink.close()
    assert _mlflow_values(tmp_path / "toy", "a/loss") == [(1, 0.1), (2, 1 / 3)]


def test_mlflow_that_refuses_the_store_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    with pytest.raises(ConfigError, match=r"(?s)The sink mlflow: .*MLFLOW_TRACKING_URI"):
        _open(tmp_path / "toy", "mlflow")


# Trackio --------------------------------------------------------------------------------------------------------------

_TRACKIO = """
import json, math, sys
from pathlib import Path
from chatlearn.observe.sinks import open_sinks

folder = Path(sys.argv[1])
folder.mkdir()
nan = math.nan
names = []
for first, rows in json.loads(sys.argv[2]):
    _, sink = open_sinks(folder, first, ["trackio"], exp_name="toy", config={"seed": 7})
    for episode, row in rows.items():
        sink.write(int(episode), row)
    sink.close()
    names.append(json.loads((folder / "sinks.json").read_text())["trackio"])
from trackio import Api
from trackio.sqlite_storage import SQLiteStorage
runs = {name: SQLiteStorage.get_logs("toy", name) for name in SQLiteStorage.get_runs("toy")}
config = Api().runs("toy")[0].config
print(json.dumps({"names": names, "runs": runs, "note": sink.note, "config": config}))
"""


def _trackio(tmp_path: Path, parts: list[tuple[int, dict[int, dict[str, float]]]]) -> tuple[dict[str, Any], list[str]]:
    """What Trackio has after some parts of a run, in a process of its own (it reads its folder when it is imported)."""
    command = [sys.executable, "-c", textwrap.dedent(_TRACKIO), str(tmp_path / "toy"), json.dumps(parts)]
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, text=True, capture_output=True, check=True, env=environment)
    *printed, last = done.stdout.splitlines()
    return json.loads(last), printed


def test_trackio_goes_on_with_the_same_run(tmp_path: Path) -> None:
    loss = {1: {"loss": 0.1}, 2: {"loss": 0.2}, 3: {"loss": 0.3}}
    parts = [(1, {1: loss[1], 2: loss[2]}), (2, {2: loss[2], 3: loss[3]}), (1, {1: {"loss": 9.0}})]
    found, printed = _trackio(tmp_path, parts)
    first, again, other = found["names"]
    assert first == again != other
    assert sorted((row["step"], row["loss"]) for row in found["runs"][first]) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [(row["step"], row["loss"]) for row in found["runs"][other]] == [(1, 9)]
    assert found["config"]["seed"] == 7
    assert "trackio show --project toy" in found["note"]
    assert printed == []  # the run's own note says where rows go


def test_trackio_refuses_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with pytest.raises(ConfigError, match=r"The sink trackio: .*registry-"):
        open_sinks(tmp_path, 1, ["trackio"], exp_name="registry-toy")
