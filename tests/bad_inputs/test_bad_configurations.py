"""A bad configuration is refused before anything starts, with an error that says what, where and how to fix it.

Each case gives the words that its message has to hold. Problems of the configuration alone: ``tests/config``.
"""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
import toys
from bad_input_cases import Echo, engine_of, refused

import chatlearn
from chatlearn import ConfigError


def test_mistyped_keys_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("runtime:\n  num_episod: 3\n  seed: many\nmodels:\n  policy:\n    num_replicas: 2\n")
    with pytest.raises(ConfigError) as caught:
        chatlearn.init(path)
    text = str(caught.value)
    assert text.startswith("3 problems")
    for word in ("my.yaml:2", "`num_episode`", "my.yaml:3", "my.yaml:6", "`num_replica`"):
        assert word in text


def test_mistyped_settings_of_modules_all_at_once(tmp_path: Path) -> None:
    class Configured(Echo):
        class Args(pydantic.BaseModel):
            temperature: float = 1.0
            top_k: int = 0

    args = {"temprature": 0.5, "top_k": "many"}
    chatlearn.init({**toys.settings(tmp_path), "models": {"one": {"args": args}, "tow": {}}})
    refused(
        engine_of(Configured("one"), Echo("two")),
        ConfigError,
        "3 problems",
        "models.one.args.temprature",
        "`temperature`",
        "models.one.args.top_k",
        "`two` has no entry under models",
        "`tow`",
        folder=tmp_path,
    )


def test_a_global_batch_that_is_no_multiple(tmp_path: Path) -> None:
    words = r"multiple of train_micro_batch_size, which is 8; got 20\s+Fix: set it to 16 or 24"
    with pytest.raises(ConfigError, match=words):
        chatlearn.init(toys.settings(tmp_path, train_micro_batch_size=8, train_global_batch_size=20))


def test_no_configuration_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatlearn.config import active

    monkeypatch.setattr(active._active, "config", None)
    with pytest.raises(ConfigError, match=r"chatlearn\.init\(\)"):
        engine_of(Echo("a")).learn()


def test_exporting_what_cannot_be_exported(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, export=["echo"]))
    refused(
        engine_of(Echo("echo")), ConfigError, "runtime.export", "Echo (module 'echo')", "export(path)", folder=tmp_path
    )


def test_exporting_a_module_that_no_flow_uses(tmp_path: Path) -> None:
    chatlearn.init(toys.settings(tmp_path, export=["polcy"]))
    refused(engine_of(toys.Policy("policy")), ConfigError, "runtime.export", "polcy", "policy", folder=tmp_path)


@pytest.mark.parametrize("absent", ["absent/model", "/absent/model", "~/absent-model-folder"])
def test_a_missing_model_folder(absent: str, tmp_path: Path) -> None:
    from chatlearn.modules.torch import PolicyInference

    path = str(tmp_path / absent) if absent == "absent/model" else absent
    chatlearn.init({**toys.settings(tmp_path), "models": {"policy": {"args": {"model_path": path}}}})
    wanted = str(Path(path).expanduser())
    words = ("models.policy.args.model_path", f"no folder {wanted}", "give an existing model folder")
    refused(engine_of(PolicyInference("policy")), ConfigError, *words, folder=tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    from chatlearn.modules.torch import PolicyInference

    model = tmp_path / "empty.yaml"
    model.mkdir()
    chatlearn.init({**toys.settings(tmp_path), "models": {"policy": {"args": {"model_path": str(model)}}}})
    refused(
        engine_of(PolicyInference("policy")), ConfigError, "holds no config.json", "save_pretrained", folder=tmp_path
    )
