from __future__ import annotations

import pytest
from export_cases import LORA, Trained, model_folder, train


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that trains all weights, and exports them at its end too."""
    folder = tmp_path_factory.mktemp("plain")
    return train(folder / "runs", model_folder(folder / "model"), {}, {}, export=["trainer"])


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run whose policy and trainer have adapters."""
    folder = tmp_path_factory.mktemp("lora")
    lora = {"lora": LORA}
    return train(folder / "runs", model_folder(folder / "model"), lora, lora)


@pytest.fixture(scope="session")
def merged_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run whose trainer has adapters, which sync merges into the policy's model."""
    folder = tmp_path_factory.mktemp("merged")
    return train(folder / "runs", model_folder(folder / "model"), {}, {"lora": {**LORA, "export": "adapter"}})
