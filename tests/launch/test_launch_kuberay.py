"""`chatlearn launch kuberay`: the manifest against the fields of KubeRay's custom resource and of Kubernetes' pods.

Not covered: an operator. What an entrypoint's words become on their way is in test_launch_program.py.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from chatlearn.cli import main


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
# apimachinery: a number, or digits with a suffix
_QUANTITY = {"anyOf": [_COUNT, {"type": "string", "pattern": r"^\d+(\.\d+)?([KMGTPE]i?|k|m)?$"}]}
_QUANTITIES = {"type": "object", "additionalProperties": _QUANTITY}
_CONTAINER = _object(
    ["name", "image"],
    name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
    image=_TEXT,
    workingDir={"type": "string", "pattern": "^/"},
    env={"type": "array", "items": _object(["name", "value"], name=_TEXT, value={"type": "string"})},
    resources=_object([], limits=_QUANTITIES, requests=_QUANTITIES),
    securityContext=_object(
        [],
        runAsNonRoot={"type": "boolean"},
        allowPrivilegeEscalation={"type": "boolean"},
        capabilities=_object([], drop={"type": "array", "items": _TEXT}, add={"type": "array", "items": _TEXT}),
        seccompProfile=_object(["type"], type={"enum": ["RuntimeDefault", "Unconfined", "Localhost"]}),
    ),
    volumeMounts={"type": "array", "items": _object(["name", "mountPath"], name=_TEXT, mountPath=_TEXT)},
)
_VOLUME = _object(["name"], name=_TEXT, persistentVolumeClaim=_object(["claimName"], claimName=_TEXT))
_TEMPLATE = _object(
    ["spec"],
    spec=_object(
        ["containers"],
        containers={"type": "array", "minItems": 1, "items": _CONTAINER},
        volumes={"type": "array", "items": _VOLUME},
    ),
)
# ray.io/v1: RayJobSpec, RayClusterSpec, HeadGroupSpec and WorkerGroupSpec of KubeRay's API reference
SCHEMA = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object(["name"], name={"type": "string", "maxLength": 47, "pattern": "^[a-z]"}, namespace=_TEXT),
    spec=_object(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=_TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=_COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=_COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        rayClusterSpec=_object(
            ["headGroupSpec"],
            rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
            authOptions=_object([], mode={"enum": ["disabled", "token"]}),
            headGroupSpec=_object(
                ["rayStartParams", "template"],
                rayStartParams=_TEXTS,
                serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                template=_TEMPLATE,
            ),
            workerGroupSpecs={
                "type": "array",
                "items": _object(
                    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName=_TEXT,
                    replicas=_COUNT,
                    minReplicas=_COUNT,
                    maxReplicas=_COUNT,
                    numOfHosts=_COUNT,
                    rayStartParams=_TEXTS,
                    template=_TEMPLATE,
                ),
            },
        ),
    ),
)


def _manifest(tmp_path: Path, *options: str, program: tuple[str, ...] = ("chatlearn", "run", "ppo")) -> dict[str, Any]:
    path = tmp_path / "out" / "job.yaml"
    words = ["--image", "registry/me/chatlearn:1", "--workers", "2", "-o", str(path), *options, "--", *program]
    assert main(["launch", "kuberay", *words]) == 0
    manifest = yaml.safe_load(path.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
    return manifest


def test_a_job_of_workers_with_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus-per-worker", "8", "--cpus-per-worker", "32", "--memory-per-worker", "512Gi"]
    spec = _manifest(tmp_path, *options)["spec"]
    assert spec["entrypoint"] == ("chatlearn run ppo --set runtime_env.backend=ray --set runtime_env.address=auto")
    assert spec["shutdownAfterJobFinishes"] is True
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [workers[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 2]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["image"] == "registry/me/chatlearn:1"
    assert container["resources"]["limits"] == {"cpu": "32", "memory": "512Gi", "nvidia.com/gpu": 8}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert capsys.readouterr().out == f"kubectl apply -f {tmp_path}/out/job.yaml\n"


def test_the_head_runs_the_program_and_no_gpus(tmp_path: Path) -> None:
    head = _manifest(tmp_path, "--gpus-per-worker", "8")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    (container,) = head["template"]["spec"]["containers"]
    assert container["image"] == "registry/me/chatlearn:1"
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_workers_without_gpus_ask_for_none(tmp_path: Path) -> None:
    (workers,) = _manifest(tmp_path)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "nvidia.com/gpu" not in workers["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_the_defaults_are_the_safe_ones(tmp_path: Path) -> None:
    cluster = _manifest(tmp_path)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        context = group["template"]["spec"]["containers"][0]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_token_can_be_left_out_for_older_operators(tmp_path: Path) -> None:
    assert "authOptions" not in _manifest(tmp_path, "--no-token")["spec"]["rayClusterSpec"]


def test_rays_version_is_the_installed_one_or_the_given_one(tmp_path: Path) -> None:
    assert _manifest(tmp_path)["spec"]["rayClusterSpec"]["rayVersion"] == importlib.metadata.version("ray")
    assert _manifest(tmp_path, "--ray-version", "2.61.0")["spec"]["rayClusterSpec"]["rayVersion"] == "2.61.0"


def test_all_pods_share_a_volume_where_the_program_starts(tmp_path: Path) -> None:
    cluster = _manifest(tmp_path, "--volume", "runs", "--workdir", "/data")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"] == {"claimName": "runs"}
        (container,) = pod["containers"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/data"}]
        assert container["workingDir"] == "/data"


def test_variables_and_names(tmp_path: Path) -> None:
    options = ["--env", "A=1", "--env", "B=x: {y}", "--name", "mine", "--namespace", "team"]
    manifest = _manifest(tmp_path, *options)
    assert manifest["metadata"] == {"name": "mine", "namespace": "team"}
    (workers,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["template"]["spec"]["containers"][0]["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "x: {y}"},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "My_Job"], "up to 47 small letters, digits and - are needed, not 'My_Job'"),
        (["--name", "a" * 48], "up to 47 small letters"),
        (["--memory-per-worker", "lots"], "an amount such as 64Gi is needed, not 'lots'"),
        (["--workers", "0"], "a whole number from 1 on is needed, not '0'"),
    ],
)
def test_unusable_arguments_of_a_manifest(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _manifest(tmp_path, *options)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_schema_finds_a_wrong_field(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        jsonschema.Draft202012Validator(SCHEMA).validate(manifest)
