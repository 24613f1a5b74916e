"""A cluster of two nodes on this machine, and an engine that joins it; run as ``python two_nodes.py``, without a guard.

Prints what is where as one line of JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

import chatlearn
from chatlearn import BaseModule, Engine, Environment, TorchModule, Trainer
from chatlearn.runtime.placement import place


class Policy(TorchModule):
    def setup(self):
        self.model = torch.nn.Embedding(10, 10)

    def build_dataset(self, prompts):
        return [{"digit": digit} for digit in prompts]

    @torch.no_grad()
    def forward_step(self, data):
        sums = self.model(data["digit"]).softmax(-1).cumsum(-1)
        answers = (sums < self.uniforms(self.batch.sample_ids, 1)).sum(-1).clamp(max=9)
        return {**data, "answer": answers, "large": torch.zeros(len(answers), 10_000)}


class Reward(BaseModule):
    def forward_step(self, data):
        return {**data, "reward": (data["answer"] == data["digit"]).float() + data["large"].sum(-1)}


class Learner(Policy):
    def setup(self):
        super().setup()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)

    def train_step(self, data, train_info):
        for batch in data:
            logprobs = torch.log_softmax(self.model(batch["digit"]), -1).gather(1, batch["answer"].unsqueeze(1))
            (-(batch["reward"] * logprobs[:, 0]).mean()).backward()
            self.log("reward", batch["reward"].mean())
        self.optimizer.step()
        self.optimizer.zero_grad()


MODELS = {
    "policy": {"num_replica": 2, "num_gpu": 2},
    "reward": {"num_cpu": 2},
    "learner": {"num_gpu": 1, "num_cpu": 2},
}


def engine_on(backend, address=None):
    sizes = {"num_episode": 3, "sample_per_episode": 32, "generation_batch_size": 8, "train_micro_batch_size": 16}
    chatlearn.init(
        {
            "runtime_env": {"backend": backend, "address": address},
            "models": MODELS,
            "runtime": {
                **sizes,
                "output_dir": tempfile.mkdtemp(),
                "log_interval": 3,
                "cpu_schedule_strategy": "SPREAD",
            },
        }
    )
    policy, reward, learner = Policy("policy"), Reward("reward"), Learner("learner")
    environment = Environment(lambda batch: reward.forward_step(policy.forward_step(batch)))
    engine = Engine(environment, Trainer(lambda batch: learner.train_step(batch)))
    return engine.set_parameter_sync(learner, policy).set_dataset(range(10))


def weights(module):
    return module.model.weight.tolist()


def record_of(engine):
    rows = [json.loads(line) for line in Path(engine.run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def actors():
    return [actor["State"] for actor in ray._private.state.actors().values()]


class Where(BaseModule):
    def forward_step(self, data):
        return {"session": [ray.get_runtime_context().gcs_address] * len(data["x"])}


def session_of(**runtime_env):
    """The Ray that an engine without an address finds."""
    chatlearn.init({"runtime_env": {"backend": "ray", **runtime_env}})
    module = Where("where")
    engine = Engine(Environment(lambda batch: module.forward_step(batch))).set_dataset(["a"])
    found = engine.call(module.forward_step, {"x": [0]})["session"][0]
    engine.stop()
    return found


def states():
    """Of the actors and of the placement groups of the Ray that is joined."""
    groups = placement_group_table().values()
    return [actor["State"] for actor in ray._private.state.actors().values()], [group["state"] for group in groups]


def free_now():
    free = ray.available_resources()
    return [free.get("CPU"), free.get("GPU")]


local = engine_on("local")
local.learn()
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2})
nodes.add_node(num_cpus=4, num_gpus=1)
nodes.wait_for_nodes()

engine = engine_on("ray", nodes.address)
engine.learn()
deployment = engine._deployment
there = deployment.cluster.nodes()
slots = place(deployment.config, deployment.names, there).slots
found = {
    "nodes": len(there),
    "placed": {f"{name}[{replica}]": there[slot.node].id for (name, replica), slot in slots.items()},
    "is": {str(handle): deployment.cluster.location(handle).node for handle in deployment.handles()},
    "same_record": record_of(engine) == record_of(local),
    "weights": [deployment.apply(name, weights) for name in ("policy", "learner")],
    "states": states(),
}
engine.stop()
found["joined_after_stop"] = ray.is_initialized()

os.environ["RAY_ADDRESS"] = nodes.address
found["by_variable"] = session_of() == nodes.address
del os.environ["RAY_ADDRESS"]

ray.init(address=nodes.address, logging_level="error")
found["that_was_joined_before"] = session_of() == nodes.address
found["joined_by_the_user_after_stop"] = ray.is_initialized()
end = time.monotonic() + 20
while (free := free_now()) != [8, 3] and time.monotonic() < end:
    time.sleep(0.1)  # what a worker held is given back a moment after it
found["states_after"] = states()
found["nodes_after"] = sum(node["Alive"] for node in ray.nodes())
found["free_after"] = free
print(json.dumps(found))
ray.shutdown()
nodes.shutdown()
