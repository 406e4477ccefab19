#!/usr/bin/env python3
"""Twenty steps of each optimizer, and learning rates, for tests/optimizers.rs to compare with.

    trainer/.venv/bin/python tests/peers/optimizers.py            # JSON on standard output
    trainer/.venv/bin/python tests/peers/optimizers.py --spread   # what rounding alone changes

AdamW, clipping, the average of the weights and the schedules are PyTorch's own. Muon is written here from
its description and published code (https://kellerjordan.github.io/posts/muon/), so that its Newton-Schulz
steps can be had in float32 as well as in bfloat16; in bfloat16, PyTorch's torch.optim.Muon must agree, or
this script fails.

Parameters carry our names of tensors. Those two-dimensional ones that belong to a layer are Muon's, query,
key and value each a matrix of its own; everything else is AdamW's. Two-dimensional ones are decayed.

Values come from formulas in double precision, rounded to float32. For element k (counted from 0, row by
row) of the tensor numbered n (from 1, in the order of the JSON's "models"), and step t (from 0):

    wave(p) = sin(0.37 (k + 1)^2 + 1.7 n + 0.61 p (k + 3))
    initial value   0.5 wave(0), of norms 1 + 0.1 wave(0)
    gradient        scale(t) (wave(t + 1) + 2 [k is on the diagonal of a matrix]), scale 1, 0.1, 0.01, 1, ...

The square makes matrices of full rank, and the diagonal keeps their singular values within a factor of
80: Newton-Schulz steps multiply what is small by up to 3.4445^5 = 485, rounding errors too. The scale
makes clipping act on two steps of three.

Tolerances, in the JSON as "tolerance" (largest difference of any value after 20 steps), come from --spread,
which compares each case with itself in double precision and with the same sums in another order:

    AdamW; Muon, float32   rounding changes up to 4e-7: 3e-6. Values move by up to 0.36. A coefficient of
                           Newton-Schulz that is off by 0.1% changes 3e-3, a momentum that stays at 0.85
                           1e-3, no Nesterov 1.5e-2, no weight decay 2e-2.
    Muon, bfloat16         the same bfloat16 products, added up in another order (PyTorch's Muon does so),
                           change up to 8e-3: 2e-2. A sixth step changes 0.1, no Nesterov 2.2e-2. That
                           bfloat16 is used at all shows in a difference of more than 1e-3 from float32.
"""

import argparse
import json
import math
import sys

import torch

N_STEPS = 20
LR_MAX, LR_MIN, MUON_LR = 1e-2, 1e-4, 2e-2
BETAS = (0.9, 0.95)
WARMUP_ITERS, DECAY_FRACTION = 4, 0.3
CLIP, EMA = 1.0, 0.9
TOLERANCES = {"adamw": 3e-6, "float32": 3e-6, "bfloat16": 2e-2}


# Parameters and gradients


def shapes(n_layer, kv_dim):
    """Name and shape of every tensor, in the order of their numbers."""
    tensors = {"model.embed_tokens.weight": (7, 8)}
    for n in range(n_layer):
        layer = f"model.layers.{n}"
        tensors |= {
            f"{layer}.input_layernorm.weight": (8,),
            f"{layer}.self_attn.q_proj.weight": (8, 8),
            f"{layer}.self_attn.k_proj.weight": (kv_dim, 8),
            f"{layer}.self_attn.v_proj.weight": (kv_dim, 8),
            f"{layer}.self_attn.o_proj.weight": (8, 8),
            f"{layer}.post_attention_layernorm.weight": (8,),
            f"{layer}.mlp.gate_proj.weight": (12, 8),
            f"{layer}.mlp.up_proj.weight": (12, 8),
            f"{layer}.mlp.down_proj.weight": (8, 12),
        }
    return tensors | {"model.norm.weight": (8,), "lm_head.weight": (7, 8)}


# Fewer heads for keys and values than for queries, and as many.
MODELS = {"grouped": shapes(2, 4), "equal": shapes(1, 8)}


def wave(n, shape, p):
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * (k + 1) ** 2 + 1.7 * n + 0.61 * p * (k + 3)).view(shape)


def initial(number, name, shape):
    values = wave(number, shape, 0)
    return (1 + 0.1 * values if "norm" in name else 0.5 * values).float()


def gradient(number, shape, t):
    values = wave(number, shape, t + 1)
    if len(shape) == 2:
        values = values + 2 * torch.eye(*shape, dtype=torch.float64)
    return (values * 10.0 ** -(t % 3)).float()


# Muon


def newton_schulz(matrix, dtype, fused=False):
    """Nearly the orthogonal matrix with the same singular vectors. `fused`: in other sums."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        if fused:
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        else:
            x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum in Nesterov's way, made orthogonal, and decay apart from the gradient."""

    def __init__(self, params, lr, weight_decay, dtype, fused=False):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.0})
        self.orthogonal = lambda matrix: newton_schulz(matrix, dtype, fused)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta = group["momentum"]
            for param in group["params"]:
                rows, columns = param.shape
                mean = self.state[param].setdefault("momentum", torch.zeros_like(param))
                mean.lerp_(param.grad, 1 - beta)
                update = self.orthogonal(param.grad.lerp(mean, beta))
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.sub_(group["lr"] * max(1, rows / columns) ** 0.5 * update)


def momentum(i):
    """Of step i: from 0.85 to 0.95 in 300 steps."""
    share = min(i / 300, 1)
    return (1 - share) * 0.85 + share * 0.95


# Schedules


def scheduler(optimizer, config):
    """The learning rate of steps 0, 1, ...: a warm-up that reaches lr_max at its last step, then

    cosine: half a cosine, which lr_min would end at step n_iters;
    wsd: lr_max, and a straight line from step n_iters - round(decay_fraction n_iters) to lr_min there.
    """
    schedules = torch.optim.lr_scheduler
    n, warmup = config["n_iters"], config["warmup_iters"]
    lowest = config["lr_min"] / config["lr_max"]
    parts = []  # (first step, scheduler)
    if warmup > 1:
        parts.append((0, schedules.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)))
    elif warmup == 1:
        parts.append((0, schedules.ConstantLR(optimizer, 1.0)))
    if config["schedule"] == "cosine":
        eta_min = lowest * optimizer.param_groups[0]["initial_lr" if parts else "lr"]
        parts.append((warmup, schedules.CosineAnnealingLR(optimizer, n - warmup, eta_min)))
    else:
        length = math.floor(config["decay_fraction"] * n + 0.5)
        if warmup < n - length:
            parts.append((warmup, schedules.ConstantLR(optimizer, 1.0)))
        if length > 0:
            parts.append((n - length, schedules.LinearLR(optimizer, 1.0, lowest, length)))
    return schedules.SequentialLR(
        optimizer, [part for _, part in parts], milestones=[first for first, _ in parts[1:]]
    )


def rates(config):
    """Learning rates of steps 0 to n_iters - 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config["lr_max"])
    schedule = scheduler(optimizer, config)
    found = []
    for _ in range(config["n_iters"]):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


# Cases


def cases():
    """(name, model, configuration) of each run."""
    for schedule in ["cosine", "wsd"]:
        base = {
            "optimizer": "adamw",
            "lr_max": LR_MAX,
            "lr_min": LR_MIN if schedule == "cosine" else 0.0,
            "muon_lr": MUON_LR,
            "betas": BETAS,
            "weight_decay": 0.1,
            "grad_clip": 0.0,
            "ema": 0.0,
            "schedule": schedule,
            "warmup_iters": WARMUP_ITERS,
            "decay_fraction": DECAY_FRACTION,
            "n_iters": N_STEPS,
            "muon_dtype": None,
        }
        yield f"adamw {schedule}", "grouped", base
        yield f"adamw {schedule} clipped", "grouped", base | {"grad_clip": CLIP}
        yield f"adamw {schedule} averaged", "grouped", base | {"ema": EMA}
        for dtype in ["float32", "bfloat16"]:
            muon = base | {"optimizer": "muon", "muon_dtype": dtype}
            yield f"muon {schedule} {dtype}", "grouped", muon | {"weight_decay": 0.0}
            yield f"muon {schedule} {dtype} decay", "grouped", muon
            yield f"muon {schedule} {dtype} decay equal", "equal", muon
            all_of_it = muon | {"grad_clip": CLIP, "ema": EMA}
            yield f"muon {schedule} {dtype} decay clipped averaged", "grouped", all_of_it


def make_muon(params, config, kind):
    lr, decay = config["muon_lr"], config["weight_decay"]
    if kind == "theirs":
        return torch.optim.Muon(params, lr=lr, weight_decay=decay)
    return Muon(params, lr, decay, getattr(torch, config["muon_dtype"]), fused=kind == "fused")


def train(model, config, kind="ours", dtype=torch.float32):
    """Values after N_STEPS, the averaged ones if there is an average: {name: tensor}.

    kind: which Muon, "ours", "fused" or "theirs"; dtype: of everything but Muon's products.
    """
    tensors = MODELS[model]
    module = torch.nn.ParameterDict(
        {
            name.replace(".", "/"): torch.nn.Parameter(initial(n, name, shape).to(dtype))
            for n, (name, shape) in enumerate(tensors.items(), 1)
        }
    )
    params = {name: module[name.replace(".", "/")] for name in tensors}
    is_muon = lambda name: config["optimizer"] == "muon" and "layers" in name and params[name].ndim == 2
    rest = [name for name in tensors if not is_muon(name)]
    groups = [
        {"params": [params[n] for n in rest if params[n].ndim == 2], "weight_decay": config["weight_decay"]},
        {"params": [params[n] for n in rest if params[n].ndim == 1], "weight_decay": 0.0},
    ]
    optimizers = [torch.optim.AdamW(groups, lr=config["lr_max"], betas=config["betas"])]
    if config["optimizer"] == "muon":
        optimizers.append(make_muon([params[n] for n in tensors if is_muon(n)], config, kind))
    schedules = [scheduler(optimizer, config) for optimizer in optimizers]
    averaged = None
    if config["ema"]:
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(config["ema"])
        averaged = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=average)
        averaged.update_parameters(module)  # The first call copies: the average begins here.
    for t in range(N_STEPS):
        for n, (name, shape) in enumerate(tensors.items(), 1):
            params[name].grad = gradient(n, shape, t).to(dtype)
        if config["grad_clip"]:
            torch.nn.utils.clip_grad_norm_(module.parameters(), config["grad_clip"])
        for group in optimizers[-1].param_groups:
            if "momentum" in group:
                group["momentum"] = momentum(t)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        if averaged:
            averaged.update_parameters(module)
    result = averaged.module if averaged else module
    return {name: result[name.replace(".", "/")].detach().double() for name in tensors}


def difference(a, b):
    """The largest of all values."""
    return max((a[name] - b[name]).abs().max().item() for name in a)


def tolerance(config):
    return TOLERANCES[config["muon_dtype"] or "adamw"]


def check_against_pytorch(config, found):
    """Fails if PyTorch's own Muon does not agree."""
    theirs = difference(found, train("grouped", config, "theirs"))
    if theirs > tolerance(config):
        sys.exit(f"torch.optim.Muon differs from {__file__} by {theirs:.1e}")


def schedule_cases():
    for schedule in ["cosine", "wsd"]:
        for n, warmup, lowest, decay in [
            (20, 0, 1e-4, 0.3),
            (20, 4, 0.0, 0.3),
            (20, 1, 1e-3, 1.0),
            (25, 2, 1e-4, 0.3),  # 7.5 steps, rounded up
            (25, 3, 0.0, 0.88),  # falls right after the warm-up
            (25, 3, 1e-4, 0.0),
            (300, 100, 1e-5, 0.2),
        ]:
            if schedule == "wsd" and warmup > n - math.floor(decay * n + 0.5):
                continue
            yield {
                "schedule": schedule,
                "lr_max": LR_MAX,
                "lr_min": lowest,
                "warmup_iters": warmup,
                "decay_fraction": decay,
                "n_iters": n,
            }


def oracle():
    results = []
    for name, model, config in cases():
        values = train(model, config)
        if name.endswith("bfloat16 decay"):
            check_against_pytorch(config, values)
        flat = {key: value.flatten().tolist() for key, value in values.items()}
        results.append(
            {"name": name, "model": model, "config": config, "tolerance": tolerance(config), "values": flat}
        )
    return {
        "torch": torch.__version__,
        "n_steps": N_STEPS,
        "models": {model: list(map(list, tensors.items())) for model, tensors in MODELS.items()},
        "cases": results,
        "schedules": [{"config": config, "rates": rates(config)} for config in schedule_cases()],
    }


def spread():
    for name, model, config in cases():
        found = train(model, config)
        start = {n: initial(i, n, s).double() for i, (n, s) in enumerate(MODELS[model].items(), 1)}
        line = f"{name:50} moved {difference(found, start):.2f}, tolerance {tolerance(config):.0e}"
        if config["muon_dtype"] != "bfloat16":
            exact = config | {"muon_dtype": config["muon_dtype"] and "float64"}
            line += f", from double {difference(found, train(model, exact, dtype=torch.float64)):.1e}"
        if config["muon_dtype"]:
            line += f", other order {difference(found, train(model, config, 'fused')):.1e}"
        if config["muon_dtype"] == "bfloat16":
            line += f", torch.optim.Muon {difference(found, train(model, config, 'theirs')):.1e}"
            exact = config | {"muon_dtype": "float32"}
            line += f", from float32 {difference(found, train(model, exact)):.1e}"
        print(line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spread", action="store_true", help="print what rounding changes, no JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.spread:
        spread()
    else:
        json.dump(oracle(), sys.stdout)


if __name__ == "__main__":
    main()
