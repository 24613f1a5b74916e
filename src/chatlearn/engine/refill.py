"""Dynamic sampling: further rounds of prompts where the steps of a flow have dropped samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from chatlearn.config.schema import RuntimeConfig
from chatlearn.errors import DataError
from chatlearn.flow.graph import Graph
from chatlearn.observe.metrics import Logged
from chatlearn.types import SampleIds


class Refill:
    """What one episode keeps of its rounds: whole groups in batch order, up to ``sample_per_episode`` samples.

    The first round has ``sample_per_episode`` samples, each further one ``refill_round_size``. Dynamic sampling of
    DAPO (Yu et al. 2025, arXiv:2503.14476, section 3.2, equation 11), in rounds of fixed size. All counts are of
    samples that the sampler gave: rows that a step has made of one count once, for as long as one of them is left.

    Args:
        runtime: ``max_refill_rounds`` bounds the further rounds; with 0 everything is kept.
        graph: of the flow, for words.
        episode: number of the episode, from 0.

    Attributes:
        num_further: rounds after the first.
        lost: index of a node -> input rows that it has left out; the executor adds to it.
    """

    def __init__(self, runtime: RuntimeConfig, graph: Graph, episode: int) -> None:
        self.num_further = 0
        self.lost: dict[int, int] = {}
        self._target, self._max_further = runtime.sample_per_episode, runtime.max_refill_rounds
        self._further_size = runtime.refill_round_size or runtime.sample_per_episode
        self._graph, self._episode = graph, episode + 1
        self._num_kept = self._num_surplus = 0
        self._is_full = False

    def rounds(self) -> Iterator[int]:
        """Samples of each round. Whether there is a further one is decided when it is asked for, by what the rounds
        before have left.
        """
        yield self._target
        while not self._is_full and self.num_further < self._max_further:
            self.num_further += 1
            yield self._further_size

    def keep(self, ids: SampleIds) -> int:
        """Takes the rows of the next batch, in batch order; returns how many rows at its beginning are kept.

        The first group that would make it more than ``sample_per_episode`` samples is surplus, and so are all after it.
        """
        rollouts, num_rows = ids.rollout_ids, 0
        for _, rows in groupby(range(len(ids)), key=ids.group_ids.__getitem__):
            group = list(rows)
            num_samples = len({rollouts[row] for row in group})
            fits = self._num_kept + num_samples <= self._target
            if fits and not self._is_full:
                num_rows += len(group)
                self._num_kept += num_samples
            else:
                self._num_surplus += num_samples
            self._is_full |= not fits or self._num_kept == self._target
        return num_rows

    def metrics(self) -> list[Logged]:
        """What the episode logs; ``sample_per_episode`` plus the samples of further rounds are those that are kept,
        surplus or dropped.
        """
        counts = {
            "rounds": self.num_further,
            "dropped_samples": self._num_dropped,
            "surplus_samples": self._num_surplus,
        }
        return [(f"refill/{name}", count, "sum", 1) for name, count in counts.items()]

    def shortage(self) -> str | None:
        """What to tell of an episode that has fewer than ``sample_per_episode`` samples after its last round.

        One without any is passed by: a policy may have come to master its task. In the first episode of a run it is an
        error, as there never was anything to learn.

        Raises:
            DataError: the first episode has no samples at all.
        """
        if self._is_full:
            return None
        if not self._num_kept and self._episode > 1:
            return (
                f"note: episode {self._episode} has no samples after {self.num_further + 1} rounds, so nothing is "
                f"trained on in it ({self._droppers}). The task is mastered, or the policy has lost it: look at the "
                f"rewards. Later episodes with fewer samples are not mentioned; refill/dropped_samples in the metrics "
                f"counts them."
            )
        if not self._num_kept:
            raise DataError(
                f"episode {self._episode}: the steps of {self._graph.name} ({self._graph.where}) have dropped all "
                f"{self._num_drawn} samples of {self.num_further + 1} rounds, so there is nothing to train on: "
                f"{self._droppers}. If they drop groups whose samples are all equally good, no group had a signal: "
                f"look at the rewards, choose prompts that are neither too easy nor too hard, draw more samples of a "
                f"prompt (runtime.num_inference_per_prompt) or more varied ones; or allow more rounds "
                f"(runtime.max_refill_rounds, now {self._max_further})."
            )
        return (
            f"note: episode {self._episode} has {self._num_kept} samples instead of {self._target} after "
            f"{self.num_further} further rounds, the most that runtime.max_refill_rounds allows ({self._droppers}). "
            f"Later episodes with fewer samples are not mentioned; refill/dropped_samples in the metrics counts them."
        )

    @property
    def _num_drawn(self) -> int:
        return self._target + self.num_further * self._further_size

    @property
    def _num_dropped(self) -> int:
        return self._num_drawn - self._num_kept - self._num_surplus

    @property
    def _droppers(self) -> str:
        """Who has dropped how many of its input rows."""
        nodes = self._graph.nodes
        return ", ".join(
            f"{nodes[index].label} ({nodes[index].where}) dropped {count} rows"
            for index, count in sorted(self.lost.items())
        )


def drops_rows(graph: Graph) -> bool:
    """Whether a step of a flow may leave out rows that it gets."""
    return any(node.filters or node.expands is True for node in graph)
