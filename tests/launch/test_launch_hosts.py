"""`chatlearn launch hosts`: the list, the commands, and a cluster's life, with stand-ins for ssh and Ray.

Not covered: ssh itself. Ray itself is in test_launch_real_ray.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from machines import Machines

from chatlearn.cli import main
from chatlearn.errors import ConfigError
from chatlearn.launch.hosts import Host, read_hosts
from chatlearn.launch.session import ssh_command


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return Machines(tmp_path)


def _words(machines: Machines, hosts: str, *options: str, program: tuple[str, ...] = ("chatlearn", "run", "ppo")):
    ways = ["--ssh", machines.ssh, "--python", machines.python, *options]
    return ["launch", "hosts", "--hosts", hosts, *ways, "--", *program]


# -- the list --


def test_a_file_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("# two\nme@head gpus=8 cpus=64  # big\n\n  b python='/a b/python' address=10.0.0.2\n")
    assert read_hosts(str(path)) == [
        Host("me@head", gpus=8, cpus=64),
        Host("b", address="10.0.0.2", python="/a b/python"),
    ]


def test_names_of_hosts() -> None:
    assert read_hosts("a,me@b, c") == [Host("a"), Host("me@b"), Host("c")]
    assert [host.at(1) for host in read_hosts("a,me@b,fd00::2")] == ["a:1", "b:1", "[fd00::2]:1"]


def test_everything_wrong_with_a_list_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("a gpus=x\n-oProxyCommand=evil\nb disks=3\na\nc gpu\nme@b\nd address='x y'\ne 'f\n")
    with pytest.raises(ConfigError) as caught:
        read_hosts(str(path))
    lines = str(caught.value).splitlines()
    for line, part in zip(
        lines,
        [
            ":1: gpus is a whole number, not 'x'",
            ":2: '-oProxyCommand=evil' is no name of a host",
            ":3: 'disks=3' is not understood",
            ":4: a is listed already",
            ":5: 'gpu' is not understood",
            ":6: b is listed already",
            ":7: 'x y' is no address",
            ":8: No closing quotation",
        ],
        strict=True,
    ):
        assert line.startswith(str(path) + part)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "no host in it"),
        (",", "no host in it"),
        ("a,a", r"--hosts: a is listed already \(--hosts\)"),
        ("a,--rm", "'--rm' is no name of a host"),
        ("a;reboot", "'a;reboot' is no name of a host"),
        ("absent.txt", r"there is no file .*/absent\.txt"),
    ],
)
def test_lists_that_are_none(given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read_hosts(given)


def test_one_address_twice_is_one_host_twice(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a address=10.0.0.1\nb address=10.0.0.1\n")
    with pytest.raises(ConfigError, match=r"hosts:2: 10\.0\.0\.1 is listed already"):
        read_hosts(str(tmp_path / "hosts"))


# -- what is called --


def test_ssh_never_asks_and_its_own_options_count_first() -> None:
    assert ssh_command("/usr/bin/ssh -p 22 -o BatchMode=no")[:5] == ["/usr/bin/ssh", "-p", "22", "-o", "BatchMode=no"]
    assert "BatchMode=yes" in ssh_command("ssh")
    assert ssh_command("'/a b/connect' -x") == ["/a b/connect", "-x"]


def test_a_dry_run_prints_what_bash_understands_and_starts_nothing(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main([*_words(machines, "me@a,b", "--dry-run", "--port", "7000", program=("python", "x.py", "it's $1"))]) == 0
    )
    text = capsys.readouterr().out
    assert machines.told("ray") == []
    assert re.findall(r"^# (.*)$", text, flags=re.M) == ["me@a: Ray's head", "b: Ray", "me@a: the program"]
    assert re.search(r"^ray start --head --port=7000 .*--include-dashboard=false .*--block", text, flags=re.M)
    assert re.search(r"^ray start --address=a:7000 ", text, flags=re.M)
    assert """python x.py 'it'"'"'s $1' --set runtime_env.backend=ray --set runtime_env.address=a:7000 """ in text
    scripts = re.findall(r"<<'END'\n(.*?)END\n", text, flags=re.S)
    assert len(scripts) == 3
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_the_dashboard_is_off_unless_asked_for_and_never_faces_the_network(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    main(_words(machines, "a", "--dry-run"))
    assert "--dashboard-host" not in capsys.readouterr().out
    main(_words(machines, "a", "--dry-run", "--dashboard"))
    assert "--include-dashboard=true --dashboard-host=127.0.0.1" in capsys.readouterr().out


# -- a cluster's life --


def test_a_program_runs_once_on_the_head_of_a_cluster_that_ends_with_it(
    machines: Machines, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("a gpus=8 cpus=4 address=10.0.0.1\nme@b\nc gpus=0\n")
    program = ("chatlearn", "run", "ppo", "a b", "it's", "--resume")
    assert main(_words(machines, str(tmp_path / "hosts"), "--env", "COLOR=$blue 'sky'", program=program)) == 0
    head, *others = machines.told("ray")
    assert head["machine"] == "a"
    assert {"--head", "--port=6379", "--node-ip-address=10.0.0.1", "--num-gpus=8", "--num-cpus=4"} < set(head["words"])
    assert sorted(other["machine"] for other in others) == ["c", "me@b"]
    assert all("--address=10.0.0.1:6379" in other["words"] for other in others)
    assert [other["machine"] for other in others if "--num-gpus=0" in other["words"]] == ["c"]
    for each in (head, *others):
        assert each["folder"] == str(tmp_path / "work")
        assert each["color"] == "$blue 'sky'"
        assert each["mode"] == "token"
        assert re.fullmatch(r"[0-9a-f]{64}", each["token"])
        assert not any(each["token"] in word for word in each["words"])
    assert len({each["token"] for each in (head, *others)}) == 1
    (ran,) = machines.told("program")
    assert ran["machine"] == "a"
    own = ["--set", "runtime_env.backend=ray", "--set", "runtime_env.address=10.0.0.1:6379"]
    assert ran["words"] == ["run", "ppo", "a b", "it's", "--resume", *own]
    assert machines.told("ended")[-1]["machine"] == "a"
    assert len(machines.told("ended")) == 3
    assert capfd.readouterr().out == "the program's own words\n"


def test_tokens_differ_from_launch_to_launch(machines: Machines) -> None:
    for _ in range(2):
        main(_words(machines, "a"))
    assert len({each["token"] for each in machines.told("ray")}) == 2


def test_the_exit_code_is_the_programs(machines: Machines) -> None:
    assert main(_words(machines, "a", program=("chatlearn", "run", "fails"))) == 7
    assert machines.all_ended()


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("down", "down can't be reached:\n    ssh: connect to host down port 22: No route to host\n"),
        (
            "broken",
            "Ray does not start on broken (exit code 3):\n    Local node IP: 10.0.0.1\n    RuntimeError: Version",
        ),
        ("slow", "slow has not joined the cluster at a:6379 within 6 s:\n    Local node IP: 10.0.0.1\n"),
    ],
)
def test_a_host_that_does_not_join_is_named_and_all_others_are_ended(
    host: str, message: str, machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(machines, f"a,{host},b", "--timeout", "6")) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "b has not joined" not in error
    assert machines.told("program") == []
    started = {each["machine"] for each in machines.told("ray")} - {"broken"}
    assert {each["machine"] for each in machines.told("ended")} == started


def test_all_hosts_that_do_not_join_are_named_at_once(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_words(machines, "a,down,broken")) == 1
    error = capsys.readouterr().err
    assert "down can't be reached" in error
    assert "Ray does not start on broken" in error


def test_a_head_that_does_not_start_keeps_the_others_from_starting(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(machines, "broken,b")) == 1
    assert "Ray does not start on broken (exit code 3)" in capsys.readouterr().err
    assert [each["machine"] for each in machines.told("ray")] == ["broken"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workdir", "/no/such folder"), "/no/such folder: No such file or directory"),
        (("--python", "/usr/absent/python"), "there is no command ray here: install chatlearn[ray] there"),
    ],
)
def test_what_a_host_lacks_is_told(
    options: tuple[str, ...],
    message: str,
    machines: Machines,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert main(_words(machines, "a", *options)) == 1
    assert message in capsys.readouterr().err


def _launched(machines: Machines, *words: str) -> subprocess.Popen[str]:
    """A launcher of its own, whose program runs."""
    command = [sys.executable, "-m", "chatlearn", *_words(machines, *words, program=("chatlearn", "wait"))]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "running\n"
    return launcher


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_program_which_ends_before_its_cluster(number: int, machines: Machines) -> None:
    launcher = _launched(machines, "a,b")
    assert machines.told("ended") == []
    launcher.send_signal(number)
    assert launcher.communicate()[0] == f"told to end {number}\n"
    assert launcher.returncode == 40 + number
    assert len(machines.told("ended")) == 2


@pytest.mark.parametrize("ignored", [True, False])
def test_the_end_of_the_terminal_ends_a_launcher_unless_nohup_says_otherwise(
    ignored: bool, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        launcher = _launched(machines, "a")  # it inherits what is ignored
    finally:
        signal.signal(signal.SIGHUP, before)
    launcher.send_signal(signal.SIGHUP)
    if ignored:
        launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate()
    number = signal.SIGINT if ignored else signal.SIGTERM  # the one that a program with files to close knows
    assert output == f"told to end {number:d}\n"
    assert launcher.returncode == 40 + number
    assert machines.all_ended()


def test_a_killed_launcher_leaves_nothing_behind(machines: Machines) -> None:
    launcher = _launched(machines, "a,b")
    launcher.kill()
    assert launcher.communicate()[0] == f"told to end {signal.SIGTERM:d}\n"  # its output ends: the program has ended
    assert machines.all_ended()
    assert len(machines.told("ended")) == 2


def test_a_node_that_ends_while_the_program_runs_is_told(machines: Machines) -> None:
    launcher = _launched(machines, "a,brief")
    assert launcher.stderr is not None
    for line in launcher.stderr:
        if "Ray on brief has ended (exit code 4):" in line:
            break
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate()
    assert launcher.returncode == 40 + signal.SIGTERM


def test_a_variable_is_taken_from_here_when_it_has_no_value(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLOR", "green")
    assert main(_words(machines, "a", "--env", "COLOR")) == 0
    assert machines.told("ray")[0]["color"] == "green"
    monkeypatch.delenv("COLOR")
    assert main(_words(machines, "a", "--env", "COLOR")) == 1
    assert "--env COLOR: COLOR is not set here" in capsys.readouterr().err
    assert main(_words(machines, "a", "--env", "2=3")) == 1
    assert "'2' is no name of a variable" in capsys.readouterr().err


def test_another_users_folder_is_not_used(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A link in its place is how somebody else would lead Ray's sessions elsewhere; ``id`` names the folder."""
    name = f"launch-test-{os.getpid()}"
    Machines.script(Path(machines.python).parent / "id", f"#!/bin/bash\necho {name}\n")
    link = Path(f"/tmp/chatlearn-ray-{name}")
    link.symlink_to(tmp_path)
    try:
        assert main(_words(machines, "a")) == 1
        assert f"{link} on " in (error := capsys.readouterr().err)
        assert "belongs to somebody else" in error
    finally:
        link.unlink()
