#!/usr/bin/env python3
"""Times a training step of the default model: teeny-train's against PyTorch's, on the CPU.

    cargo build --release -p teeny-trainer --example step_time
    trainer/.venv/bin/python tests/peers/train_step.py [--threads 1 2] [--steps 7] [--batch 64]

Both do the same work on the same libtorch: 4 layers, 8 heads, width 256, context 256, rope, LayerNorm,
SwiGLU, dropout 0.2 after the embedding, on the attention weights and after the feed-forward network,
AdamW. The PyTorch side is what one would write: fused query-key-value projection, the fused
scaled_dot_product_attention, the fused AdamW. The two take turns, step by step, so that whatever else
the machine does hits both; the first step of each is not counted.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB_SIZE, N_LAYER, N_HEAD, N_EMBD, N_CONTEXT, DROPOUT = 65, 4, 8, 256, 256, 0.2


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda n: nn.Linear(N_EMBD, n, bias=False)
        self.input_norm = nn.LayerNorm(N_EMBD, bias=False)
        self.qkv, self.o = linear(3 * N_EMBD), linear(N_EMBD)
        self.post_norm = nn.LayerNorm(N_EMBD, bias=False)
        self.gate, self.up, self.down = linear(N_EMBD), linear(N_EMBD), linear(N_EMBD)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        q, k, v = self.qkv(self.input_norm(x)).view(b, t, 3, N_HEAD, c // N_HEAD).unbind(2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=DROPOUT, is_causal=True
        )
        x = x + self.o(y.transpose(1, 2).reshape(b, t, c))
        h = self.post_norm(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB_SIZE, N_EMBD)
        self.dropout = nn.Dropout(DROPOUT)
        self.layers = nn.ModuleList(Layer() for _ in range(N_LAYER))
        self.norm = nn.LayerNorm(N_EMBD, bias=False)
        self.lm_head = nn.Linear(N_EMBD, VOCAB_SIZE, bias=False)
        head_dim = N_EMBD // N_HEAD
        rates = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
        angles = torch.arange(N_CONTEXT)[:, None, None] * torch.cat((rates, rates))
        self.cos, self.sin = angles.cos(), angles.sin()  # (N_CONTEXT, 1, head_dim)

    def forward(self, tokens):
        x = self.dropout(self.embed(tokens))
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.lm_head(self.norm(x))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class PyTorch:
    def __init__(self, threads, batch):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.model = Gpt()
        for weight in self.model.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, 0.0, 0.02)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        self.tokens = torch.randint(VOCAB_SIZE, (batch, N_CONTEXT + 1))

    def step(self):
        """Milliseconds of one step."""
        started = time.perf_counter()
        logits = self.model(self.tokens[:, :-1])
        loss = F.cross_entropy(logits.view(-1, VOCAB_SIZE), self.tokens[:, 1:].reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
        return (time.perf_counter() - started) * 1e3


class Teeny:
    def __init__(self, program, threads, batch):
        self.process = subprocess.Popen(
            [program, str(threads), f"train.n_batch={batch}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self):
        """Milliseconds of one step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--program", default=target / "release/examples/step_time")
    args = parser.parse_args()
    if not pathlib.Path(args.program).exists():
        parser.error(f"{args.program} is not built, see the top of {__file__}")
    for threads in args.threads:
        sides = [Teeny(args.program, threads, args.batch), PyTorch(threads, args.batch)]
        times = [[], []]
        for i in range(args.steps + 1):
            for side, results in zip(sides, times):
                ms = side.step()
                if i > 0:
                    results.append(ms)
        sides[0].close()
        ours, theirs = map(statistics.median, times)
        ratios = [a / b for a, b in zip(*times)]
        print(
            f"{threads} thread(s), batch {args.batch}: teeny {ours:.0f} ms, PyTorch {theirs:.0f} ms, "
            f"ratio of each pair: median {statistics.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
