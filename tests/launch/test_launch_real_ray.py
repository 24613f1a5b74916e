"""`chatlearn launch hosts` with Ray itself: two nodes, which are two addresses of this machine.

Not covered: ssh, and two machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
from machines import Machines

from chatlearn.cli import main

PROGRAM = """\
import json, os, sys
import ray

address = sys.argv[-1].removeprefix("runtime_env.address=")
ray.init(address, log_to_driver=False, logging_level="error")


@ray.remote(num_cpus=1)
def place():
    return ray.util.get_node_ip_address(), os.getcwd(), os.environ["COLOR"]


strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
nodes = {node["NodeManagerAddress"]: node for node in ray.nodes() if node["Alive"]}
places = [place.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote() for node in nodes.values()]
found = {name: [node["Resources"].get(kind, 0) for kind in ("CPU", "GPU")] for name, node in nodes.items()}
print(json.dumps([found, sorted(ray.get(places))]))
sys.exit(9)
"""


def _processes(words: str) -> list[str]:
    """Command lines of this machine's processes that contain a text."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_a_program_finds_the_nodes_of_the_list_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    machines = Machines(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "program.py").write_text(PROGRAM)
    (tmp_path / "hosts").write_text("one address=127.0.0.2 cpus=2 gpus=0\ntwo address=127.0.0.3 cpus=1 gpus=3\n")
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1] - 1  # the next one is for Ray's clients
    # sessions of this test alone: `id` names the folder
    programs = tmp_path / "own"
    programs.mkdir()
    name = f"test-{os.getpid()}"
    machines.script(programs / "id", f"#!/bin/bash\necho {name}\n")
    machines.script(programs / "ray", f'#!/bin/bash\nexec {Path(sys.executable).parent}/ray "$@"\n')
    os.symlink(sys.executable, programs / "python3")
    options = ["--ssh", machines.ssh, "--port", str(port), "--env", "COLOR=blue", "--python", str(programs / "python3")]
    program = [sys.executable, "program.py", "--resume"]
    code = main(["launch", "hosts", "--hosts", str(tmp_path / "hosts"), *options, "--", *program])
    output, error = capfd.readouterr()
    assert code == 9, error
    found, places = json.loads(re.findall(r"^\[\{.*$", output, flags=re.M)[-1])
    assert found == {"127.0.0.2": [2, 0], "127.0.0.3": [1, 3]}
    assert places == [["127.0.0.2", str(work), "blue"], ["127.0.0.3", str(work), "blue"]]
    for _ in range(100):
        if not (left := _processes(f"chatlearn-ray-{name}")):
            break
        time.sleep(0.1)
    assert left == []
    shutil.rmtree(f"/tmp/chatlearn-ray-{name}")
