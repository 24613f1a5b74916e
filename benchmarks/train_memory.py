"""Peak memory and CPU time of a policy update, against a plain implementation that keeps the logits of all tokens.

Both train the same Qwen2 (random weights, float32, vocabulary of 32,768) on the same batch with PPO's clipped loss,
gradient clipping and fused AdamW. Ours is ``PolicyTrainer.train_step``; the plain one applies the model to the whole
sequences, then ``log_softmax`` and ``gather``.

Memory is the kernel's: each measurement is a process of its own that takes one step to warm up (AdamW makes its state),
resets the high-water mark of its resident memory (``/proc/self/clear_refs``), takes a second step, and reads the mark
(``VmHWM``) less what was resident before it. That counts all that a step needs, scratch memory of the kernels too,
which an allocator's own bookkeeping misses; gradients are in it, parameters and optimizer state are not. Large tensors
are mapped and returned one by one by the C library, so nothing of an earlier peak is left to be counted or missed.
Linux alone has these files.

    python benchmarks/train_memory.py [--repeats 5] [--batch 4] [--tokens 1024] [--packing] [--checkpointing]

Prints a table of medians over alternating runs and exits with 1 where ours needs more than half of the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

LIMIT = 0.5
VOCABULARY = 32_768


def make_model(hidden_size: int, layers: int) -> Any:
    """A Qwen2 with random weights and tied embeddings."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=max(hidden_size // 128, 1),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def make_batch(rows: int, tokens: int) -> dict[str, Any]:
    """Sequences of ``tokens`` tokens, of which the last three quarters are the response."""
    import torch

    generator = torch.Generator().manual_seed(0)
    response_mask = torch.zeros(rows, tokens)
    response_mask[:, tokens // 4 :] = 1
    return {
        "tokens": torch.randint(0, VOCABULARY, (rows, tokens), generator=generator),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.int64),
        "response_mask": response_mask,
        "logprobs": (torch.randn(rows, tokens, generator=generator) - 10) * response_mask,
        "advantages": torch.randn(rows, tokens, generator=generator) * response_mask,
    }


class Plain:
    """The plain implementation of the same update."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step(self, batch: dict[str, Any]) -> float:
        """One update; gives the loss."""
        import torch

        logits = self.model(input_ids=batch["tokens"], attention_mask=batch["attention_mask"], use_cache=False).logits[
            :, :-1
        ]
        logprobs = torch.log_softmax(logits, -1).gather(-1, batch["tokens"][:, 1:, None]).squeeze(-1)
        mask, advantages = batch["response_mask"][:, 1:], batch["advantages"][:, 1:]
        ratio = (logprobs - batch["logprobs"][:, 1:]).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        loss = -(gain * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class Ours:
    """``PolicyTrainer`` outside of an engine."""

    def __init__(self, folder: str, **options: Any) -> None:
        from chatlearn.config.schema import RuntimeConfig
        from chatlearn.modules.base import ModuleContext
        from chatlearn.modules.torch import PolicyTrainer

        self.trainer = PolicyTrainer("policy")
        self.trainer.__dict__["_context"] = ModuleContext(
            model_args=PolicyTrainer.Args(
                model_path=folder, learning_rate=1e-4, clip_low=0.2, clip_high=0.2, whiten_advantages=False, **options
            ),
            runtime_args=RuntimeConfig(train_micro_batch_size=1, train_global_batch_size=1),
        )
        self.trainer.setup()

    def step(self, batch: dict[str, Any]) -> float:
        """One update; gives the loss."""
        self.trainer.train_step([batch], {"iteration": 0})
        logged = {name: float(value) for name, value, _ in self.trainer._context.metrics}
        self.trainer._context.metrics.clear()
        return logged["loss"]


def resident(name: str) -> float:
    """MiB of a line of /proc/self/status: ``VmRSS`` now, ``VmHWM`` the high-water mark."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def measure(kind: str, folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One step of one implementation, in this process."""
    import torch

    torch.set_num_threads(1)
    options = {"packing": arguments.packing, "gradient_checkpointing": arguments.checkpointing}
    learner = Plain(folder) if kind == "plain" else Ours(folder, **options)
    batch = make_batch(arguments.batch, arguments.tokens)
    losses = [learner.step(batch)]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    start = time.process_time()
    losses.append(learner.step(batch))
    seconds = time.process_time() - start
    return {"mib": resident("VmHWM") - before, "seconds": seconds, "first": losses[0], "second": losses[1]}


def run_child(kind: str, folder: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", kind, "--folder", folder]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Runs from the command line."""
    parser = argparse.ArgumentParser(description="Peak memory of a policy update.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--packing", action="store_true", help="of ours")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing of ours")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.folder, arguments)))
        return
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        make_model(arguments.hidden_size, arguments.layers).save_pretrained(folder)
        _save_tokenizer(folder)
        for _ in range(arguments.repeats):
            for kind in runs:
                runs[kind].append(run_child(kind, folder))
    for key in ("first", "second"):
        plain, ours = (runs[kind][0][key] for kind in ("plain", "ours"))
        assert abs(plain - ours) <= 1e-4 * max(abs(plain), 1e-2), f"the {key} losses differ: {plain} and {ours}"
    print(f"{arguments.batch} x {arguments.tokens} tokens, vocabulary {VOCABULARY}, median of {arguments.repeats}")
    print(f"{'':<8}{'peak MiB of a step':>20}{'CPU-seconds':>14}")
    medians = {
        kind: [statistics.median(run[key] for run in values) for key in ("mib", "seconds")]
        for kind, values in runs.items()
    }
    for kind, (mib, seconds) in medians.items():
        print(f"{kind:<8}{mib:>20.0f}{seconds:>14.2f}")
    memory, cpu = (ours / plain for ours, plain in zip(medians["ours"], medians["plain"], strict=True))
    print(f"{'ratio':<8}{memory:>20.3f}{cpu:>14.3f}")
    sys.exit(memory > LIMIT)


def _save_tokenizer(folder: str) -> None:
    """A tokenizer with two tokens: the trainer loads one, and nothing is tokenized."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


if __name__ == "__main__":
    main()
