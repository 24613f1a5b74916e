"""Randomness that is derived, not carried: a seed comes from the run seed and the place of the call."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*place: int | str) -> int:
    """64-bit seed of a place in a run: blake2b over its parts, such as run seed, phase, module, step, batch index."""
    text = "\x1f".join(map(str, place)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def seed_everything(seed: int) -> None:
    """Seeds the global generators of ``random``, numpy and torch (CUDA only where it is in use)."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed also asks every accelerator backend, which takes far longer than the step of a small rule
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def preserved_globals() -> Generator[None]:
    """Gives the caller's global generators and number of torch threads back afterwards."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    try:
        yield
    finally:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        torch.set_num_threads(state[3])


@contextmanager
def deterministic_kernels(enabled: bool) -> Generator[None]:
    """Inside, torch takes only kernels that give the same bits each time, and refuses operations that have none."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA reads it at its first matrix product
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
