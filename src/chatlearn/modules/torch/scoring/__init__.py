"""Log-probabilities, entropies and values of given tokens, computed for response tokens only."""

from chatlearn.modules.torch.scoring.score import policy_logprobs, policy_logprobs_and_entropy, state_values
from chatlearn.modules.torch.scoring.window import Window, positions

__all__ = ["Window", "policy_logprobs", "policy_logprobs_and_entropy", "positions", "state_values"]
