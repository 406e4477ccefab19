#!/usr/bin/env python3
"""Trains on a machine with an NVIDIA GPU and prints a table in Markdown for runtime/PERFORMANCE.md.

    tests/peers/train_gpu.sh [FOLDER] [--dry-run] [--only PART ...] [--seconds N] [--data FILE]

FOLDER (target/gpu) holds what train_gpu_build.sh has built: teeny-train and test programs train_test_*.
Needed are Python 3.10 with torch 2.11.0, whose libtorch the programs use, and the corpus. Parts:

    tests    every train_test_* program
    default  5,000 iterations of config.ini; PyTorch beside it
    nanogpt  5,000 iterations of nanoGPT's shakespeare_char (6 layers, 6 heads, 384 wide, 64 x 256 tokens,
             dropout 0.2, clipping, in bfloat16); PyTorch beside it
    resume   a run that was continued from its middle ends with the same bits as one that was not
    loss     trainer/presets with three seeds each: the best loss of the validation split, and the last

'5,000 iterations' is the time of a run of 5,000 less that of one of 100, both with a single evaluation, times
5000/4900: steps alone. The whole program as configured, with start, evaluations and files, is a row of
its own. PyTorch is train_step.py's model: eager, under autocast to bfloat16, fused AdamW, clipping where
we clip; its 5,000 iterations are 200, extrapolated.

Results go to $OUT, else target/gpu-results: train_table.md and train_log.txt. Parts end within --seconds
(570); one that fails or is cut off does not keep the others. The exit code is 1 if a part failed or a
target was missed.

--dry-run tries everything out on a CPU: tiny models, few steps, no targets. Where FOLDER lacks teeny-train
or tests, those of target/release are taken, or none.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The second is for a CPU and for another division of the text: here it gets a GPU's number of steps.
PRESETS = {"shakespeare-10m.ini": 1.445, "shakespeare-2m.ini": 1.48}
SETTINGS = {
    "shakespeare-2m.ini": [
        "dataset.split=tail",
        "dataset.fraction_train=0.9",
        "dataset.fraction_val=0.1",
        "model.dropout=0.2",
        "train.n_iters=4000",
        "train.n_batch=64",
    ],
}
N_SEEDS = 3
TARGETS = {"default": 6.0, "nanogpt": 25.0}  # seconds of 5,000 iterations on an H100
PUBLISHED = {"nanogpt": "published: 77 s"}
PARTS = ["tests", "default", "nanogpt", "resume", "loss"]
SHAKESPEARE_CHAR = [
    "dataset.split=tail",
    "dataset.fraction_train=0.9",
    "dataset.fraction_val=0.1",
    "train.lr_max=1e-3",
    "train.lr_min=1e-4",
    "train.warmup_iters=100",
    "train.weight_decay=0.1",
    "train.grad_clip=1.0",
    "train.n_est_loss_iters=250",
]
TINY = [
    "dataset.tokens_per_chunk=100",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_kv_head=2",
    "model.n_embd=16",
    "model.ffn_dim=16",
    "model.max_seq_len=16",
    "train.n_context=16",
    "train.n_batch=4",
    "train.sample_length=5",
    "train.n_est_loss_iters=10",
    "train.warmup_iters=1",
]


class Failed(Exception):
    """A part that cannot go on; the message says why."""


class Session:
    """The programs, the results, and the time that is left."""

    def __init__(self, args):
        self.args, self.rows, self.failed = args, [], False
        self.program = self.find_program()
        self.ends = time.monotonic() + args.seconds - 10
        self.results = pathlib.Path(os.environ.get("OUT", ROOT / "target/gpu-results"))
        self.results.mkdir(parents=True, exist_ok=True)
        self.log = open(self.results / "train_log.txt", "w")
        self.work = pathlib.Path(tempfile.mkdtemp())
        self.device = "cpu" if args.dry_run else "cuda"
        self.data = pathlib.Path(args.data).resolve()
        if args.dry_run:
            text = self.data.read_text(encoding="utf-8")[:20_000]
            self.data = self.work / "text.txt"
            self.data.write_text(text, encoding="utf-8")
        # Built elsewhere, it knows libtorch by a path of that machine.
        torch = subprocess.check_output(
            [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('torch').origin)"],
            text=True,
        )
        libraries = [str(pathlib.Path(torch.strip()).parent / "lib"), os.environ.get("LD_LIBRARY_PATH")]
        self.env = os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, libraries))}

    def find_program(self):
        folder = pathlib.Path(self.args.folder)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        for program in [folder / "teeny-train", target / "release/teeny-train"]:
            if program.exists():
                return program.resolve()
        sys.exit(f"no teeny-train in {folder}: tests/peers/train_gpu_build.sh makes it")

    def say(self, text):
        print(text, flush=True)
        print(text, file=self.log, flush=True)

    def row(self, what, found, target="", met=None):
        """A row of the table. met: None where there is no target."""
        if met is False and not self.args.dry_run:
            self.failed = True
        verdict = {None: "", True: "met", False: "missed"}[None if self.args.dry_run else met]
        self.rows.append((what, found, target, verdict))
        self.say(f"   {what}: {found} {target} {verdict}")

    def run(self, command, cwd=ROOT, limit=300):
        """Output of a program, standard error too, and the seconds that it took."""
        left = min(limit, self.ends - time.monotonic())
        if left < 5:
            raise Failed("no time left")
        started = time.monotonic()
        try:
            done = subprocess.run(
                list(map(str, command)),
                cwd=cwd,
                env=self.env,
                timeout=left,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except subprocess.TimeoutExpired as error:
            tail = (error.stdout or b"")[-2000:].decode(errors="replace")
            raise Failed(f"cut off after {left:.0f} s: {tail}") from error
        seconds = time.monotonic() - started
        command = " ".join(map(str, command))
        print(f"$ {command}\n{done.stdout[-200_000:]}", file=self.log, flush=True)
        if done.returncode != 0:
            raise Failed(f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}")
        return done.stdout, seconds

    def command(self, folder, settings, config="config.ini", resume=None):
        """That of a training run whose files go to `folder`."""
        (self.work / folder).mkdir(exist_ok=True)
        settings = [
            *settings,
            *(TINY if self.args.dry_run else []),
            f"dataset.input_file={self.data}",
            f"train.checkpoint_file={self.work / folder / 'x.ckpt'}",
            f"train.export_file={self.work / folder / 'x.safetensors'}",
        ]
        command = [self.program, "--config", config, "--device", self.device]
        for setting in settings:
            command += ["--set", setting]
        return command + (["--resume", resume] if resume else [])

    def steps(self, n):
        """A number of steps, few where this is but tried out."""
        return max(n // 100, 4) if self.args.dry_run else n


# Parts


def tests(session):
    programs = sorted(pathlib.Path(session.args.folder).resolve().glob("train_test_*"))
    if not programs:
        session.row("Tests", "none built")
        session.failed |= not session.args.dry_run
        return
    recorded = pathlib.Path(session.args.folder) / "teeny-train.path"
    expected = pathlib.Path(recorded.read_text()) if recorded.exists() else None
    linked = expected and not expected.exists()
    if linked:
        expected.parent.mkdir(parents=True, exist_ok=True)
        expected.symlink_to(session.program)
    for program in programs:
        name = f"Tests: {program.name.removeprefix('train_test_')}"
        try:
            output, seconds = session.run([program, "--test-threads=1"], cwd=ROOT / "trainer")
        except Failed as error:
            session.failed = True
            session.say(str(error))
            results = re.findall(r"^test result: (.*?); 0 ignored", str(error), re.MULTILINE)
            session.row(name, results[-1] if results else "failed", "all pass", False)
            continue
        passed = sum(map(int, re.findall(r"^test result: ok\. (\d+) passed", output, re.MULTILINE)))
        skipped = len(re.findall("skipped", output, re.IGNORECASE))
        note = f", {skipped} lines say skipped" if skipped else ""
        session.row(name, f"{passed} passed in {seconds:.1f} s{note}", "all pass", True)
    if linked:
        expected.unlink()


def seconds_of_steps(session, name, settings):
    """Seconds of 5,000 iterations alone."""
    n, few = session.steps(5000), session.steps(100)

    def run(n):
        once = [f"train.n_iters={n}", "train.sample_length=0"]
        command = session.command(name, settings + once)
        return session.run([*command, "--set", f"train.n_est_loss_iters={n}"])[1]

    short = min(run(few) for _ in range(2))
    return (run(n) - short) / (n - few) * 5000


def timed(session, name, settings, shape, clip):
    steps = seconds_of_steps(session, name, settings)
    target = TARGETS[name]
    published = f"; {PUBLISHED[name]}" if name in PUBLISHED else ""
    session.row(
        f"{name}: 5,000 iterations", f"{steps:.1f} s", f"at most {target:.0f} s{published}", steps <= target
    )
    n = session.steps(5000)
    _, whole = session.run(session.command(name, [*settings, f"train.n_iters={n}"]))
    session.row(f"{name}: the whole program, {n:,} iterations and evaluations", f"{whole:.1f} s")
    peer = [sys.executable, __file__, "--peer", shape, "--clip", clip, "--data", session.data]
    output, _ = session.run(peer + (["--dry-run"] if session.args.dry_run else []))
    ms = json.loads(output.splitlines()[-1])["ms"]
    session.row(
        f"{name}: PyTorch eager, 5,000 iterations", f"{ms * 5:.1f} s ({ms / steps * 5:.1f} times ours)"
    )


def default(session):
    timed(session, "default", [], "default", 0.0)


def nanogpt(session):
    from train_step import SHAPES

    timed(
        session, "nanogpt", SHAPES["shakespeare_char"].settings() + SHAKESPEARE_CHAR, "shakespeare_char", 1.0
    )


def tensors_of(path):
    """Bytes of each tensor of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    part = lambda begin, end: data[8 + length + begin : 8 + length + end]
    return {name: part(*tensor["data_offsets"]) for name, tensor in header.items()}


def resume(session):
    """One run goes on to its end while its first checkpoint is put aside; another continues from that."""
    n = session.steps(3000)
    for optimizer in ["adamw", "muon"]:
        name = f"resume-{optimizer}"
        every = max(n // 10, 2)
        settings = [f"train.n_iters={n}", f"train.optimizer={optimizer}", "train.ema=0.99"]
        last = session.work / name / "x.last.ckpt"
        aside, expected = last.with_name("middle.ckpt"), last.with_name("expected.ckpt")
        often = ["--set", f"train.n_est_loss_iters={every}"]
        command = list(map(str, [*session.command(name, settings), *often]))
        with open(last.with_name("log"), "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=session.env, stdout=log, stderr=log)
            try:
                while process.poll() is None:
                    if time.monotonic() > session.ends:
                        raise Failed("no time left")
                    if last.exists() and not aside.exists():
                        shutil.copy(last, aside)
                    time.sleep(0.002)
            finally:
                process.kill()
        if process.returncode != 0 or not last.exists():
            raise Failed(
                f"the first run ended with {process.returncode}: {last.with_name('log').read_text()[-2000:]}"
            )
        last.rename(expected)
        if not aside.exists() or tensors_of(aside) == tensors_of(expected):
            raise Failed("the first run was over before its checkpoint could be put aside")
        output, _ = session.run([*session.command(name, settings, resume=aside), *often])
        # A run that began anew would end the same.
        continued = re.search(r"^iteration (\d+): continued from", output, re.MULTILINE)
        if not continued or not 0 < int(continued[1]) < n:
            raise Failed("the second run does not say in which iteration it continued")
        found, expected = tensors_of(last), tensors_of(expected)
        different = [tensor for tensor in expected if found.get(tensor) != expected[tensor]]
        same = not different and found.keys() == expected.keys()
        said = f"{len(expected)} tensors, {len(different)} differ" + (
            f": {different[0]}" if different else ""
        )
        what = f"resume, {optimizer}: continued in iteration {continued[1]} of {n:,}"
        session.row(what, said, "the same bits", same)
        session.failed |= not same


def losses(output, folder):
    """Validation losses of a run, from its records or from what it printed."""
    for file in folder.rglob("metrics.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        found = [record["val_loss"] for record in records if record.get("val_loss") is not None]
        if found:
            return found
    return list(map(float, re.findall(r"val loss (\d+\.\d+)", output)))


def loss(session):
    for preset, target in PRESETS.items():
        config = ROOT / "trainer/presets" / preset
        if not config.exists():
            session.row(preset, "no such preset")
            if not session.args.dry_run:
                session.failed = True
                continue
            config = ROOT / "config.ini"
        best, last, times = [], [], []
        for seed in range(N_SEEDS):
            settings = [f"train.seed={seed}", *SETTINGS.get(preset, [])]
            settings += ["train.n_iters=20"] if session.args.dry_run else []
            name = f"{preset}-{seed}"
            command = session.command(name, settings, config)
            output, seconds = session.run(command, limit=300)
            found = losses(output, session.work / name)
            if not found:
                raise Failed(f"{preset} has no validation loss")
            best.append(min(found))
            last.append(found[-1])
            times.append(seconds)
        for what, values in [("best", best), ("last", last)]:
            session.row(
                f"{preset}: {what} loss, seeds 0 to {N_SEEDS - 1}",
                f"{', '.join(f'{value:.4f}' for value in values)}; mean {statistics.mean(values):.4f}",
                f"at most {target}",
                statistics.mean(values) <= target,
            )
        session.row(f"{preset}: a run", f"{statistics.median(times):.0f} s")


# PyTorch's side, a process of its own


def peer(args):
    import dataclasses

    import torch
    from train_step import SHAPES, PyTorch

    shape, device, steps = SHAPES[args.peer], "cuda", 200
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if args.dry_run:
        shape = dataclasses.replace(
            shape, n_layer=1, n_head=2, n_embd=16, ffn_dim=16, max_seq_len=16, n_batch=4
        )
        device, steps = "cpu", 4
    side = PyTorch(shape, device, bf16=True, clip=args.clip)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(20):
        value = side.step()
    times = []
    for _ in range(5):
        finish()
        started = time.perf_counter()
        for i in range(steps // 5 or 1):
            value = side.step()
            if i % 10 == 9:
                value.item()  # a training script prints its loss now and then
        finish()
        times.append((time.perf_counter() - started) * 1e3 / (steps // 5 or 1))
    print(json.dumps({"ms": statistics.median(times), "loss": value.item()}))


def machine(session):
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    session.say(f"{gpu}, PyTorch {torch.__version__}, {os.cpu_count()} CPU cores, {session.program}")
    if session.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU here; --dry-run tries the script out without one")
    return gpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=ROOT / "target/gpu")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, tiny models, few steps, no targets")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=570)
    parser.add_argument("--data", default=ROOT / "data/tiny_shakespeare.txt")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    if not pathlib.Path(args.data).exists():
        parser.error(f"no corpus at {args.data}: data/fetch.sh puts it there, --data names another")
    session = Session(args)
    try:
        gpu = machine(session)
        for part in args.only:
            session.say(f"== {part} ({session.ends - time.monotonic():.0f} s left)")
            try:
                globals()[part](session)
            except Failed as error:
                session.failed = True
                session.say(str(error))
                session.row(part, "failed, see train_log.txt")
            except Exception:
                session.failed = True
                session.say(traceback.format_exc())
                session.row(part, "failed, see train_log.txt")
    finally:
        shutil.rmtree(session.work, ignore_errors=True)
    title = "tried out on a CPU: the figures mean nothing" if args.dry_run else f"on {gpu}"
    lines = [f"| {title} | found | target | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in session.rows]
    table = "\n".join(lines) + "\n"
    (session.results / "train_table.md").write_text(table)
    print("\n" + table)
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
