#!/usr/bin/env python3
"""Times decoding: teeny's against PyTorch's, in turn, with the same weights and the same sampling.

    python3 tests/peers/decode.py MODEL --dtype bf16 --teeny target/gpu/gpu_decode --json FILE

The peers, all of them the one model of model.py with a static KV cache:

    eager           a step at a time, attention over the positions that there are
    compile         one step under torch.compile(mode="reduce-overhead", fullgraph=True)
    graph           a torch.cuda.CUDAGraph of 32 unrolled steps, sampling inside, tokens and positions on
                    the device, attention over the whole cache with a mask
    graph-fixed     as many such graphs as there are blocks of 32 positions, attention over the positions
                    that there are
    graph-compiled  as graph, of steps under torch.compile

A run feeds token 0 to an empty cache and draws --steps tokens, each of which is fed next; it ends when
all are on the host. Greedy takes the most likely token, sampled draws at temperature 0.8 from the 40
most likely. A batch decodes that many sequences, of which sequence i begins with token i % vocab_size;
a prefill ends with the last position's logits on the host. README.md says what teeny's program prints.

On a CPU there are no graphs: the same functions are called without.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

import torch
import torch.nn as nn

from model import DTYPES, File, Model
from table import ratios, speed

UNROLLED, TEMPERATURE, TOP_K = 32, 0.8, 40
# What is measured in turn, teeny each time. The last two compile for a while: should that fail or take too
# long, the others have been measured.
PHASES = [["eager", "graph", "graph-fixed"], ["compile"], ["graph-compiled"]]
PEERS = sum(PHASES, [])
CHECKED = 8  # sequences of a batch whose tokens are kept


def greedy(logits):
    return logits.argmax(-1)


def sampled(logits):
    """Draws without a round trip to the host, which torch.multinomial makes."""
    values, tokens = logits.topk(min(TOP_K, logits.shape[-1]), sorted=False)
    likely = torch.softmax(values.float() / TEMPERATURE, -1)
    drawn = (likely / torch.empty_like(likely).exponential_(1)).argmax(-1, keepdim=True)
    return tokens.gather(-1, drawn).squeeze(-1)


def first_tokens(batch, vocab_size):
    return torch.arange(batch) % vocab_size


def prompt(n, vocab_size):
    return torch.arange(n) * 7919 % vocab_size


class Eager:
    def __init__(self, model, pick, steps):
        self.model, self.pick, self.steps = model, pick, steps
        self.first = first_tokens(model.batch, model.config.vocab_size).to(model.device)

    def reset(self):
        pass

    def run(self):
        """Launches everything and returns the tokens, (steps, batch), on the device."""
        token, drawn = self.first, []
        for pos in range(self.steps):
            token = self.pick(self.model(token[:, None], pos))
            drawn.append(token)
        return torch.stack(drawn)


class State(nn.Module):
    """Token, position and drawn tokens on the device."""

    def __init__(self, model, pick, steps):
        super().__init__()
        self.model, self.pick, self.steps = model, pick, steps
        first = first_tokens(model.batch, model.config.vocab_size).to(model.device)
        self.register_buffer("first", first)
        self.register_buffer("token", first.clone())  # (batch)
        self.register_buffer("pos", torch.zeros(1, dtype=torch.long, device=model.device))
        self.register_buffer("drawn", torch.zeros_like(first).repeat(steps, 1))  # (steps, batch)

    def reset(self):
        self.token.copy_(self.first)
        self.pos.zero_()

    def step(self):
        token = self.pick(self.model(self.token[:, None], self.pos))
        self.drawn.index_copy_(0, self.pos, token[None])
        self.token.copy_(token)
        self.pos.add_(1)


class Compiled(State):
    def __init__(self, model, pick, steps):
        super().__init__(model, pick, steps)
        # Tensors that a recorded graph may write to where they are.
        for buffer in [self.token, self.pos, self.drawn] + [l.cache for l in model.layers]:
            torch._dynamo.mark_static_address(buffer)
        self.compiled = torch.compile(self.step, mode="reduce-overhead", fullgraph=True)

    def run(self):
        for _ in range(self.steps):
            self.compiled()
        return self.drawn


class Graph(State):
    def __init__(self, model, pick, steps):
        super().__init__(model, pick, steps)
        self.register_buffer("ahead", torch.arange(UNROLLED, device=model.device))
        self.replay = captured(self.block, warm_up=self.reset)

    def block(self):
        token, drawn, at = self.token, [], self.pos + self.ahead
        for i in range(UNROLLED):
            token = self.pick(self.model(token[:, None], at[i : i + 1]))
            drawn.append(token)
        self.drawn.index_copy_(0, at, torch.stack(drawn))
        self.token.copy_(token)
        self.pos.add_(UNROLLED)

    def run(self):
        for _ in range(self.steps // UNROLLED):
            self.replay()
        return self.drawn


class FixedGraph(State):
    def __init__(self, model, pick, steps):
        super().__init__(model, pick, steps)
        starts = range(0, steps, UNROLLED)
        pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None
        block = lambda start: captured(lambda: self.block(start), self.reset, pool)
        self.replays = [block(start) for start in starts]

    def block(self, start):
        token, drawn = self.token, []
        for pos in range(start, start + UNROLLED):
            token = self.pick(self.model(token[:, None], pos))
            drawn.append(token)
        self.drawn[start : start + UNROLLED] = torch.stack(drawn)
        self.token.copy_(token)

    def run(self):
        for replay in self.replays:
            replay()
        return self.drawn


class CompiledGraph(Graph):
    def __init__(self, model, pick, steps):
        # Not an attribute of a module before the module is there.
        self.__dict__["compiled"] = torch.compile(self.step, fullgraph=True)
        super().__init__(model, pick, steps)

    def block(self):
        for _ in range(UNROLLED):
            self.compiled()


class Prefill:
    def __init__(self, model, n):
        self.model, self.tokens = model, prompt(n, model.config.vocab_size)[None]
        if model.device.type == "cuda":
            self.tokens = self.tokens.pin_memory()

    def reset(self):
        pass

    def run(self):
        with any_attention():
            return self.model(self.tokens.to(self.model.device, non_blocking=True), 0).float()


class PrefillGraph(Prefill):
    def __init__(self, model, n):
        super().__init__(model, n)
        self.input = self.tokens.to(model.device)
        with any_attention():
            self.replay = captured(self.forward, self.reset)

    def forward(self):
        self.logits = self.model(self.input, 0).float()

    def run(self):
        self.input.copy_(self.tokens, non_blocking=True)
        self.replay()
        return self.logits


@contextlib.contextmanager
def any_attention():
    """cuDNN's attention makes a plan for each length, which suits one long prompt and not decoding."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(False)


def captured(work, warm_up, pool=None):
    """What replays a function's work on the GPU; on a CPU the function itself."""
    if not torch.cuda.is_initialized():
        warm_up()
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            warm_up()
            work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    warm_up()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        work()
    return graph.replay


def timed(peer, device):
    """(seconds until the result is on the host, seconds between events around it, result)"""
    peer.reset()
    if device.type != "cuda":
        start = time.perf_counter()
        result = peer.run()
        return time.perf_counter() - start, None, result
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    start = time.perf_counter()
    events[0].record()
    result = peer.run()
    events[1].record()
    result = result.cpu()
    wall = time.perf_counter() - start
    return wall, events[0].elapsed_time(events[1]) / 1e3, result


def copy_bandwidth(device):
    """Bytes read and written per second by a large copy on the device."""
    n = 1 << 30 if device.type == "cuda" else 1 << 22
    source, target = (torch.full((n,), i, dtype=torch.uint8, device=device) for i in (1, 2))

    class Copy:
        reset = lambda self: None

        def run(self):
            target.copy_(source)
            return target[:1]

    times = [timed(Copy(), device) for _ in range(20)]
    return 2 * n / statistics.median(gpu or wall for wall, gpu, _ in times)


class Bench:
    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        if self.device.type == "cuda":
            torch.cuda.init()
        self.file = File(args.model)
        c = self.file.config
        self.steps = min(args.steps, c.max_seq_len) // UNROLLED * UNROLLED
        self.prefill = min(args.prefill, c.max_seq_len)
        self.peers = {}  # (case, side) -> peer
        self.models = {}
        cuda = self.device.type == "cuda"
        self.results = {
            "about": {
                "model": args.model.stem,
                "dtype": args.dtype,
                "device": torch.cuda.get_device_name() if cuda else "cpu",
                "torch": torch.__version__,
                "steps": self.steps,
                "batch": args.batch,
                "prefill": self.prefill,
                "weight_bytes_per_token": self.file.bytes_per_token(),
                # Keys and values of one position, in elements; a step reads all before it.
                "kv_elements": 2 * c.n_layer * c.kv_dim,
                "copy_bytes_per_s": copy_bandwidth(self.device),
            },
            "rounds": [],  # of {case: {side: {"wall": [seconds], "gpu": [seconds]}}}
            "tokens": {},  # {case: {side: [sequences]}}
            "errors": {},
        }

    def case_tokens(self, case):
        """Tokens of one run of a case."""
        if case == "prefill":
            return self.prefill
        return self.steps * (self.args.batch if "batch" in case else 1)

    def cases(self):
        """{case: {side: what makes the peer}}; teeny runs all of its cases by itself."""
        single = {"eager": Eager, "graph": Graph, "graph-fixed": FixedGraph}
        single.update({"compile": Compiled, "graph-compiled": CompiledGraph})
        batch = {side: single[side] for side in ("graph", "graph-fixed")}
        kinds = {"greedy": (1, greedy, single), "sampled": (1, sampled, single)}
        if self.args.batch:
            kinds["batch greedy"] = (self.args.batch, greedy, batch)
            kinds["batch sampled"] = (self.args.batch, sampled, batch)

        def decoder(kind, n, pick):
            return lambda: kind(self.model(n, self.steps), pick, self.steps)

        cases = {
            case: {side: decoder(kind, n, pick) for side, kind in sides.items()}
            for case, (n, pick, sides) in kinds.items()
        }
        if self.prefill:
            prefill = lambda kind: lambda: kind(self.model(1, self.prefill), self.prefill)
            cases["prefill"] = {"eager": prefill(Prefill), "graph": prefill(PrefillGraph)}
        return cases

    def model(self, batch, length):
        key = (batch, length)
        if key not in self.models:
            dtype = DTYPES[self.args.dtype]
            self.models[key] = Model(self.file, self.device, dtype, batch, length)
        return self.models[key]

    def phase(self, sides):
        """Builds peers, runs each untimed, then all in turn, teeny first."""
        cases = self.cases()
        wanted = [(case, side) for side in sides for case in cases if side in cases[case]]
        for case, side in wanted:
            self.build(case, side, cases[case][side])
        for _ in range(self.args.rounds):
            found = {}
            self.results["rounds"].append(found)
            self.run_teeny(found)
            for case, side in wanted:
                if (case, side) in self.peers:
                    self.run_peer(found, case, side)
            self.save()

    def build(self, case, side, make):
        start = time.perf_counter()
        try:
            self.peers[case, side] = make()
            _, _, drawn = timed(self.peers[case, side], self.device)
            timed(self.peers[case, side], self.device)
        except Exception as error:
            self.fail(f"{side}, {case}", error)
            self.peers.pop((case, side), None)
            return
        if case == "prefill":
            drawn = drawn.argmax(-1)[None]
        columns = range(0, drawn.shape[1], max(1, drawn.shape[1] // CHECKED))
        tokens = [drawn[:, i].tolist() for i in columns]
        self.results["tokens"].setdefault(case, {})[side] = tokens
        print(f"{case}, {side}: ready after {time.perf_counter() - start:.1f} s", flush=True)
        if side == "compile" and self.device.type == "cuda":
            skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
            if skips:
                self.results["errors"][f"{side}, {case}"] = f"{skips} graphs were not recorded"
        self.save()

    def run_peer(self, found, case, side):
        walls, gpus = [], []
        try:
            timed(self.peers[case, side], self.device)  # the GPU's clock rises
            for _ in range(self.args.runs):
                wall, gpu, _ = timed(self.peers[case, side], self.device)
                walls.append(wall)
                gpus.append(gpu)
        except Exception as error:
            self.fail(f"{side}, {case}", error)
            del self.peers[case, side]
            return
        found.setdefault(case, {})[side] = {"wall": walls, "gpu": gpus}

    def run_teeny(self, found):
        if not self.args.teeny:
            return
        command = [self.args.teeny, self.args.model, "--device", self.args.device]
        command += ["--steps", self.steps, "--runs", self.args.runs]
        command += ["--batch", self.args.batch] if self.args.batch else []
        command += ["--prefill", self.prefill] if self.prefill else []
        try:
            report = run_teeny(command, self.args.teeny_seconds)
        except Exception as error:
            self.fail("teeny", error)
            self.args.teeny = None  # trying again might take the time that the peers need
            return
        about = {"teeny_device": "device", "kv_element_bytes": "kv_element_bytes"}
        for ours, theirs in about.items():
            if theirs in report:
                self.results["about"][ours] = report[theirs]
        tokens = self.results["tokens"]
        for case, runs, drawn in [
            ("greedy", "runs", "tokens"),
            ("sampled", "sampled_runs", "sampled_tokens"),
            ("batch greedy", "batch_runs", "batch_tokens"),
            ("batch sampled", "batch_sampled_runs", "batch_sampled_tokens"),
            ("prefill", "prefill_runs", None),
        ]:
            if report.get(runs):
                found.setdefault(case, {})["teeny"] = {"wall": report[runs]}
            if drawn and report.get(drawn):
                all_of_them = report[drawn] if "batch" in case else [report[drawn]]
                step = max(1, len(all_of_them) // CHECKED)
                tokens.setdefault(case, {})["teeny"] = all_of_them[::step]

    def fail(self, what, error):
        traceback.print_exception(error)
        self.results["errors"][what] = describe(error)
        self.save()

    def save(self):
        temporary = self.args.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.results))
        os.replace(temporary, self.args.json)

    def table(self):
        about = self.results["about"]
        print(f"{about['model']}, {about['dtype']}, {about['device']}, torch {about['torch']}")
        print(f"{'':<14} {'':<15} {'tok/s':>10} {'by events':>10} {'teeny is faster by':>28}")
        for case in self.cases():
            for side in ["teeny"] + PEERS:
                speeds = [self.speed(case, side, clock) for clock in ("wall", "gpu")]
                if speeds[0]:
                    shown = [f"{speed:,.0f}" if speed else "-" for speed in speeds]
                    found = ratios(self.results["rounds"], case, side)
                    pairs = ""
                    if side != "teeny" and found:
                        low, high = min(found), max(found)
                        pairs = f"{statistics.median(found):.2f} ({low:.2f} to {high:.2f})"
                    print(f"{case:<14} {side:<15} {shown[0]:>10} {shown[1]:>10} {pairs:>28}")

    def speed(self, case, side, clock):
        return speed(self.results["rounds"], case, side, self.case_tokens(case), clock)


def describe(error):
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}; the log has what the program says"
    return f"{type(error).__name__}: {error}"[:500]


def run_teeny(command, seconds):
    """What teeny's program reports."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "report.json"
        command = [str(part) for part in command] + ["--json", str(out)]
        subprocess.run(command, check=True, timeout=seconds)
        return json.loads(out.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5, help="of each side in each round")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--prefill", type=int, default=0)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--teeny", help="teeny's program, see README.md")
    parser.add_argument("--teeny-seconds", type=float, default=60)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")  # no TF32
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.manual_seed(0)
    bench = Bench(args)
    if args.steps != bench.steps:
        print(f"{bench.steps} steps instead of {args.steps}", file=sys.stderr)
    for sides in PHASES:
        sides = [side for side in sides if side in args.peers]
        if sides:
            bench.phase(sides)
    bench.save()
    bench.table()


if __name__ == "__main__":
    main()
