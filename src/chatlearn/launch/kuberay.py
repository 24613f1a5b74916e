"""The manifest of a RayJob (``ray.io/v1``): KubeRay starts the cluster, runs the program, and takes it away again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from chatlearn.launch.program import in_ray_job, with_cluster


@dataclass(frozen=True)
class Job:
    """What KubeRay is asked for.

    Attributes:
        image: with chatlearn and Ray; all pods run it.
        ray_version: of the image.
        num_workers: pods beside the head.
        gpus, cpus, memory: of a worker; memory as Kubernetes writes it, for example ``64Gi``.
        head_cpus, head_memory: of the head, which has no GPU.
        name: of the job.
        namespace: empty for that of kubectl.
        volume: name of a PersistentVolumeClaim that all pods share; empty for none.
        folder: where the volume is mounted, and where the program starts.
        has_token: whether KubeRay makes a token and gives it to all pods (KubeRay 1.5.1 or newer).
        variables: of the environment.
    """

    image: str
    ray_version: str
    num_workers: int
    gpus: int
    cpus: int = 8
    memory: str = "64Gi"
    head_cpus: int = 4
    head_memory: str = "16Gi"
    name: str = "chatlearn"
    namespace: str = ""
    volume: str = ""
    folder: str = "/work"
    has_token: bool = True
    variables: dict[str, str] = field(default_factory=dict[str, str])


def kuberay_manifest(job: Job, words: Sequence[str]) -> str:
    """The manifest as YAML, for ``kubectl apply -f``."""
    worker = {
        "groupName": "workers",
        "replicas": job.num_workers,
        "minReplicas": job.num_workers,
        "maxReplicas": job.num_workers,
        "rayStartParams": {},
        "template": _template(job, "ray-worker", job.cpus, job.memory, job.gpus),
    }
    head = {
        # the programs' place is a worker; the operator reaches the dashboard through a service inside of the cluster
        "rayStartParams": {"dashboard-host": "0.0.0.0", "num-gpus": "0"},
        "serviceType": "ClusterIP",
        "template": _template(job, "ray-head", job.head_cpus, job.head_memory, 0),
    }
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name, **({"namespace": job.namespace} if job.namespace else {})},
        "spec": {
            "entrypoint": in_ray_job(with_cluster(words, "auto")),
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "rayVersion": job.ray_version,
                **({"authOptions": {"mode": "token"}} if job.has_token else {}),
                "headGroupSpec": head,
                **({"workerGroupSpecs": [worker]} if job.num_workers else {}),
            },
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False, width=120)


def _template(job: Job, name: str, cpus: int, memory: str, gpus: int) -> dict[str, Any]:
    """The template of a pod."""
    resources: dict[str, Any] = {"cpu": str(cpus), "memory": memory, **({"nvidia.com/gpu": gpus} if gpus else {})}
    container: dict[str, Any] = {
        "name": name,
        "image": job.image,
        "workingDir": job.folder,
        "resources": {"limits": resources, "requests": dict(resources)},
        "securityContext": {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if job.variables:
        container["env"] = [{"name": key, "value": value} for key, value in job.variables.items()]
    spec: dict[str, Any] = {"containers": [container]}
    if job.volume:
        container["volumeMounts"] = [{"name": "shared", "mountPath": job.folder}]
        spec["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": job.volume}}]
    return {"spec": spec}
