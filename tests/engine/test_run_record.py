"""What a run leaves behind, and how a later run finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml

import chatlearn
from chatlearn import CheckpointError, Engine, Environment, StepError
from chatlearn.config import load_config
from chatlearn.engine.engine import Interrupted


def _learned(folder: Path, **runtime: Any) -> Engine:
    chatlearn.init(toys.settings(folder, **runtime))
    engine = toys.make_engine()
    engine.learn()
    return engine


def _interrupted(folder: Path, iteration: int, **runtime: Any) -> None:
    toys.INTERRUPT["learner"] = iteration
    with pytest.raises(Interrupted):
        _learned(folder, **runtime)
    toys.INTERRUPT.clear()


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_folder_of_a_finished_run(tmp_path: Path) -> None:
    engine = _learned(tmp_path, save_episode_interval=1, export=["policy"])
    run = tmp_path / "toy"
    assert engine.run.path == run
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "trace.json",
        "tensorboard",
        "samples",
        "checkpoints",
        "policy",
        "program.json",
        "result.json",
    }
    result = _result(run)
    assert result["status"] == "finished"
    assert result["episodes"] == 2
    assert result["policy_path"] == str(run / "policy")
    assert Path(result["policy_path"]).is_absolute()
    assert 0 < result["seconds"] < 60


def test_the_configuration_is_written_resolved_and_with_sources(tmp_path: Path) -> None:
    source = tmp_path / "my.yaml"
    source.write_text(f"runtime:\n  num_ppo_episode: 1\n  sample_per_episode: 4\n  output_dir: {tmp_path}\n")
    chatlearn.init(load_config(source, ["runtime.exp_name=written"]))
    toys.make_engine(evaluate=False).learn()
    path = tmp_path / "written" / "config.yaml"
    text = path.read_text()
    values = yaml.safe_load(text)
    assert values["runtime"]["num_episode"] == 1
    assert values["runtime"]["num_training_epoch"] == 1  # a default
    assert load_config(path) == chatlearn.get_config()
    line = next(line for line in text.splitlines() if "exp_name" in line)
    assert "command line" in line
    assert "my.yaml:3" in next(line for line in text.splitlines() if "sample_per_episode" in line)


def test_the_exported_policy_is_the_trained_one(tmp_path: Path) -> None:
    engine = _learned(tmp_path, export=["policy"])
    exported = _numbers((tmp_path / "toy" / "policy" / "weights.txt").read_text())
    assert exported == toys.weights_of(engine, "learner").tolist()


def _numbers(text: str) -> list[float]:
    return json.loads(text)[0]


def test_several_exports_lie_beside_each_other(tmp_path: Path) -> None:
    """The folder ``policy/`` belongs to the module of that name, wherever it stands in the list."""

    class Named(toys.Policy):
        def export(self, path: str) -> None:
            Path(path).mkdir()
            (Path(path) / "name").write_text(self.name)

    policy, other = Named("policy"), Named("other")
    for exp_name, names in {"first": ["policy", "other"], "last": ["other", "policy"]}.items():
        chatlearn.init(toys.settings(tmp_path, num_episode=1, export=names, exp_name=exp_name))
        engine = Engine(Environment(lambda b: other.forward_step(policy.forward_step(b)))).set_dataset([1, 2])
        engine.learn()
        run = tmp_path / exp_name
        assert (run / "policy" / "name").read_text() == "policy"
        assert (run / "other" / "name").read_text() == "other"
        assert _result(run)["policy_path"] == str(run / "policy")


def test_a_single_export_of_another_name_is_the_policy(tmp_path: Path) -> None:
    class Exporting(toys.Policy):
        pass

    actor = Exporting("actor")
    chatlearn.init(toys.settings(tmp_path, num_episode=1, export="actor"))
    Engine(Environment(lambda batch: actor.forward_step(batch))).set_dataset([1, 2]).learn()
    assert (tmp_path / "toy" / "policy" / "weights.txt").is_file()


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (3, 3), (10, 10), (16, 16), ("all", 20)])
def test_samples_are_written_row_by_row(limit: Any, count: int, tmp_path: Path) -> None:
    _learned(tmp_path, log_samples=limit)
    files = sorted((tmp_path / "toy" / "samples").glob("*.jsonl")) if count else []
    assert len(files) == (2 if count else 0)
    for episode, file in enumerate(files):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["sample_id"] for row in rows] == [20 * episode + i for i in range(count)]
        assert [row["weight_version"] for row in rows] == [episode + 1] * count
        for row in rows:
            target = toys.math.sin(row["prompt"] / 2)
            assert row["target"] == pytest.approx(target, abs=1e-6)
            assert row["rewards"] == pytest.approx(-((row["action"] - target) ** 2), abs=1e-5)


def test_samples_show_the_tokens_of_the_response_only(tmp_path: Path) -> None:
    import torch

    class Tokens(chatlearn.BaseModule):
        def forward_step(self, data: dict[str, Any]) -> dict[str, Any]:
            return {
                "prompt": data["prompt"],
                "tokens": torch.tensor([[0, 5, 6, 7], [3, 8, 9, 0]]),
                "response_mask": torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]),
                "logprobs": torch.tensor([[0.0, 0.0, -1.0, -2.0], [0.0, -3.0, -4.0, 0.0]]),
                "nested": {"flag": torch.tensor([True, False])},
            }

    module = Tokens("tokens")
    chatlearn.init(toys.settings(tmp_path, num_episode=1, sample_per_episode=2))
    Engine(Environment(lambda batch: module.forward_step(batch))).set_dataset(["a"]).learn()
    lines = (tmp_path / "toy" / "samples" / "episode-000001.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["tokens"] for row in rows] == [[6, 7], [8, 9]]
    assert [row["logprobs"] for row in rows] == [[-1.0, -2.0], [-3.0, -4.0]]
    assert [row["nested"] for row in rows] == [{"flag": True}, {"flag": False}]
    assert [row["prompt"] for row in rows] == ["a", "a"]


def test_a_run_folder_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _learned(tmp_path)
    first = {path: path.read_bytes() for path in (tmp_path / "toy").rglob("*") if path.is_file()}
    capsys.readouterr()
    _learned(tmp_path, seed=3)
    assert f"{tmp_path / 'toy'} is taken. This run writes to {tmp_path / 'toy-2'}" in capsys.readouterr().out
    _learned(tmp_path, seed=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toy-2", "toy-3"]
    assert {path: path.read_bytes() for path in (tmp_path / "toy").rglob("*") if path.is_file()} == first


def test_an_interrupted_run_closes_its_files_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(tmp_path, iteration=4)
    run = tmp_path / "toy"
    assert _result(run)["status"] == "interrupted"
    assert _result(run)["episodes"] == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if f"runtime.resume={run}" in line]
    assert len(lines) == 1
    assert "interrupted after 1 complete" in lines[0]
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        open_files = [os.readlink(path) for path in descriptors.iterdir() if path.is_symlink()]
        assert [name for name in open_files if name.startswith(str(tmp_path))] == []


@pytest.mark.parametrize("iteration", [None, 4])
def test_every_sink_is_closed_once(iteration: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording:
        def write(self, episode: int, row: Any) -> None:
            toys.EVENTS.append(("row", episode))

        note = ""

        def close(self, status: str = "finished") -> None:
            toys.EVENTS.append(("closed",))

    monkeypatch.setattr("chatlearn.engine.run.open_sinks", lambda *args, **kwargs: [Recording(), Recording()])
    if iteration is None:
        _learned(tmp_path)
    else:
        _interrupted(tmp_path, iteration)
    rows = [1, 1, 2, 2] if iteration is None else [1, 1]
    assert [event for event in toys.EVENTS if event[0] in ("row", "closed")] == [
        *(("row", episode) for episode in rows),
        ("closed",),
        ("closed",),
    ]


def test_a_failed_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(toys.Policy):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            if iteration == 4:
                raise ValueError("no more")
            return super().forward_step(data, iteration)

    chatlearn.init(toys.settings(tmp_path))
    with pytest.raises(StepError):
        toys.make_engine(Failing).learn()
    assert _result(tmp_path / "toy")["status"] == "failed"
    assert f"runtime.resume={tmp_path / 'toy'}" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["auto", "run folder", "checkpoint"])
def test_ways_to_resume(way: str, tmp_path: Path) -> None:
    whole = toys.rows_of(_learned(tmp_path / "whole", num_episode=3).run.path)
    _interrupted(tmp_path, iteration=7, num_episode=3, save_episode_interval=1)
    run = tmp_path / "toy"
    resume = {"auto": "auto", "run folder": str(run), "checkpoint": str(run / "checkpoints" / "episode-000001")}[way]
    toys.EVENTS.clear()
    engine = _learned(tmp_path, num_episode=3, save_episode_interval=1, resume=resume)
    assert engine.run.path == run
    assert toys.rows_of(run) == whole
    # the run folder goes on after episode 2, the older checkpoint after episode 1
    assert toys.events("learner.train_step")[0][2]["episode"] == (1 if way == "checkpoint" else 2)
    assert _result(run)["status"] == "finished"
    assert _result(run)["episodes"] == 3


def test_rows_that_a_resume_replaces_are_kept_aside(tmp_path: Path) -> None:
    _interrupted(tmp_path, iteration=7, num_episode=3)
    _learned(tmp_path, num_episode=3, resume="auto")
    aside = (tmp_path / "toy" / "metrics.discarded.jsonl").read_text().splitlines()
    assert [json.loads(line)["episode"] for line in aside] == [1, 2]
    assert [row["episode"] for row in toys.rows_of(tmp_path / "toy")] == [1, 2, 3]


@pytest.mark.parametrize("interval", [1, None])
def test_tensorboard_shows_each_episode_once_after_a_resume(interval: int | None, tmp_path: Path) -> None:
    """Read with TensorBoard's own reader; the run is resumed from a checkpoint, or started again without one."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _interrupted(tmp_path, iteration=7, num_episode=3, save_episode_interval=interval)
    _learned(tmp_path, num_episode=3, save_episode_interval=interval, resume="auto")
    reader = EventAccumulator(str(tmp_path / "toy" / "tensorboard"))
    reader.Reload()
    scalars = reader.Scalars("learner/loss")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    rows = toys.rows_of(tmp_path / "toy")
    assert [scalar.value for scalar in scalars] == pytest.approx([row["learner/loss"] for row in rows], rel=1e-6)


def test_after_going_back_the_older_checkpoint_is_the_newest(tmp_path: Path) -> None:
    """Otherwise a second resume would jump ahead of the metrics that the first one moved aside."""
    whole = toys.rows_of(_learned(tmp_path / "whole", num_episode=4).run.path)
    _interrupted(tmp_path, iteration=10, num_episode=4, save_episode_interval=1)
    back = str(tmp_path / "toy" / "checkpoints" / "episode-000001")
    _interrupted(tmp_path, iteration=4, num_episode=4, save_episode_interval=1, resume=back)
    _learned(tmp_path, num_episode=4, save_episode_interval=1, resume="auto")
    assert toys.rows_of(tmp_path / "toy") == whole


def test_a_finished_run_says_so_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _learned(tmp_path, save_episode_interval=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    toys.EVENTS.clear()
    for resume in ("auto", str(tmp_path / "toy")):
        chatlearn.init(toys.settings(tmp_path, resume=resume))
        assert toys.make_engine().learn() is None
        assert "is finished" in capsys.readouterr().out
    assert toys.EVENTS == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_auto_without_any_run_begins_one(tmp_path: Path) -> None:
    assert _learned(tmp_path, resume="auto").run.path == tmp_path / "toy"


def test_auto_takes_the_highest_number_of_that_name(tmp_path: Path) -> None:
    for name in ("toy", "toy-2", "toy-10", "toy-9", "toys-11", "other-12"):
        (tmp_path / name).mkdir()
    assert _learned(tmp_path, resume="auto").run.path == tmp_path / "toy-10"


def test_a_run_without_a_checkpoint_starts_again_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = toys.rows_of(_learned(tmp_path / "whole").run.path)
    _interrupted(tmp_path, iteration=4)
    _learned(tmp_path, resume=str(tmp_path / "toy"))
    assert "no checkpoint yet" in capsys.readouterr().out
    assert toys.rows_of(tmp_path / "toy") == whole


def test_resuming_from_nowhere(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path / "runs", resume=str(tmp_path / "absent")))
    with pytest.raises(CheckpointError, match=r"absent is neither a run folder nor a checkpoint.*Give"):
        toys.make_engine().learn()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    _interrupted(tmp_path, iteration=4, save_episode_interval=1)
    for file in (tmp_path / "toy" / "checkpoints" / "episode-000001").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"rank0\.safetensors is cut off.*\n.*No other checkpoint"):
        _learned(tmp_path, resume="auto")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    import torch

    class Wider(toys.Learner):
        def setup(self) -> None:
            self.model = torch.nn.Linear(3, 1)
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    _interrupted(tmp_path, iteration=4, save_episode_interval=1)
    chatlearn.init(toys.settings(tmp_path, resume="auto", allow_change=["classes", "datasets"]))
    learner = Wider("learner")
    engine = Engine(None, chatlearn.Trainer(lambda batch: learner.train_step(batch))).set_dataset(range(9))
    with pytest.raises(CheckpointError, match=r"learner: the state in .* does not fit what setup\(\) made"):
        engine.learn()


def test_engine_run_before_learning(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path))
    with pytest.raises(chatlearn.EngineError, match="no run yet"):
        _ = toys.make_engine().run


def test_times_cover_the_episode(tmp_path: Path) -> None:
    """Starting the modules is no part of the first sync."""
    import time

    class Slow(toys.Policy):
        def setup(self) -> None:
            super().setup()
            time.sleep(0.3)

    chatlearn.init(toys.settings(tmp_path, num_episode=1))
    toys.make_engine(Slow).learn()
    row = json.loads((tmp_path / "toy" / "metrics.jsonl").read_text())
    assert row["time/sync_seconds"] < 0.2
    assert row["time/setup_seconds"] > 0.3
    phases = [v for k, v in row.items() if k.startswith("time/") and k.endswith("_seconds") and "episode" not in k]
    assert row["time/episode_seconds"] == pytest.approx(sum(phases))


def test_the_result_says_running_while_it_runs(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint of a finished one is not finished."""

    class Reading(toys.Policy):
        def forward_step(self, data: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
            toys.EVENTS.append(("status", _result(tmp_path / "toy")["status"]))
            return super().forward_step(data, iteration)

    _learned(tmp_path, save_episode_interval=1)
    checkpoint = tmp_path / "toy" / "checkpoints" / "episode-000001"
    chatlearn.init(toys.settings(tmp_path, resume=str(checkpoint)))
    toys.make_engine(Reading).learn()
    assert {event[1] for event in toys.events("status")} == {"running"}
    assert _result(tmp_path / "toy")["status"] == "finished"
