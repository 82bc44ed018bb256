"""Train the embedded model: a small Llama on the King James Bible, exported to FP16 ONNX.

The text is the Debian package `bible-kjv-text` (in the public domain), printed by the reader of
the package `bible-kjv`, one verse a line:

    apt-get install bible-kjv bible-kjv-text
    bible -f gen1:1-rev22:21 > kjv.txt
    pip install 'speqc[export]'
    python tools/train_embedded.py --text kjv.txt

The run is fixed on one machine: seed, number of steps and deterministic kernels.
(Another processor or another version of torch sums in another order and gives other weights.)
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from export_onnx import export_decoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

END = "<|endoftext|>"
VERSE = re.compile(r"(?P<chapter>\w+):\d+ (?P<text>.+)")
HELD_OUT_EVERY = 40
"""One chapter in this many is never trained on."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the result depends on besides the text."""

    seed: int = 1611
    steps: int = 2000
    warmup: int = 100
    tokens_per_step: int = 1024
    sequence: int = 256
    long_sequence: int = 512
    long_every: int = 4
    decay_steps: int = 1200
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    vocabulary: int = 2048
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    positions: int = 1024


def read_chapters(path: Path) -> list[str]:
    """Return the chapters in order: verses without their numbers, one a line."""
    chapters: dict[str, list[str]] = {}
    for line in path.read_text("ascii").splitlines():
        match = VERSE.fullmatch(line)
        if match is None:
            raise SystemExit(f"{path}: not a verse as `bible -f` prints it: {line[:60]!r}")
        chapters.setdefault(match["chapter"], []).append(match["text"])
    return ["\n".join(verses) + "\n" for verses in chapters.values()]


def train_tokenizer(chapters: list[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer; token 0 ends a chapter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chapters, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, chapters: list[str]) -> torch.Tensor:
    """Return all chapters as one int64 vector, each followed by the end token."""
    end = tokenizer.token_to_id(END)
    ids = [i for c in tokenizer.encode_batch(chapters) for i in (*c.ids, end)]
    return torch.tensor(ids)


def build_model(recipe: Recipe) -> LlamaForCausalLM:
    """Return the untrained model in FP32."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def windows(tokens: torch.Tensor, recipe: Recipe, step: int, rng: torch.Generator) -> torch.Tensor:
    """Return this step's batch of random windows; every `long_every`-th step has long ones."""
    is_long = step % recipe.long_every == recipe.long_every - 1
    length = recipe.long_sequence if is_long else recipe.sequence
    batch = recipe.tokens_per_step // length
    starts = torch.randint(len(tokens) - length, (batch, 1), generator=rng)
    return tokens[starts + torch.arange(length)]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate at `step`: linear warm-up, constant, then linear down to nearly zero.

    Until the last `decay_steps` it does not depend on the number of steps, so a run can be
    lengthened from a checkpoint.
    """
    up = (step + 1) / recipe.warmup
    down = (recipe.steps - step) / recipe.decay_steps
    return recipe.learning_rate * min(1.0, up, down)


def make_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: torch.Tensor, length: int) -> float:
    """Return the mean loss in nats per token over consecutive windows of `length`."""
    batch = tokens[: len(tokens) // length * length].view(-1, length)
    losses = [model(input_ids=b, labels=b).loss.item() * len(b) for b in batch.split(16)]
    return sum(losses) / len(batch)


def publish(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path, record: dict) -> None:
    """Write the model's files and the record of its training into `out`."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=1024
    )
    generation = GenerationConfig(bos_token_id=0, eos_token_id=0)
    export_decoder(copy.deepcopy(model), model.config, out, fast, generation)
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


class Training:
    """The state of a run: model, optimizer, generator of windows, step and smoothed loss."""

    def __init__(self, recipe: Recipe) -> None:
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.model = build_model(recipe)
        self.compiled = torch.compile(self.model, dynamic=False)
        self.optimizer = make_optimizer(self.model, recipe)
        self.rng = torch.Generator().manual_seed(recipe.seed)
        self.step = 0
        self.loss = math.log(recipe.vocabulary)

    def advance(self, tokens: torch.Tensor) -> None:
        """Do one step."""
        batch = windows(tokens, self.recipe, self.step, self.rng)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step)
        loss = self.compiled(input_ids=batch, labels=batch).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.loss += 0.02 * (loss.item() - self.loss)
        self.step += 1

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to go on exactly where this stands."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "step": self.step,
            "loss": self.loss,
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Go on from a file written by `save`."""
        state = torch.load(path)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.step, self.loss = state["step"], state["loss"]


def train(
    recipe: Recipe, chapters: list[str], out: Path, publish_at: set[int], checkpoint: Path | None
) -> None:
    """Train, publishing to `out` at the end and after each of the steps in `publish_at`."""
    held_out = chapters[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    kept = [c for c in chapters if c not in held_out]
    tokenizer = train_tokenizer(kept, recipe.vocabulary)
    tokens, test_tokens = encode(tokenizer, kept), encode(tokenizer, held_out)
    run = Training(recipe)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    start, first = time.monotonic(), run.step
    while run.step < recipe.steps:
        run.advance(tokens)
        if run.step % 50 == 0:
            rate = (run.step - first) * recipe.tokens_per_step / (time.monotonic() - start)
            print(f"step {run.step} loss {run.loss:.3f} {rate:.0f} tokens/s", flush=True)
            if checkpoint is not None:
                run.save(checkpoint)
        if run.step in publish_at or run.step == recipe.steps:
            record = {
                "recipe": asdict(recipe),
                "parameters": sum(p.numel() for p in run.model.parameters()),
                "text_tokens": len(tokens),
                "held_out_tokens": len(test_tokens),
                "steps_done": run.step,
                "tokens_seen": run.step * recipe.tokens_per_step,
                "train_loss": round(run.loss, 4),
                "held_out_loss": round(held_out_loss(run.model, test_tokens, recipe.sequence), 4),
                "torch": torch.__version__,
            }
            print(json.dumps(record), flush=True)
            publish(run.model, tokenizer, out, record)


def main() -> None:
    """Read the options and train."""
    default_out = Path(__file__).parent.parent / "speqc" / "models" / "kjv"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="the verses, from `bible -f`")
    parser.add_argument("--out", type=Path, default=default_out, help="folder to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--publish-at", type=int, nargs="*", default=[], help="earlier exports")
    parser.add_argument("--checkpoint", type=Path, help="saved here, and taken up from here")
    options = parser.parse_args()
    torch.set_num_threads(2)
    recipe = Recipe(steps=options.steps)
    chapters = read_chapters(options.text)
    train(recipe, chapters, options.out, set(options.publish_at), options.checkpoint)


if __name__ == "__main__":
    main()
