"""What a notebook does, on a Ray that the engines start; run as ``python notebook.py``, without a guard.

Prints what it found as one line of JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import ray
import torch

import chatlearn
from chatlearn import BaseModule, Engine, Environment, Evaluator, TorchModule, Trainer


class RefusedError(Exception):
    """Of this program, which can't be imported."""

    def __init__(self, what):
        super().__init__(what)
        self.what = what


class Policy(TorchModule):
    def setup(self):
        self.model = torch.nn.Linear(1, 1)

    def build_dataset(self, prompts):
        return [{"x": torch.tensor([float(prompt)])} for prompt in prompts]

    @torch.no_grad()
    def forward_step(self, data, judge=None):
        if (data["x"] < 0).any():
            raise RefusedError("below 0")
        answer = {**data, "y": self.model(data["x"])}
        return answer if judge is None else {**answer, **judge.forward_step(answer)}

    def eval_step(self, data):
        return self.forward_step(data)


class Judge(BaseModule):
    """Counts what it is asked, by whomever."""

    stateful = True

    def setup(self):
        self.asked = 0

    def forward_step(self, data):
        first, self.asked = self.asked, self.asked + len(data["x"])
        return {"number": list(range(first, self.asked))}


class Second(Policy):
    pass


class Learner(TorchModule):
    def setup(self):
        self.model = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def train_step(self, data, train_info):
        for batch in data:
            loss = ((self.model(batch["x"]) - 1) ** 2).mean()
            loss.backward()
            self.log("loss", loss)
            self.log("number", sum(batch["number"]) / len(batch["number"]))
        self.optimizer.step()
        self.optimizer.zero_grad()


def begin(backend):
    sizes = {"num_episode": 2, "sample_per_episode": 12, "generation_batch_size": 2, "train_micro_batch_size": 4}
    chatlearn.init(
        {
            "runtime_env": {"backend": backend},
            "models": {"policy": {"num_replica": 2, "num_cpu": 2}, "second": {}, "judge": {}, "learner": {}},
            "runtime": {**sizes, "output_dir": tempfile.mkdtemp(), "log_interval": 2},
        }
    )
    policy, second, judge, learner = Policy("policy"), Second("second"), Judge("judge"), Learner("learner")

    def flow(batch):
        first = policy.forward_step(batch, judge=judge)
        return first, second.forward_step(first, judge=judge)

    engine = Engine(Environment(flow), Trainer(lambda batch: learner.train_step(batch)))
    engine.set_parameter_sync(learner, policy).set_dataset(range(6))
    return engine, policy


def results(engine, policy):
    """What learning, measuring and calling gave."""
    engine.learn()
    rows = [json.loads(line) for line in Path(engine.run.path / "metrics.jsonl").read_text().splitlines()]
    measured = engine.evaluate(Evaluator(lambda batch: policy.eval_step(batch)).set_dataset([1, 2, 3]))
    called = engine.call(policy.forward_step, {"x": torch.tensor([[5.0]])})
    return [
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows],
        [batch["y"].tolist() for batch in measured.results],
        called["y"].tolist(),
    ]


def descendants():
    """Process ids of all that live below this process, and how they were called."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = folder.joinpath("stat").read_text().rsplit(") ", 1)[1].split()[:2]
            command = folder.joinpath("cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)], commands[int(folder.name)] = int(parent), command
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: commands[pid] for pid in found - {os.getpid()}}


def listening(pids):
    """Addresses that these processes listen at."""
    sockets = set()
    for pid in pids:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        sockets |= {link[8:-1] for link in links if link.startswith("socket:[")}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in sockets:
                addresses.add(local.split(":")[0])
    return sorted(addresses)


local = begin("local")
expected = results(*local)

first, *modules = begin("ray")
found = {"first": results(first, *modules) == expected}
try:
    first.call(modules[0].forward_step, {"x": torch.tensor([[-1.0]])})
except chatlearn.StepError as error:
    found["cause"] = [isinstance(error.__cause__, RefusedError), getattr(error.__cause__, "what", ""), str(error)]
alive = descendants()
found["workers"] = sum(command.startswith("ray::Host") for command in alive.values())
found["listening"] = listening([os.getpid(), *alive])
found["dashboards"] = [c for c in alive.values() if "dashboard.py" in c and "--disable-frontend" not in c]
found["dashboard_url"] = ray._private.worker.global_worker.node.address_info["webui_url"]
found["cores"] = ray.cluster_resources()["CPU"]

second, *modules = begin("ray")  # the first one's replicas are there yet
found["second"] = results(second, *modules) == expected
first.stop()
found["second_goes_on"] = (
    second.call(modules[0].forward_step, {"x": torch.tensor([[5.0]])})["y"].tolist() == expected[2]
)
second.stop()
found["joined"] = ray.is_initialized()

third, *modules = begin("ray")  # on a new Ray
found["third"] = results(third, *modules) == expected
third.stop()
end = time.monotonic() + 20
while descendants() and time.monotonic() < end:
    time.sleep(0.1)
found["left"] = list(descendants().values())
print(json.dumps(found))
