#!/usr/bin/env python3
"""How exact are the logits: teeny's and PyTorch's beside a reference in double precision.

    python3 tests/peers/agreement.py MODEL... --teeny target/gpu/gpu_decode --json FILE

All sides have the same stored weights and are fed the same tokens, one by one (decode) and at once
(prefill). The reference is model.py in f64 on the CPU. For each side: the share of positions whose most
likely token is the reference's, the largest and the root mean square error of the logits, and the same
for logits without their mean over the vocabulary, which softmax does not see.

--timed FILE..., results of decode.py for the same models in the same order, checks what was timed: the
share of greedy tokens that are the reference's choice after the tokens before them, how far the worst
lies behind that choice, and for drawn tokens whether all are among the 40 most likely.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import tempfile
import traceback

import torch

from decode import CHECKED, TOP_K, describe, first_tokens
from model import DTYPES, File, Model, encode

SIDES = ["f32", "bf16"]


def feed(file, device, dtype, tokens, at_once):
    """Logits of every position, (positions, vocab_size), in f64 on the CPU."""
    model = Model(file, device, DTYPES[dtype], 1, len(tokens))
    tokens = tokens.to(device)
    if at_once:
        return model(tokens[None], 0, every_row=True)[0].cpu().double()
    rows = [model(token[None, None], pos)[0] for pos, token in enumerate(tokens)]
    return torch.stack(rows).cpu().double()


def error(found, expected):
    def sizes(difference):
        return difference.abs().max().item(), difference.square().mean().sqrt().item()

    difference = found - expected
    centered = difference - difference.mean(-1, keepdim=True)
    (most, rms), (most_centered, rms_centered) = sizes(difference), sizes(centered)
    return {
        "same_argmax": (found.argmax(-1) == expected.argmax(-1)).double().mean().item(),
        "max": most,
        "rms": rms,
        "max_centered": most_centered,
        "rms_centered": rms_centered,
    }


def read_logits(path, shape):
    with open(path, "rb") as file:
        values = torch.frombuffer(bytearray(file.read()), dtype=torch.float32)
    return values.view(shape).double()


def teeny_logits(args, path, file, tokens):
    """{"decode": logits, "prefill": logits}, as far as the program writes them."""
    shape, found = (len(tokens), file.config.vocab_size), {}
    with tempfile.TemporaryDirectory() as folder:
        given, out = pathlib.Path(folder) / "tokens", pathlib.Path(folder) / "report.json"
        given.write_bytes(b"".join(int(token).to_bytes(4, "little") for token in tokens))
        command = [args.teeny, path, "--device", args.device, "--json", out, "--tokens", given]
        subprocess.run(list(map(str, command)), check=True, timeout=args.teeny_seconds)
        report = json.loads(out.read_text())
        for way, key in [("decode", "logits_file"), ("prefill", "prefill_logits_file")]:
            if key in report:
                found[way] = read_logits(report[key], shape)
    return found


def compare(args, path):
    file = File(path)
    n = min(args.positions, file.config.max_seq_len)
    known = encode(file, args.text.read_text()) if args.text and "dataset_file" in file.metadata else []
    if len(known) >= n:
        tokens = torch.tensor(known[:n])
    else:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(file.config.vocab_size, (n,), generator=generator)
    expected = feed(file, "cpu", "f64", tokens, at_once=True)
    top = expected.topk(2).values
    result = {
        "positions": n,
        "logits_rms": expected.square().mean().sqrt().item(),
        "gap": (top[:, 0] - top[:, 1]).median().item(),
        "decode": {},
        "prefill": {},
        "errors": {},
    }
    if args.teeny:
        try:
            for way, logits in teeny_logits(args, path, file, tokens).items():
                result[way]["teeny"] = error(logits, expected)
        except Exception as failure:
            traceback.print_exception(failure)
            result["errors"]["teeny"] = describe(failure)
    for dtype, way in itertools.product(SIDES, ("decode", "prefill")):
        logits = feed(file, args.device, dtype, tokens, at_once=way == "prefill")
        result[way][f"PyTorch {dtype}"] = error(logits, expected)
    return result


def check_timed(path, timed):
    """Compares the tokens that were drawn in timed runs with the reference."""
    file = File(path)
    results = json.loads(timed.read_text())
    batch, vocab_size = results["about"]["batch"], file.config.vocab_size
    checks = {}
    for case, sides in results["tokens"].items():
        if case == "prefill":
            continue
        first = torch.zeros(1, dtype=torch.long)
        if "batch" in case:
            first = first_tokens(batch, vocab_size)[:: max(1, batch // CHECKED)]
        model = Model(file, "cpu", torch.float64, len(first), results["about"]["steps"])
        for side, drawn in sides.items():
            drawn = torch.tensor(drawn)  # (sequences, steps)
            fed = torch.cat((first[:, None], drawn[:, :-1]), 1)
            logits = model(fed, 0, every_row=True)
            found = logits.gather(-1, drawn[..., None])[..., 0]
            if "sampled" in case:
                least = logits.topk(min(TOP_K, vocab_size)).values[..., -1]
            else:
                least = logits.max(-1).values
            checks.setdefault(case, {})[side] = {
                "share": (found >= least).double().mean().item(),
                "behind": (least - found).max().item(),
                "different": len(set(drawn.flatten().tolist())),
            }
    return checks


def print_table(name, result):
    for way in ("decode", "prefill"):
        for side, e in result[way].items():
            print(
                f"{name:<12} {way:<8} {side:<13} {e['same_argmax']:>8.2%} {e['max']:>9.2e} "
                f"{e['rms']:>9.2e} {e['rms_centered']:>9.2e}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=pathlib.Path, nargs="+")
    parser.add_argument("--timed", type=pathlib.Path, nargs="*", default=[])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--text", type=pathlib.Path, help="text for models that were trained on text")
    parser.add_argument("--teeny", help="teeny's program, see README.md")
    parser.add_argument("--teeny-seconds", type=float, default=60)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("highest")  # no TF32
    results = {"errors": {}, "timed": {}}
    for path in args.models:
        results["errors"][path.stem] = compare(args, path)
        args.json.write_text(json.dumps(results))
    for path, timed in zip(args.models, args.timed):
        if timed.exists():
            results["timed"][path.stem] = check_timed(path, timed)
            args.json.write_text(json.dumps(results))
    print(f"{'':<12} {'':<8} {'':<13} {'argmax':>8} {'max':>9} {'rms':>9} {'centered':>9}")
    for name, result in results["errors"].items():
        print_table(name, result)
    for name, checks in results["timed"].items():
        for case, sides in checks.items():
            for side, c in sides.items():
                print(
                    f"{name}, {case}, {side}: {c['share']:.2%} of the timed tokens are the reference's, "
                    f"at most {max(0, c['behind']):.2e} behind, {c['different']} different ones"
                )


if __name__ == "__main__":
    main()
