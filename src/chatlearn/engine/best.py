"""The best episode so far by a named metric, and when a run has seen enough."""

from __future__ import annotations

from collections.abc import Mapping

from chatlearn.checkpoint.store import RunState
from chatlearn.config.runtime import RuntimeConfig


class BestMetric:
    """Follows ``runtime.best_metric``.

    What it knows stands in the run's state, so a resumed run goes on with it.

    Args:
        runtime: the section of the configuration.
        state: of the run.
    """

    def __init__(self, runtime: RuntimeConfig, state: RunState) -> None:
        self._runtime, self._state = runtime, state
        followed = None if runtime.best_metric is None else f"{runtime.best_metric_mode} {runtime.best_metric}"
        if state.best_of != followed:  # a resumed run may follow another metric, which begins anew
            state.best_of, state.best_value, state.best_episode, state.num_worse = followed, None, 0, 0

    def update(self, metrics: Mapping[str, float]) -> bool:
        """Takes the metrics of a complete episode; tells whether they are the best so far.

        An episode without the metric (most have no evaluation) changes nothing. NaN is never the best.
        """
        name, state = self._runtime.best_metric, self._state
        if name is None or name not in metrics:
            return False
        value = metrics[name]
        sign = 1 if self._runtime.best_metric_mode == "max" else -1
        better = value == value and (state.best_value is None or sign * (value - state.best_value) > 0)
        if better:
            state.best_value, state.best_episode, state.num_worse = value, state.episode, 0
        else:
            state.num_worse += 1
        return better

    @property
    def reason_to_stop(self) -> str | None:
        """Why the run should end now, if it should."""
        runtime, state = self._runtime, self._state
        if state.best_value is None:
            return None
        reached = f"{runtime.best_metric} {state.best_value:g} in episode {state.best_episode}"
        if runtime.early_stop_threshold is not None:
            sign = 1 if runtime.best_metric_mode == "max" else -1
            if sign * (state.best_value - runtime.early_stop_threshold) >= 0:
                return f"{reached} reaches runtime.early_stop_threshold {runtime.early_stop_threshold:g}"
        if runtime.early_stop_patience is not None and state.num_worse >= runtime.early_stop_patience:
            return f"{reached} was not bettered {state.num_worse} times (runtime.early_stop_patience)"
        return None

    def never_came(self, metrics: Mapping[str, float]) -> str | None:
        """What to tell at the end of a run that never had the metric; ``metrics`` are those of its last episode."""
        name = self._runtime.best_metric
        if name is None or self._state.best_value is not None:
            return None
        known = ", ".join(sorted(key for key in metrics if "/" in key and not key.startswith("time/"))) or "none"
        return f"note: runtime.best_metric is {name!r}, but no episode had that metric; the last one had {known}."
