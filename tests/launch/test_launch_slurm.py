"""`chatlearn launch slurm`: the script, run by bash with stand-ins for Slurm's commands and for Ray.

Not covered: Slurm itself.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from machines import Machines

from chatlearn.cli import main

SRUN = """\
#!/bin/bash
# the step of one task on one node: `srun --option=value … command …`
for word in "$@"; do
  case $word in
    --nodelist=*) export MACHINE=${{word#*=}} ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
echo "$MACHINE" >>{folder}/steps
exec "$@"
"""

SCONTROL = """\
#!/bin/bash
[ "$1 $2" = "show hostnames" ] || exit 1
tr , '\\n' <<<"$3"
"""


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    work = tmp_path / "my work"
    work.mkdir()
    monkeypatch.chdir(work)
    found = Machines(tmp_path)
    slurm = tmp_path / "slurm"
    slurm.mkdir()
    found.script(slurm / "srun", SRUN.format(folder=tmp_path))
    found.script(slurm / "scontrol", SCONTROL)
    monkeypatch.setenv("PATH", f"{slurm}:{os.environ['PATH']}")
    return found


def _script(machines: Machines, *options: str, program: tuple[str, ...] = ("chatlearn", "run", "ppo")) -> str:
    words = ["--python", machines.python, "-o", "job.sh", *options, "--", *program]
    assert main(["launch", "slurm", *words]) == 0
    return Path("job.sh").read_text()


def _job(machines: Machines, nodes: str) -> subprocess.Popen[str]:
    """What Slurm does with a job: runs its script on the first node, with a description of the job."""
    described = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": nodes, "SLURM_CPUS_ON_NODE": "16"}
    own = {"MACHINE": nodes.split(",")[0], "RECORD": str(machines._record)}
    return subprocess.Popen(
        ["bash", "job.sh"],
        env={**os.environ, **described, **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _asked(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, flags=re.M))


def test_what_slurm_is_asked_for(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--nodes", "2", "--gpus-per-node", "8", "--partition", "big", "--time", "1-02:00:00"]
    script = _script(machines, *options, "--sbatch", "qos=high", "--sbatch=--mem=0")
    asked = _asked(script)
    assert asked | {"nodes": "2", "gpus-per-node": "8", "partition": "big", "time": "1-02:00:00"} == asked
    assert asked | {"ntasks-per-node": "1", "qos": "high", "mem": "0", "exclusive": ""} == asked
    assert asked["chdir"] == f"'{Path.cwd()}'"
    assert capsys.readouterr().out == "sbatch job.sh\n"


def test_a_part_of_a_node_is_not_exclusive(machines: Machines) -> None:
    asked = _asked(_script(machines, "--nodes", "1", "--cpus-per-node", "16"))
    assert asked["cpus-per-task"] == "16"
    assert "exclusive" not in asked
    assert "gpus-per-node" not in asked


def test_the_script_is_printed_without_a_file(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "slurm", "--nodes", "3", "--", "chatlearn", "run", "ppo"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash\n")
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_a_job_runs_the_program_on_a_cluster_of_its_nodes(machines: Machines, tmp_path: Path) -> None:
    program = ("chatlearn", "run", "a b", "it's", "$HOME", "--resume")
    _script(machines, "--nodes", "3", "--gpus-per-node", "4", "--env", "COLOR=$x y", program=program)
    job = _job(machines, "n1,n2,n3")
    output, error = job.communicate()
    assert job.returncode == 0, error
    head, *others = machines.told("ray")
    port = 20000 + 123456 % 10000
    assert head["machine"] == "n1"
    assert {"--head", f"--port={port}", "--num-gpus=4", "--num-cpus=16", "--include-dashboard=false"} < set(
        head["words"]
    )
    assert sorted(other["machine"] for other in others) == ["n2", "n3"]
    assert all({f"--address=n1:{port}", "--num-gpus=4", "--num-cpus=16"} < set(each["words"]) for each in others)
    assert {(each["mode"], each["color"]) for each in (head, *others)} == {("token", "$x y")}
    assert re.fullmatch(r"[0-9a-f]{64}", head["token"])
    assert len({each["token"] for each in (head, *others)}) == 1
    (ran,) = machines.told("program")
    own = ["--set", "runtime_env.backend=ray", "--set", f"runtime_env.address=n1:{port}"]
    assert (ran["machine"], ran["words"]) == ("n1", ["run", "a b", "it's", "$HOME", "--resume", *own])
    assert machines.told("ended")[-1]["machine"] == "n1"
    assert len(machines.told("ended")) == 3
    assert output == f"Ray runs at n1:{port} on 3 nodes.\nthe program's own words\n"


def test_a_job_ends_with_the_programs_exit_code(machines: Machines) -> None:
    _script(machines, "--nodes", "1", program=("chatlearn", "run", "fails"))
    job = _job(machines, "n1")
    job.communicate()
    assert job.returncode == 7
    assert machines.all_ended()


@pytest.mark.parametrize(("host", "last"), [("broken", "RuntimeError: Version mismatch"), ("slow", "Local node IP")])
def test_a_job_names_a_node_that_does_not_join(host: str, last: str, machines: Machines) -> None:
    _script(machines, "--nodes", "2", "--timeout", "6")
    job = _job(machines, f"n1,{host}")
    _, error = job.communicate()
    assert job.returncode == 1
    assert f"Ray has not started on {host} within 6 s, or has ended. Its last lines:" in error
    assert last in error
    assert machines.told("program") == []
    assert "n1" in {each["machine"] for each in machines.told("ended")}


def test_a_job_that_is_told_to_end_ends_the_program_first(machines: Machines) -> None:
    _script(machines, "--nodes", "2", program=("chatlearn", "wait"))
    job = _job(machines, "n1,n2")
    assert job.stdout is not None
    assert [job.stdout.readline() for _ in range(2)][1] == "running\n"
    assert machines.told("ended") == []
    job.send_signal(signal.SIGTERM)
    assert job.communicate()[0] == f"told to end {signal.SIGTERM:d}\n"
    assert job.returncode == 143
    assert len(machines.told("ended")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0", "--", "chatlearn", "run", "x"], "a whole number from 1 on is needed, not '0'"),
        (["--nodes", "x", "--", "chatlearn", "run", "x"], "a whole number from 1 on is needed, not 'x'"),
        (["--", "chatlearn", "run", "x"], "the following arguments are required: --nodes"),
    ],
)
def test_unusable_arguments(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["launch", "slurm", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_secrets_stay_out_of_the_file(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["COLOR"] = "secret"
    assert main(["launch", "slurm", "--nodes", "1", "--env", "COLOR", "--", "chatlearn", "run", "x"]) == 1
    assert "--env COLOR: give NAME=VALUE" in capsys.readouterr().err
