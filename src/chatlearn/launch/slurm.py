"""The script of a Slurm job: Ray on its nodes for as long as the program runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from chatlearn.launch.program import in_shell, with_cluster
from chatlearn.launch.scripts import STARTED, common_options, head_command, own_temp_dir

END_SECONDS = 90
"""Before the end of its time that a job is told to end; the run's files are closed, and it can be resumed."""


@dataclass(frozen=True)
class Job:
    """What Slurm is asked for.

    Attributes:
        num_nodes: of one task each.
        gpus_per_node: 0 for none.
        cpus_per_node: ``None`` takes whole nodes.
        folder: that the job starts in, shared by the nodes.
        python: path of the Python that has chatlearn and Ray, on all nodes.
        name: of the job.
        options: further ones of ``sbatch``: keyword -> value.
        timeout: seconds that Ray has to start on a node.
        variables: of the environment.
    """

    num_nodes: int
    gpus_per_node: int
    cpus_per_node: int | None
    folder: str
    python: str
    name: str = "chatlearn"
    options: dict[str, str] = field(default_factory=dict[str, str])
    timeout: int = 120
    variables: dict[str, str] = field(default_factory=dict[str, str])


def slurm_script(job: Job, words: Sequence[str]) -> str:
    """The script, for ``sbatch``."""
    asked = {
        "job-name": job.name,
        "nodes": str(job.num_nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(job.gpus_per_node)} if job.gpus_per_node else {}),
        **({"cpus-per-task": str(job.cpus_per_node)} if job.cpus_per_node else {}),
        "chdir": job.folder,
        "signal": f"B:TERM@{END_SECONDS}",
        "output": "%x-%j.log",
        **job.options,
    }
    lines = [f"#SBATCH --{key}={shlex.quote(value)}" for key, value in asked.items()]
    if job.cpus_per_node is None:
        lines.append("#SBATCH --exclusive")
    common = " ".join(['--num-cpus="$SLURM_CPUS_ON_NODE"', f"--num-gpus={job.gpus_per_node}", *common_options()])
    step_gpus = f" --gpus-per-node={job.gpus_per_node}" if job.gpus_per_node else ""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in job.variables.items())
    return f"""\
#!/bin/bash
# Ray on the nodes of a job, for one program. Submit it with sbatch.
{chr(10).join(lines)}
set -eo pipefail

export PATH={shlex.quote(str(PurePosixPath(job.python).parent))}:"$PATH"
# Whoever has the token may run programs on the cluster; srun hands it to the other nodes.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
{exports}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${{hosts[0]}}  # the node that this script runs on
port=$((20000 + SLURM_JOB_ID % 10000))  # of this job alone, where nodes are shared
logs=$(mktemp -d)
steps=()
program=

end() {{  # whatever was started here, the program first and the head last
  local status=$?
  trap - EXIT
  trap '' TERM INT
  if [ -n "$program" ]; then
    kill -TERM "$program" 2>/dev/null || true
    wait "$program" 2>/dev/null || true
  fi
  for ((i = ${{#steps[@]}} - 1; i >= 0; i--)); do
    kill -TERM "${{steps[i]}}" 2>/dev/null || true
    wait "${{steps[i]}}" 2>/dev/null || true
  done
  rm -rf "$logs"
  exit "$status"
}}
trap end EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

start() {{  # start HOST WORD…: Ray on a node, as a step of the job
  local host=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE"{step_gpus} --nodelist="$host" \\
    bash -c {shlex.quote(own_temp_dir() + chr(10) + 'exec "$@" ' + common)} - "$@" >"$logs/$host" 2>&1 </dev/null &
  steps+=("$!")
}}

joined() {{  # joined HOST STEP: waits until Ray has started there
  for ((second = 0; second < {job.timeout}; second++)); do
    if grep -q {shlex.quote(STARTED)} "$logs/$1"; then return; fi
    kill -0 "$2" 2>/dev/null || break
    sleep 1
  done
  if grep -q {shlex.quote(STARTED)} "$logs/$1"; then return; fi
  echo "Ray has not started on $1 within {job.timeout} s, or has ended. Its last lines:" >&2
  tail -n 15 "$logs/$1" >&2
  exit 1
}}

start "$head" {" ".join(head_command('"$port"', '"$((port + 1))"'))}
joined "$head" "${{steps[0]}}"
for host in "${{hosts[@]:1}}"; do
  start "$host" ray start --address="$head:$port"
done
for ((i = 1; i < ${{#hosts[@]}}; i++)); do
  joined "${{hosts[i]}}" "${{steps[i]}}"
done
echo "Ray runs at $head:$port on ${{#hosts[@]}} nodes."

{in_shell(with_cluster(words, ""))}"$head:$port" &
program=$!
status=0
wait "$program" || status=$?
program=
exit "$status"
"""
