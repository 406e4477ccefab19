#!/usr/bin/env python3
"""Is the PyTorch model of tests/peers/model.py the model that teeny runs?

    cargo build --release -p teeny-runtime
    trainer/.venv/bin/python tests/peers_test.py

teeny-run continues a prompt greedily, with the model that ships and with random ones of every kind. The
reference in double precision is fed the same text: each token of teeny's must be its most likely one, or
one that is no less likely than rounding explains. Then the ways in which the peers decode (one by one
with the position as a number and as a tensor, the prompt at once or in pieces) must agree among
themselves. TEENY_RUN names another program than target/release/teeny-run.
"""

import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/peers"))
from model import DTYPES, PRESETS, Config, File, Model, encode, small, tensor_shapes, write_model

target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
TEENY_RUN = os.environ.get("TEENY_RUN", target / "release/teeny-run")
torch.set_grad_enabled(False)


def lively(config, seed):
    """Random weights that keep activations near one, so that every part of a model shows in its text."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = torch.rand(shape, generator=generator) * 2 - 1
        if len(shape) == 1:
            mean = 1 if name.endswith("norm.weight") else 0
            tensors[name] = mean + 0.3 * values
        else:
            embedding = "embed_tokens" in name and not config.tie_embeddings
            tensors[name] = values * (1 if embedding else (3 / shape[1]) ** 0.5)
    return tensors


LLAMA3 = {"rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0, "rope_original_max_seq_len": 12}


def kinds():
    """Every positional encoding, norm and ffn, and each option by itself."""
    base = Config(29, 2, 3, 3, 30, 37, 256)
    for encoding, norm, ffn in itertools.product(
        ["none", "alibi", "sinusoidal", "learned", "learned_sinusoidal", "rope"],
        ["none", "layernorm", "rmsnorm"],
        ["classic", "gelu", "gelu_tanh", "relu2", "swiglu"],
    ):
        yield dataclasses.replace(base, positional_encoding=encoding, norm=norm, ffn=ffn)
    for change in [
        {"final_norm": False},
        {"attention_bias": True, "ffn_bias": True, "norm_bias": True, "lm_head_bias": True},
        {"ffn": "classic", "ffn_bias": True},
        {"tie_embeddings": True},
        {"rope_theta": 500.0, "norm_eps": 0.1},
        {"norm": "rmsnorm", "norm_eps": 0.1},
        {"n_embd": 40, "n_head": 5, "n_kv_head": 1},
        {"n_embd": 32, "n_head": 8, "n_kv_head": 2},
        {"positional_encoding": "alibi", "n_embd": 36, "n_head": 6, "n_kv_head": 3},
        {"qk_norm": True, "attention_bias": True},
        {"logit_softcap": 1.5},
        {"qk_norm": True, "logit_softcap": 2.0, "n_embd": 32, "n_head": 8, "n_kv_head": 2},
        {"qk_norm": True, "positional_encoding": "learned", "norm_eps": 0.1},
        {"own_head_dim": 64},
        {"own_head_dim": 6, "n_kv_head": 1, "qk_norm": True, "attention_bias": True},
        {"rope_scaling": "linear", "rope_factor": 2.5},
        {"rope_scaling": "llama3", "rope_factor": 8.0, "own_head_dim": 34, **LLAMA3},
    ]:
        yield dataclasses.replace(base, **change)


class Peers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "model.safetensors"

    def compare(self, path, prompt, n, tolerance):
        """Returns at how many places teeny's token is the reference's most likely one."""
        command = [TEENY_RUN, "--model", path, "--prompt", prompt, "--temperature", "0"]
        command += ["--length", str(n), "--no-display-prompt", "--overflow", "stop"]
        text = subprocess.run(command, check=True, capture_output=True).stdout.decode()
        file = File(path)
        first, drawn = encode(file, prompt), encode(file, text)[:n]
        self.assertEqual(len(drawn), n, repr(text))
        tokens = torch.tensor([first + drawn])
        logits = Model(file, "cpu", torch.float64)(tokens[:, :-1], 0, every_row=True)
        logits = logits[0, len(first) - 1 :]  # (n, vocab_size)
        best = logits.max(-1).values
        behind = best - logits.gather(1, torch.tensor(drawn)[:, None])[:, 0]
        self.assertLess(behind.max().item(), tolerance, f"{file.config}, of {best.abs().max()}")
        return (behind == 0).sum().item()

    def test_the_model_that_ships(self):
        path = ROOT / "data/shakespeare.safetensors"
        for prompt in ["ROMEO:", "\n", "First Citizen:\nBefore we proceed any further, hear me"]:
            self.assertEqual(self.compare(path, prompt, 200, 1e-4), 200)

    def test_every_kind(self):
        for seed, config in enumerate(kinds()):
            write_model(self.path, config, lively(config, seed))
            with self.subTest(config):
                self.assertGreater(self.compare(self.path, "ABCDE", 200, 1e-3), 195)

    def test_presets(self):
        for name, dtype in [("default", "f32"), ("nanogpt", "f32"), ("gpt2", "bf16")]:
            config = PRESETS[name]
            values = lively(config, 1)
            tensors = {name: value.to(DTYPES[dtype]) for name, value in values.items()}
            write_model(self.path, config, tensors)
            with self.subTest(name):
                n = 40 if name == "gpt2" else 200
                self.assertGreater(self.compare(self.path, "ABCDE", n, 1e-2), n - 5)

    def test_ways_to_decode(self):
        for seed, config in enumerate(kinds()):
            write_model(self.path, config, lively(config, seed))
            model = Model(File(self.path), "cpu", torch.float64, batch=2, length=20)
            tokens = torch.randint(config.vocab_size, (2, 20))
            expected = model(tokens, 0, every_row=True)

            def check(found, start, end):
                difference = (found - expected[:, start:end]).abs().max().item()
                self.assertLess(difference, 1e-9, f"{config} {start} {end}")

            for pos in range(20):
                check(model(tokens[:, pos : pos + 1], pos)[:, None], pos, pos + 1)
            for layer in model.layers:
                layer.cache.zero_()
            for pos in range(20):
                at = torch.tensor([pos])
                check(model(tokens[:, pos : pos + 1], at, every_row=True), pos, pos + 1)
            for start, end in [(0, 7), (7, 8), (8, 20)]:
                check(model(tokens[:, start:end], start, every_row=True), start, end)

    def test_small_presets_are_models_too(self):
        for config in PRESETS.values():
            config = small(config)
            write_model(self.path, config, lively(config, 2))
            self.compare(self.path, "ABCDE", 20, 1e-3)


if __name__ == "__main__":
    unittest.main()
