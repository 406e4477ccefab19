#!/usr/bin/env python3
"""What README.md asks of gpu_decode, in PyTorch on the CPU: for trying the scripts out without a GPU.

    python3 tests/peers/gpu_decode_stub.py MODEL --device cpu --json FILE [...]

Its figures mean nothing; its tokens and logits are those of the model.
"""

import argparse
import ctypes
import json
import pathlib
import statistics

import torch

from decode import Eager, Prefill, greedy, sampled, timed
from model import File, Model


def write_floats(path, values):
    """Raw little-endian f32."""
    values = values.float().contiguous()
    path.write_bytes((ctypes.c_char * values.nbytes).from_address(values.data_ptr()))
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--tokens", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--prefill", type=int, default=0)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    file = File(args.model)
    cpu = torch.device("cpu")
    model = lambda batch=1: Model(file, cpu, torch.float32, batch)
    report = {"device": "cpu, stub", "kv_element_bytes": 4}
    if args.tokens:
        tokens = torch.frombuffer(bytearray(args.tokens.read_bytes()), dtype=torch.int32).long()
        m = model()
        rows = [m(token[None, None], pos)[0] for pos, token in enumerate(tokens)]
        stem = args.json.with_suffix("")
        report["logits_file"] = write_floats(pathlib.Path(f"{stem}.logits"), torch.stack(rows))
        rows = m(tokens[None], 0, every_row=True)[0]
        report["prefill_logits_file"] = write_floats(pathlib.Path(f"{stem}.prefill.logits"), rows)
    else:

        def measure(peer):
            timed(peer, cpu)
            results = [timed(peer, cpu) for _ in range(args.runs)]
            return [wall for wall, _, _ in results], results[-1][2]

        for prefix, pick in [("", greedy), ("sampled_", sampled)]:
            runs, drawn = measure(Eager(model(), pick, args.steps))
            report[f"{prefix}runs"], report[f"{prefix}tokens"] = runs, drawn[:, 0].tolist()
            report[f"{prefix}tok_s"] = args.steps / statistics.median(runs)
            if args.batch:
                runs, drawn = measure(Eager(model(args.batch), pick, args.steps))
                report[f"batch_{prefix}runs"] = runs
                report[f"batch_{prefix}tokens"] = drawn.T.tolist()
                report[f"batch_{prefix}tok_s"] = args.steps * args.batch / statistics.median(runs)
        if args.prefill:
            report["prefill_runs"], _ = measure(Prefill(model(), args.prefill))
            report["prefill_s"] = statistics.median(report["prefill_runs"])
    args.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
