#!/usr/bin/env python3
"""The models of runtime/FORMAT.md in PyTorch: reading and writing their files, and decoding.

    python3 tests/peers/model.py write nanogpt f32 nanogpt.safetensors [--seed N] [--small]

The model is written for speed, as its users would: query, key and value projections in one matrix
product (gate and up as well), scaled_dot_product_attention, positions, masks and caches made once. Every
peer of decode.py and the reference in double precision are this one class. It imports nothing but
PyTorch and the standard library.
"""

import argparse
import ctypes
import dataclasses
import json
import math
import mmap
import pathlib
import struct

import torch
import torch.nn as nn
import torch.nn.functional as F

DTYPES = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ALIGNMENT = 64
SINUSOID_DIM = 16


# Keys that a file may lack: those of later format versions.
LATER = ["qk_norm", "logit_softcap", "own_head_dim", "rope_scaling", "rope_factor"]
LATER += ["rope_low_freq_factor", "rope_high_freq_factor", "rope_original_max_seq_len"]


@dataclasses.dataclass
class Config:
    """The keys of the metadata, in their order."""

    vocab_size: int = 65
    n_layer: int = 4
    n_head: int = 8
    n_kv_head: int = 8
    n_embd: int = 256
    ffn_dim: int = 256
    max_seq_len: int = 256
    positional_encoding: str = "rope"
    rope_theta: float = 10000.0
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    final_norm: bool = True
    ffn: str = "swiglu"
    attention_bias: bool = False
    ffn_bias: bool = False
    norm_bias: bool = False
    lm_head_bias: bool = False
    tie_embeddings: bool = False
    qk_norm: bool = False
    logit_softcap: float = 0.0
    own_head_dim: int = 0  # the key head_dim, where it is not n_embd / n_head
    rope_scaling: str = ""
    rope_factor: float = 0.0
    rope_low_freq_factor: float = 0.0
    rope_high_freq_factor: float = 0.0
    rope_original_max_seq_len: int = 0

    @property
    def head_dim(self):
        return self.own_head_dim or self.n_embd // self.n_head

    @property
    def q_dim(self):
        return self.n_head * self.head_dim

    @property
    def kv_dim(self):
        return self.n_kv_head * self.head_dim

    def metadata(self):
        def text(value):
            if isinstance(value, bool):
                return str(value).lower()
            return f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

        values = dataclasses.asdict(self)
        # What format version 1 does not have is there only where it says something.
        said = {key: value for key, value in values.items() if value or key not in LATER}
        return {key.removeprefix("own_"): text(value) for key, value in said.items()}

    def format_version(self):
        if self.ffn == "gelu_tanh" or self.own_head_dim or self.rope_scaling:
            return "4"
        later = self.ffn == "relu2" or self.qk_norm or self.logit_softcap
        return "2" if later else "1"

    @staticmethod
    def from_metadata(metadata):
        def value(field):
            name = field.name.removeprefix("own_")
            if field.name in LATER and name not in metadata:
                return field.default
            text = metadata[name]
            return text == "true" if field.type is bool else field.type(text)

        return Config(**{field.name: value(field) for field in dataclasses.fields(Config)})


GPT2 = {"positional_encoding": "learned", "ffn": "gelu", "tie_embeddings": True}
PRESETS = {
    # The model that ships.
    "default": Config(),
    # shakespeare_char of nanoGPT, 10.7 M parameters.
    "nanogpt": Config(n_layer=6, n_head=6, n_kv_head=6, n_embd=384, ffn_dim=1536, **GPT2),
    # The smallest GPT-2, 124 M parameters.
    "gpt2": Config(
        vocab_size=50257,
        n_layer=12,
        n_head=12,
        n_kv_head=12,
        n_embd=768,
        ffn_dim=3072,
        max_seq_len=1024,
        attention_bias=True,
        ffn_bias=True,
        norm_bias=True,
        **GPT2,
    ),
}


def small(config):
    """The same kind of model in a size for trying scripts out."""
    heads = {"n_head": 2, "n_kv_head": 2, "n_layer": 2}
    vocab_size = min(config.vocab_size, 503)
    return dataclasses.replace(config, n_embd=32, ffn_dim=48, vocab_size=vocab_size, **heads)


# Files


def tensor_shapes(c):
    """Every tensor of a model, from input to output: name -> shape."""
    shapes = {"model.embed_tokens.weight": (c.vocab_size, c.n_embd)}

    def linear(name, n_out, n_in, bias):
        shapes[f"{name}.weight"] = (n_out, n_in)
        if bias:
            shapes[f"{name}.bias"] = (n_out,)

    def norm(name):
        if c.norm != "none":
            shapes[f"{name}.weight"] = (c.n_embd,)
            if c.norm_bias:
                shapes[f"{name}.bias"] = (c.n_embd,)

    if c.positional_encoding == "learned":
        shapes["model.embed_positions.weight"] = (c.max_seq_len, c.n_embd)
    elif c.positional_encoding == "learned_sinusoidal":
        linear("model.embed_positions.proj", c.n_embd, SINUSOID_DIM, True)
    for n in range(c.n_layer):
        layer = f"model.layers.{n}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.self_attn.q_proj", c.q_dim, c.n_embd, c.attention_bias)
        linear(f"{layer}.self_attn.k_proj", c.kv_dim, c.n_embd, c.attention_bias)
        linear(f"{layer}.self_attn.v_proj", c.kv_dim, c.n_embd, c.attention_bias)
        if c.qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = (c.head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (c.head_dim,)
        linear(f"{layer}.self_attn.o_proj", c.n_embd, c.q_dim, c.attention_bias)
        norm(f"{layer}.post_attention_layernorm")
        if c.ffn == "swiglu":
            linear(f"{layer}.mlp.gate_proj", c.ffn_dim, c.n_embd, c.ffn_bias)
        linear(f"{layer}.mlp.up_proj", c.ffn_dim, c.n_embd, c.ffn_bias)
        linear(f"{layer}.mlp.down_proj", c.n_embd, c.ffn_dim, c.ffn_bias)
    if c.final_norm:
        norm("model.norm")
    if not c.tie_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.n_embd)
    if c.lm_head_bias:
        shapes["lm_head.bias"] = (c.vocab_size,)
    return shapes


def random_tensors(config, dtype, seed):
    """Weights as GPT-2 begins with them, at any width; norms and biases differ from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            values = 1 + 0.1 * values if name.endswith("norm.weight") else 0.02 * values
        else:
            values *= 0.02 * math.sqrt(768 / config.n_embd)
            if "o_proj" in name or "down_proj" in name:
                values /= math.sqrt(2 * config.n_layer)
        tensors[name] = values.to(dtype)
    return tensors


def alphabet(n):
    """A vocabulary of n characters. 'A' is the first and none is a surrogate."""
    codes = (code for code in range(ord("A"), 0x110000) if not 0xD800 <= code < 0xE000)
    return "".join(chr(next(codes)) for _ in range(n))


def write_model(path, config, tensors, chars=None):
    """Writes a model file; all tensors have one element type."""
    dtype = next(iter(tensors.values())).dtype
    stored = {dtype: name for name, dtype in STORED.items()}[dtype]
    metadata = {"format": "teeny", "format_version": config.format_version(), **config.metadata()}
    metadata["tokenizer"] = json.dumps(
        {"type": "char", "chars": chars or alphabet(config.vocab_size)}, ensure_ascii=False
    )
    header = {"__metadata__": metadata}
    # Tensors of aligned sizes come first, so that each of them is aligned.
    order = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNMENT != 0)
    offset = 0
    for name in order:
        end = offset + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            values = tensors[name].contiguous()
            file.write((ctypes.c_char * values.nbytes).from_address(values.data_ptr()))


def write_random(path, config, dtype, seed=0):
    write_model(path, config, random_tensors(config, DTYPES[dtype], seed))


class File:
    """A model file: config, characters, and tensors as they are stored."""

    def __init__(self, path):
        with open(path, "rb") as file:
            # Private pages, because PyTorch knows no tensors that must not be written.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        (n,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + n])
        self.metadata = header.pop("__metadata__")
        self.config = Config.from_metadata(self.metadata)
        self.chars = json.loads(self.metadata["tokenizer"])["chars"]
        self.tensors = {}
        for name, entry in header.items():
            shape, (start, end) = entry["shape"], entry["data_offsets"]
            self.tensors[name] = torch.frombuffer(
                data, dtype=STORED[entry["dtype"]], count=math.prod(shape), offset=8 + n + start
            ).view(shape)
            assert self.tensors[name].nbytes == end - start, name
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        assert found == tensor_shapes(self.config), f"{path}: tensors of another model"

    def bytes_per_token(self):
        """Bytes of weights that a decode step needs at batch 1: of embeddings but one row."""
        rows = {"model.embed_positions.weight"}
        if not self.config.tie_embeddings:
            rows.add("model.embed_tokens.weight")
        return sum(
            tensor.nbytes // (len(tensor) if name in rows else 1)
            for name, tensor in self.tensors.items()
        )


# Positions, all of them computed in double precision


def frequencies(base, width):
    return base ** (-2.0 * torch.arange(width // 2, dtype=torch.float64) / width)


def scaled(rates, c):
    """Frequencies of rope for longer texts, as transformers' modeling_rope_utils has them."""
    if c.rope_scaling == "linear":
        return rates / c.rope_factor
    if c.rope_scaling == "llama3":
        turns = c.rope_original_max_seq_len * rates / (2 * math.pi)
        low, high = c.rope_low_freq_factor, c.rope_high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return torch.lerp(rates / c.rope_factor, rates, kept)
    return rates


def sinusoid(n, width):
    """Sines at even places, cosines at odd ones. (n, width)"""
    angles = torch.arange(n, dtype=torch.float64)[:, None] * frequencies(10000.0, width)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


def alibi_slopes(n_head):
    def geometric(n):
        return [2.0 ** (-8.0 * (h + 1) / n) for h in range(n)]

    power = 1 << (n_head.bit_length() - 1)
    return geometric(power) + geometric(2 * power)[::2][: n_head - power]


# The model


class Linear(nn.Module):
    """One matrix product for one or more projections of the same input."""

    def __init__(self, tensors, names, convert):
        super().__init__()
        self.register_buffer("weight", convert(torch.cat([tensors[f"{n}.weight"] for n in names])))
        bias = [tensors[f"{n}.bias"] for n in names if f"{n}.bias" in tensors]
        self.register_buffer("bias", convert(torch.cat(bias)) if bias else None)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    def __init__(self, config, tensors, name, convert):
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        for part in ("weight", "bias"):
            values = tensors.get(f"{name}.{part}")
            self.register_buffer(part, None if values is None else convert(values))

    def forward(self, x):
        if self.weight is None:
            return x
        if self.kind == "layernorm":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Layer(nn.Module):
    def __init__(self, config, tensors, n, convert, cache):
        super().__init__()
        self.config = config
        name = f"model.layers.{n}"
        self.input_norm = Norm(config, tensors, f"{name}.input_layernorm", convert)
        qkv = [f"{name}.self_attn.{part}_proj" for part in "qkv"]
        self.qkv = Linear(tensors, qkv, convert)
        if config.qk_norm:
            # Of every query and key head: (n_head + n_kv_head, 1, head_dim)
            heads = [("q", config.n_head), ("k", config.n_kv_head)]
            weights = [tensors[f"{name}.self_attn.{x}_norm.weight"].repeat(n, 1, 1) for x, n in heads]
            self.register_buffer("head_norm", convert(torch.cat(weights)))
        self.o = Linear(tensors, [f"{name}.self_attn.o_proj"], convert)
        self.post_norm = Norm(config, tensors, f"{name}.post_attention_layernorm", convert)
        gate_up = [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"]
        self.up = Linear(tensors, gate_up if config.ffn == "swiglu" else gate_up[1:], convert)
        self.down = Linear(tensors, [f"{name}.mlp.down_proj"], convert)
        # Keys and values of all positions: (batch, 2 * n_kv_head, length, head_dim)
        self.register_buffer("cache", cache)

    def forward(self, x, pos, rotation, mask, causal):
        x = x + self.o(self.attention(self.input_norm(x), pos, rotation, mask, causal))
        return x + self.down(self.activation(self.up(self.post_norm(x))))

    def attention(self, x, pos, rotation, mask, causal):
        c = self.config
        batch, rows, _ = x.shape
        # (batch, n_head + 2 * n_kv_head, rows, head_dim)
        heads = self.qkv(x).view(batch, rows, -1, c.head_dim).transpose(1, 2)
        if c.qk_norm:
            n = c.n_head + c.n_kv_head
            normed = F.rms_norm(heads[:, :n], (c.head_dim,), eps=c.norm_eps) * self.head_norm
            heads = torch.cat((normed, heads[:, n:]), 1)
        if rotation is None:
            q, kv = heads[:, : c.n_head], heads[:, c.n_head :]
            self.store(self.cache, pos, kv)
        else:
            n = c.n_head + c.n_kv_head
            turned = rotate(heads[:, :n], *rotation)
            q = turned[:, : c.n_head]
            self.store(self.cache[:, : c.n_kv_head], pos, turned[:, c.n_head :])
            self.store(self.cache[:, c.n_kv_head :], pos, heads[:, n:])
        cache = self.cache[:, :, : pos + rows] if isinstance(pos, int) else self.cache
        y = F.scaled_dot_product_attention(
            q,
            cache[:, : c.n_kv_head],
            cache[:, c.n_kv_head :],
            attn_mask=mask,
            is_causal=causal,
            enable_gqa=c.n_kv_head != c.n_head,
        )
        return y.transpose(1, 2).reshape(batch, rows, c.q_dim)

    @staticmethod
    def store(cache, pos, values):
        if isinstance(pos, int):
            cache[:, :, pos : pos + values.shape[2]] = values
        else:
            cache.index_copy_(2, pos, values)

    def activation(self, x):
        if self.config.ffn == "swiglu":
            gate, up = x.chunk(2, -1)
            return F.silu(gate) * up
        if self.config.ffn == "gelu":
            return F.gelu(x)
        if self.config.ffn == "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        x = F.relu(x)
        return x * x if self.config.ffn == "relu2" else x


def rotate(x, cos, sin):
    """Turns the pairs (i, i + head_dim/2); the first half of `sin` is negative."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Model(nn.Module):
    """A model with the cache of `batch` sequences of up to `length` tokens, all at the same position."""

    def __init__(self, file, device, dtype, batch=1, length=None):
        super().__init__()
        c, tensors = file.config, file.tensors
        self.config, self.device, self.batch = c, torch.device(device), batch
        self.length = min(length or c.max_seq_len, c.max_seq_len)
        convert = lambda values: values.to(self.device, dtype, copy=True)
        self.register_buffer("embedding", convert(tensors["model.embed_tokens.weight"]))
        self.layers = nn.ModuleList()
        for n in range(c.n_layer):
            cache = convert(torch.zeros(batch, 2 * c.n_kv_head, self.length, c.head_dim))
            self.layers.append(Layer(c, tensors, n, convert, cache))
        self.norm = Norm(c, tensors if c.final_norm else {}, "model.norm", convert)
        head = "model.embed_tokens.weight" if c.tie_embeddings else "lm_head.weight"
        self.register_buffer(
            "head", self.embedding if c.tie_embeddings else convert(tensors[head])
        )
        bias = tensors.get("lm_head.bias")
        self.register_buffer("head_bias", None if bias is None else convert(bias))

        positions = self.added_positions(tensors)  # (length, n_embd)
        self.register_buffer("positions", None if positions is None else convert(positions))
        cos, sin = self.rotations()  # (length, head_dim)
        self.register_buffer("cos", None if cos is None else convert(cos))
        self.register_buffer("sin", None if sin is None else convert(sin))
        # What is added to the scores: (1 or n_head, length, length)
        self.register_buffer("bias", convert(self.score_bias()))
        self.eval()

    def added_positions(self, tensors):
        kind, n = self.config.positional_encoding, self.length
        if kind == "learned":
            return tensors["model.embed_positions.weight"][:n]
        if kind == "sinusoidal":
            return sinusoid(n, self.config.n_embd)
        if kind == "learned_sinusoidal":
            name = "model.embed_positions.proj"
            weight, bias = tensors[f"{name}.weight"].double(), tensors[f"{name}.bias"].double()
            return F.linear(sinusoid(n, SINUSOID_DIM), weight, bias)
        return None

    def rotations(self):
        c = self.config
        if c.positional_encoding != "rope":
            return None, None
        rates = scaled(frequencies(c.rope_theta, c.head_dim), c)
        angles = torch.arange(self.length, dtype=torch.float64)[:, None] * rates
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def score_bias(self):
        at = torch.arange(self.length, dtype=torch.float64)
        distance = at[:, None] - at[None, :]
        bias = torch.zeros(1, self.length, self.length, dtype=torch.float64)
        if self.config.positional_encoding == "alibi":
            slopes = torch.tensor(alibi_slopes(self.config.n_head), dtype=torch.float64)
            bias = -slopes[:, None, None] * distance
        return bias.masked_fill(distance < 0, -math.inf)

    def forward(self, tokens, pos, every_row=False):
        """Logits of the last row, (batch, vocab_size), or of every row, (batch, rows, vocab_size).

        tokens: (batch, rows). `pos`, where the first row stands, is a number, so that attention reads no
        further than it must; or, for a single row, a (1) tensor, so that the work is the same at every
        position.
        """
        alibi = self.config.positional_encoding == "alibi"
        rows = tokens.shape[1]
        x = F.embedding(tokens, self.embedding)
        if isinstance(pos, int):
            pick = lambda table: table[pos : pos + rows]
            causal = rows > 1 and pos == 0 and not alibi
            mask = None
            if alibi or (rows > 1 and not causal):
                mask = self.bias[None, :, pos : pos + rows, : pos + rows]
        else:
            pick = lambda table: table.index_select(0, pos)
            causal, mask = False, self.bias.index_select(1, pos)[None]
        if self.positions is not None:
            x = x + pick(self.positions)
        rotation = None if self.cos is None else (pick(self.cos), pick(self.sin))
        for layer in self.layers:
            x = layer(x, pos, rotation, mask, causal)
        if not every_row:
            x = x[:, -1]
        logits = F.linear(self.norm(x), self.head, self.head_bias)
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits


def encode(file, text):
    """The ids of the characters that the model knows."""
    ids = {c: i for i, c in enumerate(file.chars)}
    return [ids[c] for c in text if c in ids]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    write = commands.add_parser("write", help="write a model of random weights")
    write.add_argument("preset", choices=PRESETS)
    write.add_argument("dtype", choices=["f32", "f16", "bf16"])
    write.add_argument("path", type=pathlib.Path)
    write.add_argument("--seed", type=int, default=0)
    write.add_argument("--small", action="store_true", help="the same kind, a few thousand parameters")
    args = parser.parse_args()
    config = PRESETS[args.preset]
    config = small(config) if args.small else config
    write_random(args.path, config, args.dtype, args.seed)
    n = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    print(f"{args.path}: {args.preset}, {n / 1e6:.2f} M parameters, {args.dtype}")


if __name__ == "__main__":
    main()
