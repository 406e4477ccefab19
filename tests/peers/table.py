#!/usr/bin/env python3
"""Puts what gpu.sh has found beside the targets.

    python3 tests/peers/table.py FOLDER [--dry-run]

FOLDER holds decode-MODEL.json (decode.py), agreement.json (agreement.py) and stages.tsv (gpu.sh: name,
exit code, seconds, note). Whatever is missing is said to be missing. Needs no PyTorch.
"""

import argparse
import json
import pathlib
import statistics

# How many times faster than each peer, by model.
TARGETS = {
    "default": {"eager": 10, "compile": 4, "graph": 1.5},
    "nanogpt": {"eager": 8, "compile": 3, "graph": 1.5},
    "gpt2": {"eager": 4, "compile": 1.5, "graph": 1.1},
}
BATCH_TOK_S, COPY_SHARE, PREFILL_RATIO = 1e6, 0.65, 1.5
NAMES = {
    "eager": "eager",
    "compile": "torch.compile, reduce-overhead",
    "graph": "graph of 32 steps, the faster form",
    "graph-compiled": "graph of 32 compiled steps",
}


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, greedy, sampled, wanted=None, good=None):
        verdict = "" if good is None else "met" if good else "MISSED"
        self.rows.append((what, greedy, sampled, wanted or "", verdict))

    def missing(self, what, wanted=None):
        self.rows.append((what, "-", "-", wanted or "", "not measured" if wanted else ""))

    def print(self, head):
        rows = [head] + self.rows
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4])]
            print("  ".join(cells + [row[4]]).rstrip())


def speed(rounds, case, side, tokens, clock="wall"):
    """Tokens per second in the median run."""
    runs = [
        seconds
        for found in rounds
        for seconds in found.get(case, {}).get(side, {}).get(clock, [])
        if seconds
    ]
    return tokens / statistics.median(runs) if runs else None


def ratios(rounds, case, side):
    """How many times faster teeny is, in each round that has both."""
    pairs = [
        (found[case][side]["wall"], found[case]["teeny"]["wall"])
        for found in rounds
        if side in found.get(case, {}) and "teeny" in found[case]
    ]
    return [statistics.median(theirs) / statistics.median(ours) for theirs, ours in pairs]


def times(found):
    """Median of the pairs, and the worst and the best of them."""
    return f"{statistics.median(found):.2f}x ({min(found):.2f}-{max(found):.2f})"


def hardest(rounds, case, sides):
    """The ratios to the fastest of the sides."""
    found = [ratios(rounds, case, side) for side in sides]
    return min(filter(None, found), key=statistics.median, default=[])


def tok_s(rounds, case, tokens, side="teeny"):
    found = speed(rounds, case, side, tokens)
    return f"{found:,.0f}" if found else "-"


def add_speeds(table, model, results):
    about, rounds = results["about"], results["rounds"]
    name, steps = f"{model} {about['dtype']}", about["steps"]
    both = [tok_s(rounds, case, steps) for case in ("greedy", "sampled")]
    table.add(f"{name}: teeny, tok/s", *both)
    targets = TARGETS.get(model, {})
    for peer, sides in [
        ("eager", ["eager"]),
        ("compile", ["compile"]),
        ("graph", ["graph", "graph-fixed"]),
        ("graph-compiled", ["graph-compiled"]),
    ]:
        what, wanted = f"{name}: against {NAMES[peer]}", targets.get(peer)
        found = [hardest(rounds, case, sides) for case in ("greedy", "sampled")]
        shown = f">= {wanted}x" if wanted else None
        if not any(found):
            table.missing(what, shown)
            continue
        good = all(found) and min(map(statistics.median, found)) >= wanted if wanted else None
        table.add(what, *[times(pairs) if pairs else "-" for pairs in found], shown, good)


def add_bandwidth(table, model, results):
    """Weights and, on average over the positions, keys and values that a token needs."""
    about, what = results["about"], f"{model}: share of the copy bandwidth"
    wanted = f">= {COPY_SHARE:.0%}"
    kv = about["kv_elements"] * about.get("kv_element_bytes", 4) * (about["steps"] + 1) / 2
    n_bytes = about["weight_bytes_per_token"] + kv
    cases = ("greedy", "sampled")
    found = [speed(results["rounds"], case, "teeny", about["steps"]) for case in cases]
    if not any(found):
        return table.missing(what, wanted)
    shares = [n_bytes * each / about["copy_bytes_per_s"] if each else 0 for each in found]
    copy = f"{what} ({n_bytes / 1e6:.0f} MB a token, {about['copy_bytes_per_s'] / 1e12:.2f} TB/s)"
    table.add(copy, *[f"{share:.0%}" for share in shares], wanted, min(shares) >= COPY_SHARE)


def add_batch(table, model, results):
    about, rounds = results["about"], results["rounds"]
    n = about["batch"] * about["steps"]
    cases = ("batch greedy", "batch sampled")
    what, wanted = f"{model}: batch {about['batch']}, tok/s", f">= {BATCH_TOK_S:,.0f}"
    found = [speed(rounds, case, "teeny", n) for case in cases]
    if any(found):
        good = all(found) and min(found) >= BATCH_TOK_S
        shown = [f"{each:,.0f}" if each else "-" for each in found]
        table.add(what, *shown, wanted, good)
    else:
        table.missing(what, wanted)
    pairs = [hardest(rounds, case, ["graph", "graph-fixed"]) for case in cases]
    if any(pairs):
        shown = [times(each) if each else "-" for each in pairs]
        table.add(f"{model}: batch {about['batch']}, against {NAMES['graph']}", *shown)


def add_prefill(table, model, results):
    about, rounds = results["about"], results["rounds"]
    what = f"{model}: prompt of {about['prefill']} tokens"
    wanted = f"<= {PREFILL_RATIO}x"
    pairs = hardest(rounds, "prefill", ["eager", "graph"])
    if not pairs:
        return table.missing(f"{what}, time beside the faster PyTorch", wanted)
    slower = [1 / pair for pair in pairs]
    good = statistics.median(slower) <= PREFILL_RATIO
    table.add(f"{what}, time beside the faster PyTorch", times(slower), "", wanted, good)
    for side in ("teeny", "eager", "graph"):
        found = speed(rounds, "prefill", side, 1)
        table.add(f"{what}: {side}, ms", f"{1e3 / found:.3f}" if found else "-", "")


def print_agreement(results):
    print("\nLogits beside the reference in double precision")
    form = "{:<12} {:<8} {:<13} {:>11} {:>10} {:>10} {:>10}"
    print(form.format("model", "fed", "side", "same choice", "max", "rms", "centered"))
    for model, result in results.get("errors", {}).items():
        for way in ("decode", "prefill"):
            for side, e in result[way].items():
                numbers = [f"{e[key]:.2e}" for key in ("max", "rms", "rms_centered")]
                print(form.format(model, way, side, f"{e['same_argmax']:.2%}", *numbers))
    print("\nTimed tokens that are the reference's choice (drawn: among its 40 most likely), and how far")
    print("the worst lies behind")
    for model, checks in results.get("timed", {}).items():
        for case, sides in checks.items():
            shown = [
                f"{side} {c['share']:.1%} {max(0, c['behind']):.0e}" for side, c in sides.items()
            ]
            print(f"{model}, {case}: " + ", ".join(shown))


def print_stages(path):
    print("\nStages")
    for line in path.read_text().splitlines():
        name, code, seconds, note = line.split("\t")
        outcome = {"0": "done", "124": "OUT OF TIME", "137": "OUT OF TIME", "-": "skipped"}
        shown = outcome.get(code, f"FAILED with exit code {code}")
        print(f"{name:<28} {shown:<12} {seconds:>4} s  {note}".rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    read = lambda path: json.loads(path.read_text()) if path.exists() else None
    table, errors = Table(), []
    for model in TARGETS:
        results = read(args.folder / f"decode-{model}.json")
        if not results:
            table.missing(f"{model}: nothing was measured", "all of it")
            continue
        add_speeds(table, model, results)
        if model == "default":
            add_batch(table, model, results)
        if model == "gpt2":
            add_bandwidth(table, model, results)
            add_prefill(table, model, results)
        errors += [f"{model}, {what}: {error}" for what, error in results["errors"].items()]
    agreement = read(args.folder / "agreement.json")
    if agreement:
        print_agreement(agreement)
        for model, result in agreement["errors"].items():
            errors += [f"{model}, logits, {what}: {error}" for what, error in result["errors"].items()]
    stages = args.folder / "stages.tsv"
    if stages.exists():
        print_stages(stages)
    if errors:
        print("\nFailures")
        print("\n".join(error.replace("\n", " ")[:300] for error in errors))
    print()
    if args.dry_run:
        print("DRY RUN, small models on a CPU with a stub: the figures mean nothing")
    table.print(("found (median of pairs, worst-best)", "greedy", "sampled", "wanted", ""))


if __name__ == "__main__":
    main()
