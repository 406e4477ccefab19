#!/usr/bin/env python3
"""Times training steps on the CPU: teeny-train's against PyTorch's, at two shapes.

    cargo build --release -p teeny-trainer --example step_time
    trainer/.venv/bin/python tests/peers/train_step.py [--shapes default nanogpt] [--threads 1 2]
        [--turns N] [--set SECTION.KEY=VALUE ...]

Both do the same work on the same libtorch and print a table in Markdown:

    default  config.ini: 4 layers, 8 heads, width 256, context 256, rope, LayerNorm, SwiGLU, dropout 0.2,
             batches of 64
    nanogpt  nanoGPT's settings for a CPU: 4 layers, 4 heads, width 128, context 64, learned positions,
             LayerNorm, GELU, tied embeddings, no dropout, batches of 12

with AdamW, weight decay 0.1 on matrices, and no clipping. The PyTorch side is eager and what one would
write: batches from random places of the text, fused query-key-value projection, the fused
scaled_dot_product_attention, torch.optim.AdamW(fused=True), all in float32. --set changes our side, for
example `--set train.dtype=f32`; it may be repeated.

The sides take turns of a few steps each, so that whatever else the machine does hits both; the first turn
of each is not counted. The ratio of a turn is our median step by PyTorch's, and the table has the
median, the least and the greatest of all turns, and the median step of each side over all turns.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import subprocess
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB_SIZE = 65


@dataclasses.dataclass
class Shape:
    """A model and its batches, in the names of config.ini."""

    n_layer: int
    n_head: int
    n_embd: int
    ffn_dim: int
    max_seq_len: int
    n_batch: int
    dropout: float
    positional_encoding: str  # rope or learned
    ffn: str  # swiglu or gelu
    tie_embeddings: bool
    beta2: float
    turns: int = 0  # how often each side is timed,
    steps: int = 1  # and how many steps at a time

    def settings(self):
        """The same for teeny-train."""
        model = ["n_layer", "n_head", "n_embd", "ffn_dim", "max_seq_len", "dropout"]
        model += ["positional_encoding", "ffn", "tie_embeddings"]
        return [f"model.{key}={str(getattr(self, key)).lower()}" for key in model] + [
            f"train.n_context={self.max_seq_len}",
            f"train.n_batch={self.n_batch}",
            f"train.betas=0.9, {self.beta2}",
        ]

    def describe(self):
        return f"{self.n_layer} × {self.n_embd}, {self.n_batch} × {self.max_seq_len} tokens"


SHAPES = {
    "default": Shape(4, 8, 256, 256, 256, 64, 0.2, "rope", "swiglu", False, 0.95, turns=7),
    "nanogpt": Shape(4, 4, 128, 512, 64, 12, 0.0, "learned", "gelu", True, 0.99, turns=9, steps=10),
    # nanoGPT's train_shakespeare_char, for train_gpu.py.
    "shakespeare_char": Shape(6, 6, 384, 1536, 256, 64, 0.2, "learned", "gelu", True, 0.99),
}


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, n = shape, shape.n_embd
        self.input_norm = nn.LayerNorm(n, bias=False)
        self.qkv = nn.Linear(n, 3 * n, bias=False)
        self.o = nn.Linear(n, n, bias=False)
        self.post_norm = nn.LayerNorm(n, bias=False)
        self.up = nn.Linear(n, shape.ffn_dim, bias=False)
        self.gate = nn.Linear(n, shape.ffn_dim, bias=False) if shape.ffn == "swiglu" else None
        self.down = nn.Linear(shape.ffn_dim, n, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x, rotation):
        b, t, c = x.shape
        heads = self.qkv(self.input_norm(x)).view(b, t, 3, self.shape.n_head, -1)
        q, k, v = heads.unbind(2)
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=self.shape.dropout if self.training else 0.0,
            is_causal=True,
        )
        x = x + self.o(y.transpose(1, 2).reshape(b, t, c))
        h = self.post_norm(x)
        up = self.up(h)
        hidden = F.gelu(up) if self.gate is None else F.silu(self.gate(h)) * up
        return x + self.dropout(self.down(hidden))


class Gpt(nn.Module):
    def __init__(self, shape):
        super().__init__()
        n, length = shape.n_embd, shape.max_seq_len
        self.embed = nn.Embedding(VOCAB_SIZE, n)
        learned = shape.positional_encoding == "learned"
        self.positions = nn.Embedding(length, n) if learned else None
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.norm = nn.LayerNorm(n, bias=False)
        self.lm_head = nn.Linear(n, VOCAB_SIZE, bias=False)
        if shape.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        head_dim = n // shape.n_head
        rates = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.arange(length)[:, None, None] * torch.cat((rates, rates))
        self.register_buffer("cos", angles.cos())  # (max_seq_len, 1, head_dim)
        self.register_buffer("sin", angles.sin())
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, 0.0, 0.02)

    def forward(self, tokens):
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        x = self.dropout(x)
        rotation = (self.cos, self.sin) if self.positions is None else None
        for layer in self.layers:
            x = layer(x, rotation)
        return self.lm_head(self.norm(x))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class PyTorch:
    """Training in eager PyTorch. `bf16`: under autocast; `clip`: longest gradient, 0 for any."""

    def __init__(self, shape, device="cpu", bf16=False, clip=0.0):
        torch.manual_seed(0)
        self.shape, self.device, self.bf16, self.clip = shape, device, bf16, clip
        self.model = Gpt(shape).to(device)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
            lr=1e-3,
            betas=(0.9, shape.beta2),
            fused=True,
        )
        self.text = torch.randint(VOCAB_SIZE, (200_000,))

    def batch(self):
        t = self.shape.max_seq_len
        places = torch.randint(len(self.text) - t, (self.shape.n_batch,))
        x, y = (torch.stack([self.text[i + d : i + d + t] for i in places]) for d in (0, 1))
        if self.device == "cpu":
            return x, y
        return [part.pin_memory().to(self.device, non_blocking=True) for part in (x, y)]

    def step(self):
        """One step. Returns the loss, which may still be under way."""
        tokens, targets = self.batch()
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=self.bf16):
            logits = self.model(tokens)
            loss = F.cross_entropy(logits.view(-1, VOCAB_SIZE), targets.reshape(-1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss

    def time(self, steps):
        """Milliseconds of each of so many steps, the loss seen after each."""
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            self.step().item()
            times.append((time.perf_counter() - started) * 1e3)
        return times


class Teeny:
    """The example step_time, which does a step for each line."""

    def __init__(self, program, threads, settings):
        self.process = subprocess.Popen(
            [program, str(threads), *settings],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def time(self, steps):
        """Milliseconds of each of so many steps."""
        times = []
        for _ in range(steps):
            try:
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # it has said why on standard error
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"step_time has ended with {self.process.wait()}")
            times.append(float(line))
        return times

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(program, shape, threads, turns, settings):
    """A row of the table."""
    torch.set_num_threads(threads)
    sides = [Teeny(program, threads, shape.settings() + settings), PyTorch(shape)]
    times, ratios = [[], []], []
    for turn in range(turns + 1):
        found = [side.time(shape.steps) for side in sides]
        if turn > 0:
            ratios.append(statistics.median(found[0]) / statistics.median(found[1]))
            for all_of_it, part in zip(times, found):
                all_of_it.extend(part)
    sides[0].close()
    ours, theirs = map(statistics.median, times)
    ratio = statistics.median(ratios)
    return (
        f"{threads} | {ours:,.1f} ms | {theirs:,.1f} ms"
        f" | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        f" | {1 / ratio:.1f} ×"
    )


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=["default", "nanogpt"], nargs="+", default=["default", "nanogpt"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, help="turns that count [7, nanogpt: 9 of 10 steps]")
    parser.add_argument("--batch", type=int, help="sequences in a batch")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--program", default=target / "release/examples/step_time")
    args = parser.parse_args()
    if not pathlib.Path(args.program).exists():
        parser.error(f"{args.program} is not built, see the top of {__file__}")
    print("| shape | threads | teeny-train | PyTorch | ratio of each turn | as fast as PyTorch |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in args.shapes:
        shape = SHAPES[name]
        if args.batch:
            shape = dataclasses.replace(shape, n_batch=args.batch)
        for threads in args.threads:
            row = compare(args.program, shape, threads, args.turns or shape.turns, args.set)
            print(f"| {name}: {shape.describe()} | {row} |", flush=True)


if __name__ == "__main__":
    main()
