"""The PyTorch side of training and evaluation: processes, gradients, the step. With `ops/torch_ops` the only importer of torch."""

import os

import numpy as np
import torch
import torch.distributed as distributed

from trit.eval.temperature import model_logits, scored_logits, scored_losses
from trit.eval.ttt import adapted
from trit.train.backend import Backend, Evaluator, Process
from trit.train.loss import rate_price, seen_weights, training_loss
from trit.train.optimizer import optimizer_state, optimizer_step


def start_process():
    """Join the process group that torchrun describes (if any) and choose the device."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device != "cpu" else "gloo")
    return Process(rank, world, device)


def to_device(array, process):
    """A copy of a numpy array as a tensor on this process's device."""
    return torch.from_numpy(np.array(array)).to(process.device)


def total_over_ranks(array, process):
    """Sum of a numpy array over all ranks, on every rank."""
    if process.world == 1:
        return array
    tensor = to_device(array, process)
    distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def evaluator(ops, arch, cfg, arrays, process):
    """`Evaluator` of a model whose weights are `arrays` (numpy) as they are, on this process's device."""
    weights = {name: to_device(array, process) for name, array in arrays.items()}
    if cfg.train.compute_dtype != "float32":
        weights = {name: ops.cast(weight, cfg.train.compute_dtype) for name, weight in weights.items()}
    gradients = None

    def used(changes):
        return adapted(ops, cfg, weights, changes) if cfg.eval.ttt_scope != "none" and changes else weights

    if cfg.eval.eval_compile:
        shapes = set()
        compiled_losses = compiled(lambda p, tokens, targets, first: scored_losses(ops, arch, cfg, p, tokens, targets, first))

    @torch.no_grad()
    def losses(inputs, targets, changes=None, first=0):
        given = used(changes), to_device(inputs, process), to_device(targets, process), first
        if cfg.eval.eval_compile:
            # A shape is worth compiling when it comes again; the first window and the last batch never do.
            if (inputs.shape, first) in shapes:
                return ops.to_numpy(compiled_losses(*given))
            shapes.add((inputs.shape, first))
        return ops.to_numpy(scored_losses(ops, arch, cfg, *given))

    @torch.no_grad()
    def rows(inputs, changes=None, first=0):
        p = used(changes)
        stream = arch.forward(ops, p, cfg, to_device(inputs, process))[0][:, first:]
        return ops.to_numpy(ops.log_softmax(scored_logits(ops, arch, cfg, p, stream)))

    if cfg.eval.ttt_scope != "none":

        def gradients(changes, inputs, targets, shares):
            leaves = {name: array.detach().requires_grad_() for name, array in changes.items()}
            losses = scored_losses(ops, arch, cfg, used(leaves), to_device(inputs, process), to_device(targets, process))
            found = torch.autograd.grad((losses * to_device(shares, process)).sum(), list(leaves.values()))
            return {name: ops.to_numpy(array) for name, array in zip(leaves, found)}

    return Evaluator(losses, rows, gradients, weights, lambda array: total_over_ranks(array, process), process.rank, process.world)


@torch.no_grad()
def observe(ops, arch, cfg, arrays, inputs, process):
    """Second moment of the inputs of every matrix on `inputs` (B, T): {name: float32 array (I, I)}; its diagonal holds the mean squares."""
    weights = {name: to_device(array, process) for name, array in arrays.items()}
    weights["taps"] = {}
    model_logits(ops, arch, cfg, weights, to_device(inputs, process))
    return {name: ops.to_numpy(x) for name, x in weights["taps"].items()}


def squared_gradients(ops, arch, cfg, arrays, inputs, targets, process):
    """Mean over windows (B, T) of the squared gradient of a window's summed loss, for each weight, over T: the curvature that the
    loss of a token has along it, in expectation (the diagonal of the empirical Fisher information). {name: float32 array}."""
    leaves = {name: to_device(array, process).requires_grad_() for name, array in arrays.items()}
    found = dict.fromkeys(arrays, 0.0)
    for row in range(len(inputs)):
        tokens, wanted = (to_device(x[row : row + 1], process) for x in (inputs, targets))
        loss = scored_losses(ops, arch, cfg, leaves, tokens, wanted).sum()
        for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values()))):
            found[name] = found[name] + gradient * gradient
    return {name: ops.to_numpy(x) / inputs.size for name, x in found.items()}


def compiled(function):
    """`function` compiled whole, or as it is where this machine cannot compile (no C++ compiler, say); prints why."""
    try:
        torch.compile(torch.square)(torch.ones(2))
    except Exception as fault:
        print(f"eager instead, because compiling fails here: {type(fault).__name__}: {str(fault).strip().splitlines()[0]}")
        return function
    return torch.compile(function, fullgraph=True, dynamic=False)


def make_backend(ops, arch, cfg, specs, arrays, process):
    """`Backend` over the parameter table `specs`, started from numpy `arrays`."""
    names = [spec.name for spec in specs]
    p = {name: to_device(arrays[name], process) for name in names}
    held = {"p": p, "optimizer": optimizer_state(ops, specs, p), "ema": {}, "step": 0}

    def loss_function(weights, tokens, targets):
        return training_loss(ops, arch, cfg, weights, tokens, targets)

    @torch.no_grad()
    def seen(weights, rounded):
        return seen_weights(ops, cfg, specs, weights, rounded)

    if cfg.train.compile:
        loss_function, seen = compiled(loss_function), compiled(seen)

    def gradients_of(inputs, targets, rounded):
        """Mean loss and gradients over this step's micro-batches and all ranks."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in seen(held["p"], rounded).items()}
        mean_loss, gradients = 0.0, None
        parts = cfg.train.grad_accum_steps
        for tokens, wanted in zip(np.split(inputs, parts), np.split(targets, parts)):
            tokens, wanted = (to_device(x, process) for x in (tokens, wanted))
            objective, loss = loss_function(leaves, tokens, wanted)
            part = torch.autograd.grad(objective / parts, list(leaves.values()))
            mean_loss = mean_loss + loss.detach() / parts
            part = [ops.cast(gradient, "float32") for gradient in part]
            gradients = part if gradients is None else [a + b for a, b in zip(gradients, part)]
        if cfg.quant.rate_penalty:
            leaves = {name: weight.detach().requires_grad_() for name, weight in held["p"].items()}
            part = torch.autograd.grad(rate_price(ops, cfg, specs, leaves), list(leaves.values()), allow_unused=True)
            gradients = [a if b is None else a + b for a, b in zip(gradients, part)]
        if process.world > 1:
            flat = torch.cat([g.reshape(-1) for g in gradients] + [mean_loss.reshape(1)]) / process.world
            distributed.all_reduce(flat)
            pieces = torch.split(flat, [g.numel() for g in gradients] + [1])
            gradients, mean_loss = [piece.view_as(g) for piece, g in zip(pieces, gradients)], pieces[-1][0]
        return mean_loss, dict(zip(names, gradients))

    def step(inputs, targets, factor, rounded, averaging):
        loss, gradients = gradients_of(inputs, targets, rounded)
        with torch.no_grad():
            norm = float(torch.sqrt(sum((g * g).sum() for g in gradients.values())))
            if not np.isfinite(norm):
                return float(loss), norm
            if cfg.train.grad_clip_norm and norm > cfg.train.grad_clip_norm:
                gradients = {name: g * (cfg.train.grad_clip_norm / norm) for name, g in gradients.items()}
            held["p"], held["optimizer"] = optimizer_step(
                ops, cfg, specs, held["p"], gradients, held["optimizer"], factor, held["step"] + 1
            )
            held["step"] += 1
            if cfg.train.ema_decay and averaging:
                old = held["ema"] or held["p"]
                held["ema"] = {n: cfg.train.ema_decay * old[n] + (1.0 - cfg.train.ema_decay) * held["p"][n] for n in names}
        return float(loss), norm

    def slowest(seconds):
        if process.world == 1:
            return seconds
        tensor = torch.tensor(seconds, dtype=torch.float64, device=process.device)
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
        return float(tensor)

    def export():
        return {name: ops.to_numpy(x).copy() for name, x in (held["ema"] or held["p"]).items()}

    def state():
        flat = {f"p/{name}": x for name, x in held["p"].items()}
        flat.update({f"ema/{name}": x for name, x in held["ema"].items()})
        flat.update({f"optimizer/{name}/{i}": x for name, moments in held["optimizer"].items() for i, x in enumerate(moments)})
        return {name: ops.to_numpy(x).copy() for name, x in flat.items()} | {"step": np.array(held["step"])}

    def restore(flat):
        tensors = {name: to_device(x, process) for name, x in flat.items()}
        held["step"] = int(flat["step"])
        held["p"] = {name: tensors[f"p/{name}"] for name in names}
        held["ema"] = {name: tensors[f"ema/{name}"] for name in names if f"ema/{name}" in tensors}
        held["optimizer"] = {name: tuple(tensors[f"optimizer/{name}/{i}"] for i in range(len(held["optimizer"][name]))) for name in names}

    return Backend(step, slowest, export, state, restore, process.rank, process.world)
