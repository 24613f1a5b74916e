from __future__ import annotations

import pytest
import torch
from tiny_models import KINDS, make_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny model folders in Hugging Face format, by kind."""
    return {kind: make_folder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="session", params=KINDS)
def folder(request: pytest.FixtureRequest, folders: dict[str, str]) -> str:
    """Each of the model folders."""
    return folders[request.param]


@pytest.fixture(scope="session")
def llama(folders: dict[str, str]) -> str:
    """One model folder, where the kind makes no difference."""
    return folders["llama-tied"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
