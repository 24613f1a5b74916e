"""The demo from beginning to end, much shortened: what it leaves behind, that others can read it, that it resumes.

That it learns (held-out accuracy of at least 0.90 from at most 0.50) takes a minute a seed and is measured by
benchmarks/recipe_seeds.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatlearn.cli import main
from chatlearn.recipes.tasks.spell_backward import load_splits

SHORT = [
    "models.warm_start.args.num_steps=150",
    "runtime.num_episode=6",
    "runtime.eval_episode_interval=3",
    "runtime.save_episode_interval=2",
    "runtime.log_interval=1",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(folder, *arguments):
    return [sys.executable, "-m", "chatlearn", "run", "ppo", f"runtime.output_dir={folder}", *SHORT, *arguments]


def finished(*arguments, **options):
    """The finished process of a command, with what it printed."""
    return subprocess.run(*arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False, **options)


def rows(run):
    """The metrics of a run without the times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = finished(command(folder))
    assert done.returncode == 0, done.stderr
    return folder / "ppo", done.stdout


@pytest.mark.slow
def test_the_run_folder_holds_what_the_documentation_lists(demo):
    run, output = demo
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["episodes"] == 6
    assert 0 <= result["start_accuracy"] <= 0.5
    assert 0 <= result["final_accuracy"] <= 1
    assert Path(result["policy_path"]) == run / "policy"
    assert [row["episode"] for row in rows(run)] == [1, 2, 3, 4, 5, 6]
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((run / "samples").glob("*.jsonl"))) == 6
    assert list((run / "tensorboard").glob("events.*"))
    assert "seed" in (run / "config.yaml").read_text()
    assert f"{result['start_accuracy']:.3f} -> {result['final_accuracy']:.3f}" in " ".join(output.split())
    sample = json.loads((run / "samples" / "episode-000001.jsonl").read_text().splitlines()[0])
    assert {"prompt", "response", "rewards", "advantages", "logprobs", "weight_version"} <= set(sample)


@pytest.fixture(params=["of the run", "of its last checkpoint"])
def exported(request, demo, tmp_path):
    """The folder of the trained policy, written in two ways."""
    run, _ = demo
    if request.param == "of the run":
        return run / "policy"
    assert main(["export", str(run), "--to", "hf", "-o", str(tmp_path / "exported")]) == 0
    return tmp_path / "exported"


@pytest.mark.slow
def test_the_exported_policy_answers_raw_questions_without_chatlearn(demo, exported):
    """Transformers alone, on the raw text of the held-out questions, gives the accuracy that the run reports."""
    run, _ = demo
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    held_out = load_splits().held_out
    encoded = tokenizer([sample["entry"]["question"] for sample in held_out], return_tensors="pt", padding=True)
    generated = model.generate(**encoded)[:, encoded["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(generated, skip_special_tokens=True)
    right = [a.lower() == s["entry"]["answer"].lower() for a, s in zip(answers, held_out, strict=True)]
    assert sum(right) / len(right) == json.loads((run / "result.json").read_text())["final_accuracy"]


@pytest.mark.slow
def test_ctrl_c_in_the_middle_and_resume_give_the_same_run(demo, tmp_path):
    whole, _ = demo
    model = f"models.policy.args.model_path={whole}/warm_start/policy"
    process = subprocess.Popen(
        command(tmp_path, model), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run = tmp_path / "ppo"
    give_up = time.monotonic() + 120
    while (time.monotonic() < give_up and not (run / "metrics.jsonl").exists()) or len(rows(run)) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"runtime.resume={run}" in output
    assert len(rows(run)) < 6, "the interrupt came too late to test anything"
    done = finished(command(tmp_path, model, "--resume"))
    assert done.returncode == 0, done.stderr
    assert rows(run) == rows(whole)
    ours, theirs = (load_file(folder / "policy" / "model.safetensors") for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = finished(command(tmp_path, model, "--resume"))
    assert again.returncode == 0
    assert "is finished" in again.stdout


@pytest.mark.slow
def test_a_warm_start_that_is_killed_again_and_again_gives_the_same_model(demo, tmp_path):
    """While its model to begin with is written, in its first episode, and between its last episode and its end."""
    whole, _ = demo
    folder = tmp_path / "ppo" / "warm_start"
    for reached in (folder / "initial", folder / "metrics.jsonl", folder / "policy"):
        process = subprocess.Popen(
            command(tmp_path, "--resume"), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up and process.poll() is None and not reached.exists():
            time.sleep(0.001)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
    done = finished(command(tmp_path, "--resume", "runtime.num_episode=1", "runtime.eval_episode_interval=0"))
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(run / "policy" / "model.safetensors") for run in (folder, whole / "warm_start"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("last_checkpoint", ["episode-000006", "episode-000004"])
def test_a_run_killed_after_its_last_episode_is_measured_when_it_is_resumed(demo, tmp_path, last_checkpoint):
    """The engine writes that the run is finished; the held-out figures come after that."""
    whole, _ = demo
    run = tmp_path / "ppo"
    shutil.copytree(whole, run)
    wanted = json.loads((run / "result.json").read_text())
    left = {key: value for key, value in wanted.items() if key not in ("start_accuracy", "final_accuracy")}
    (run / "result.json").write_text(json.dumps(left))
    for checkpoint in (run / "checkpoints").glob("episode-*"):
        if checkpoint.name > last_checkpoint:
            shutil.rmtree(checkpoint)
    model = f"models.policy.args.model_path={whole}/warm_start/policy"
    done = finished(command(tmp_path, model, "--resume"))
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    figures = ("status", "episodes", "start_accuracy", "final_accuracy")
    assert {key: result[key] for key in figures} == {key: wanted[key] for key in figures}
    assert rows(run) == rows(whole)
    again = finished(command(tmp_path, model, "--resume"))
    assert "is finished" in again.stdout


@pytest.mark.slow
def test_replicas_and_isolation_change_no_bit(demo, tmp_path):
    """Each by itself is tested with small modules in tests/engine."""
    whole, _ = demo
    model = f"models.policy.args.model_path={whole}/warm_start/policy"
    done = finished(command(tmp_path, model, "models.policy.num_replica=3", "runtime_env.isolate=true"))
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "ppo") == rows(whole)


def test_check_prints_both_flows_and_makes_nothing(tmp_path):
    done = finished([sys.executable, "-m", "chatlearn", "check", "ppo"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("warm_start.train_step", "policy.forward_step", "ppo_value.train_step"):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_key_ends_the_demo_before_it_starts(tmp_path):
    done = finished(command(tmp_path, "runtime.num_epsiode=3"))
    assert done.returncode == 1
    assert "num_episode" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
