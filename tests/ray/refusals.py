"""Clusters that can't be joined, or have no room; run as ``python refusals.py``.

Prints what each attempt to call a step gave as one line of JSON: kind of the error, its text, seconds.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import socket
import threading
import time

import ray
from ray._common.usage import usage_constants, usage_lib
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

import chatlearn
from chatlearn import BaseModule, Engine, Environment
from chatlearn.errors import ChatLearnError


class Echo(BaseModule):
    def setup(self):
        print("setup ran", flush=True)

    def forward_step(self, data):
        return data


def attempt(address, **model):
    """Starts an engine on a cluster."""
    begin = time.monotonic()
    try:
        chatlearn.init({"runtime_env": {"backend": "ray", "address": address}, "models": {"echo": model}})
        module = Echo("echo")
        engine = Engine(Environment(lambda batch: module.forward_step(batch))).set_dataset(["a"])
        with contextlib.redirect_stdout(io.StringIO()):
            engine.call(module.forward_step, {"x": [0]})
        engine.stop()
    except ChatLearnError as error:
        return [type(error).__name__, str(error), time.monotonic() - begin]
    return ["none", "", time.monotonic() - begin]


def change_metadata(address, **changes):
    """What the head of a cluster says about itself."""
    head = GcsClient(address=address)
    metadata = {**usage_lib.get_cluster_metadata(head), **changes}
    key = usage_constants.CLUSTER_METADATA_KEY
    head.internal_kv_put(key, json.dumps(metadata).encode(), overwrite=True, namespace=KV_NAMESPACE_CLUSTER)


@ray.remote
class Holder:
    def ping(self):
        return True


web = http.server.ThreadingHTTPServer(("", 0), http.server.BaseHTTPRequestHandler)
threading.Thread(target=web.serve_forever, daemon=True).start()
silent = socket.create_server(("", 0))
closed = socket.create_server(("", 0))
nowhere = closed.getsockname()[1]
closed.close()
here = ray.util.get_node_ip_address()

found = {
    "nobody": attempt(f"{here}:{nowhere}"),
    "unknown": attempt("no-such-host.invalid:6379"),
    "web": attempt(f"{here}:{web.server_port}"),
    "silent": attempt(f"{here}:{silent.getsockname()[1]}"),
}

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
there = GcsClient(address=nodes.address)
metadata = usage_lib.get_cluster_metadata(there)
for name in ("ray_version", "python_version"):
    change_metadata(nodes.address, **{name: "1.2.3"})
    found[name] = attempt(nodes.address)
    change_metadata(nodes.address, **{name: metadata[name]})

found["too_large"] = attempt(nodes.address, num_cpu=3)
ray.init(address=nodes.address, logging_level="error")
holder = Holder.options(num_cpus=2).remote()
ray.get(holder.ping.remote())
found["held"] = attempt(nodes.address, num_cpu=2)
ray.kill(holder)
found["free"] = attempt(nodes.address, num_cpu=2)
ray.shutdown()
nodes.shutdown()
print(json.dumps(found))
