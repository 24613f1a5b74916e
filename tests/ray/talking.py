"""Modules that print, one of which dies once; run as ``python talking.py FOLDER``, without a guard."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import chatlearn
from chatlearn import BaseModule, Engine, Environment

folder = Path(sys.argv[1])


class Policy(BaseModule):
    def __init__(self, name, flag):
        super().__init__(name)
        self.flag = Path(flag)

    def setup(self):
        print(f"{self.name} {self.replica_id} is set up in {os.getpid()}")
        print("to the other stream", file=sys.stderr)

    def forward_step(self, data):
        print(f"batch of {len(data['prompt'])}")
        if self.replica_id == 1 and not self.flag.exists():
            self.flag.touch()
            print("about to end", flush=True)
            os._exit(3)
        return {"answer": data["prompt"]}


class Quiet(BaseModule):
    def forward_step(self, data):
        warnings.warn("look at this", stacklevel=1)
        return data


chatlearn.init(
    {
        "runtime_env": {"backend": "ray"},
        "models": {"policy": {"num_replica": 2}, "quiet": {}},
        "runtime": {"num_episode": 2, "sample_per_episode": 8, "generation_batch_size": 2, "exp_name": "talking"},
    }
)
policy, quiet = Policy("policy", folder / "flag"), Quiet("quiet")
engine = Engine(Environment(lambda batch: quiet.forward_step(policy.forward_step(batch)))).set_dataset(["a", "b"])
engine.add_callback(
    "after_experience",
    lambda info: print("while it runs:", sorted(path.name for path in (engine.run.path / "logs").iterdir())),
)
engine.learn()
engine.stop()
