"""Two modules that say in which environment they run; ``python versions.py -c … key=value``, without a guard."""

from __future__ import annotations

import json
import sys

import chatlearn
from chatlearn import BaseModule, Engine, Environment


class Version(BaseModule):
    def forward_step(self, data):
        import transformers

        return {self.name: [f"{sys.prefix} {transformers.__version__}"] * len(data["x"])}


chatlearn.init()
judge, policy = Version("judge"), Version("policy")
engine = Engine(Environment(lambda batch: (judge.forward_step(batch), policy.forward_step(batch)))).set_dataset(["a"])
found = [engine.call(module.forward_step, {"x": [0]})[module.name][0].split() for module in (judge, policy)]
engine.stop()
print(json.dumps(found))
