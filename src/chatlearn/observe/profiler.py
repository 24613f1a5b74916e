"""torch's profiler for chosen episodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from chatlearn.errors import ConfigError


def episode_profiler(episodes: Collection[int], folder: Path) -> Callable[[int], AbstractContextManager[None]]:
    """Profiles chosen episodes, and costs nothing in the others.

    Example::

        profile = episode_profiler([3, 4], run / "profile")
        with profile(episode):
            ...

    Args:
        episodes: numbers from 1.
        folder: gets ``episode-000003.json``, a trace in Chrome's format, which Perfetto opens: operators of the CPU,
            and kernels where there is a CUDA device. Only the work of this process is in it.

    Returns:
        What gives the context of one episode, by its number.

    Raises:
        ConfigError: a number is below 1.
    """
    chosen = frozenset(episodes)
    if wrong := sorted(number for number in chosen if number < 1):
        raise ConfigError(f"There is no episode {wrong[0]} to profile: episodes are counted from 1.")

    def profile(episode: int) -> AbstractContextManager[None]:
        return _profiled(folder / f"episode-{episode:06d}.json") if episode in chosen else nullcontext()

    return profile


@contextmanager
def _profiled(path: Path) -> Generator[None]:
    """Writes a trace of what happens inside, also when that ends with an exception."""
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    profiler = torch.profiler.profile(activities=activities, experimental_config=_all_threads())
    profiler.start()
    try:
        yield
    finally:
        profiler.stop()
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial.json")  # the profiler wants the ending
        profiler.export_chrome_trace(str(aside))
        aside.rename(path)


def _all_threads() -> Any:
    """Steps may run on threads that are older than the profiler; a torch that can't record those records its own."""
    from torch._C._profiler import _ExperimentalConfig  # pyright: ignore[reportPrivateUsage]  # it has no other name

    try:
        return _ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        return None
