"""The program that a fault happens to: two rollout replicas, a reward, a trainer, on a Ray of its own.

Takes the fault as JSON; see :class:`faults.Fault`. What ends the run is printed as the last lines.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from fault_modules import FaultyLearner, FaultyReward, FaultyRollout

import chatlearn
from chatlearn import ChatLearnError, Engine, Environment, Trainer
from chatlearn.engine.startup import Startup


def make_engine(fault: dict[str, Any]) -> Engine:
    """The engine, with the fault in the arguments of its module."""
    sections: dict[str, Any] = {
        "rollout": {"num_replica": 2, "args": {}},
        "reward": {"args": {}},
        "learner": {"args": {}},
    }
    if fault["module"] in sections:
        sections[fault["module"]]["args"]["fault"] = fault
    runtime = {
        "num_episode": 200 if fault["kind"] in ("driver killed", "node removed") else 4,
        "sample_per_episode": 64,
        "generation_batch_size": 8,
        "train_micro_batch_size": 8,
        "train_global_batch_size": 16,
        "output_dir": fault["folder"],
        "exp_name": "run",
        "sinks": ["jsonl"],
        "save_episode_interval": 2,
        "hang_timeout_seconds": fault["hang_timeout"],
        "max_replacements": fault["max_replacements"],
        "cpu_schedule_strategy": "SPREAD",
    }
    environment = {"backend": "ray", "address": fault.get("address")}
    chatlearn.init({"runtime_env": environment, "models": sections, "runtime": runtime})
    rollout, reward, learner = FaultyRollout("rollout"), FaultyReward("reward"), FaultyLearner("learner")

    def experience(batch: Any) -> Any:
        sampled = rollout.forward_step(batch)
        return sampled, reward.forward_step(sampled)

    engine = Engine(Environment(experience), Trainer(lambda batch: learner.train_step(batch)))
    return engine.set_parameter_sync(learner, rollout).set_dataset(list(range(40)))


def lose_node(engine: Engine, fault: dict[str, Any], cluster: Any, node: Any) -> None:
    """Takes away the second node some time after ``setup``."""
    while engine._deployment is None:
        time.sleep(0.01)
    time.sleep(fault["delay"])
    location = engine._deployment.cluster.location
    lost = [str(handle) for handle in engine._deployment.handles() if location(handle).node == node.node_id]
    Path(fault["moment"]).write_text(str(time.time()))
    Path(fault["moment"] + ".lost").write_text(" ".join(lost))
    cluster.remove_node(node, allow_graceful=False)


def main() -> int:
    """Entry point."""
    fault: dict[str, Any] = json.loads(sys.argv[1])
    cluster: Any = None
    if fault["kind"] == "node removed":
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        node = cluster.add_node(num_cpus=2)
        fault["address"] = cluster.address
    engine = make_engine(fault)
    if cluster is not None:
        threading.Thread(target=lose_node, args=(engine, fault, cluster, node), daemon=True).start()
    elif fault["kind"] == "driver killed":
        threading.Thread(target=die, args=(engine, fault), daemon=True).start()
    elif fault["signal"]:
        send_signal(fault)
    try:
        engine.learn()
        if fault["where"] == "stop":
            Path(fault["moment"]).touch()
    except ChatLearnError as error:
        Path(fault["ended"]).write_text(str(time.time()))
        traceback.print_exc()
        print(f"ended by {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        Path(fault["ended"]).write_text(str(time.time()))
        raise
    finally:
        if cluster is not None:
            cluster.shutdown()
    engine.stop()
    return 0


def die(engine: Engine, fault: dict[str, Any]) -> None:
    """Ends this process as nobody can prevent."""
    while engine._deployment is None:
        time.sleep(0.01)
    time.sleep(fault["delay"])
    Path(fault["moment"]).write_text(str(time.time()))
    os.kill(os.getpid(), 9)


def send_signal(fault: dict[str, Any]) -> None:
    """Has all processes of this group get a signal (as of a terminal's Ctrl-C), or this one alone, at some phase."""
    moment = Path(fault["moment"])
    reached = Startup.reached

    def reach(self: Startup, what: str) -> None:
        reached(self, what)
        if fault["where"] == "construct" and "node" in what:
            moment.touch()

    def send() -> None:
        if fault["where"] == "start":
            time.sleep(1)
            moment.touch()
        while not moment.exists():
            time.sleep(0.01)
        time.sleep(fault["delay"])
        moment.write_text(str(time.time()))
        if fault["signal"] == signal.SIGINT:
            os.killpg(0, signal.SIGINT)
        else:
            os.kill(os.getpid(), fault["signal"])

    Startup.reached = reach
    threading.Thread(target=send, daemon=True).start()


if __name__ == "__main__":
    raise SystemExit(main())
