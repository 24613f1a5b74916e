"""Sampling responses from a causal language model."""

from chatlearn.modules.torch.generation.bad_words import BadWords
from chatlearn.modules.torch.generation.logits import Sampling
from chatlearn.modules.torch.generation.sample import Responses, sample

__all__ = ["BadWords", "Responses", "Sampling", "sample"]
