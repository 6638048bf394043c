"""The PyTorch side of training and evaluation: processes, gradients, the step. With `ops/torch_*` the only importer of torch."""

import os
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as distributed

from trit.eval.temperature import model_logits, scored_losses, scored_rows
from trit.eval.ttt import adapted
from trit.layers.attention import choose_attention
from trit.train.backend import Backend, Evaluator, Process
from trit.train.carry import first_states, kept_streams, own_states
from trit.train.chance import kept_blocks, noise_key
from trit.train.loss import rate_price, seen_weights, training_loss
from trit.train.optimizer import optimizer_state, optimizer_step, spread, stacked, stacks
from trit.train.phases import all_phases, has_moments, has_phases


def start_process():
    """Join the process group that torchrun describes (if any) and choose the device."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device != "cpu" else "gloo", timeout=timedelta(minutes=1))
    return Process(rank, world, device)


def to_device(array, process):
    """A copy of a numpy array as a tensor on this process's device."""
    return torch.tensor(array, device=process.device)


def sent(array, process):
    """`to_device` that nobody waits for: a GPU fetches the copy from pinned memory while it computes."""
    tensor = torch.from_numpy(array)
    return tensor if process.device == "cpu" else tensor.pin_memory().to(process.device, non_blocking=True)


def reader(process, *values):
    """A function that waits until 0-d tensors are computed and gives them as numbers. Their copy is under way at once, so that later
    work of the device is not waited for."""
    if process.device == "cpu":
        return lambda: tuple(map(float, values))
    numbers, done = torch.stack(values).to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def read():
        done.synchronize()
        return tuple(numbers.tolist())

    return read


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
        return ops.to_numpy(scored_rows(ops, arch, cfg, used(changes), to_device(inputs, process), first))

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


def mean_over_ranks(process, matrices, gradients, loss):
    """Means of gradients {key: tensor} and of the loss: of the stacks `matrices` this rank's share, of the rest all. The stacks and, in
    one bucket, the rest are in flight together."""
    rest, found = [key for key in gradients if key not in matrices], {}
    flat = torch.cat([gradients[key].reshape(-1).float() for key in rest] + [loss.reshape(1)])
    flying = [distributed.all_reduce(flat, async_op=True)]
    for key in matrices:
        found[key] = torch.empty_like(gradients[key][: len(gradients[key]) // process.world])
        flying.append(distributed.reduce_scatter(found[key], list(gradients[key].chunk(process.world)), async_op=True))
    for work in flying:
        work.wait()
    *pieces, loss = torch.split(flat / process.world, [gradients[key].numel() for key in rest] + [1])
    found = {key: x / process.world for key, x in found.items()}
    return found | {key: piece.view_as(gradients[key]) for key, piece in zip(rest, pieces)}, loss[0]


def whole_stacks(process, matrices, parts):
    """{key: tensor} with the stacks `matrices` put together from every rank's share."""
    if process.world == 1:
        return parts
    found = dict(parts)
    found.update({key: parts[key].new_empty(process.world * len(parts[key]), *parts[key].shape[1:]) for key in matrices})
    for work in [distributed.all_gather(list(found[key].chunk(process.world)), parts[key], async_op=True) for key in matrices]:
        work.wait()
    return found


def gathered_rows(process, parts):
    """The rows of a list of tensors of this rank, and behind one another those of all ranks."""
    rows = torch.cat(parts)
    if process.world == 1:
        return rows
    found = [torch.empty_like(rows) for _ in range(process.world)]
    distributed.all_gather(found, rows)
    return torch.cat(found)


def check_fp8_units(process):
    """ValueError where this process's GPU multiplies no 8-bit floats; a CPU rounds alike with float32 products, for tests and studies."""
    if process.device != "cpu" and torch.cuda.get_device_capability() < (8, 9):
        raise ValueError("train.fp8=True needs a GPU that multiplies 8-bit floats (Ada, Hopper or newer); set train.fp8=false")


def make_backend(ops, arch, cfg, specs, arrays, process):
    """`Backend` over the parameter table `specs`, started from numpy `arrays`.

    Every rank holds all parameters; of the matrices, stacked by shape, it steps its share alone and holds the momentum of that.
    """
    matrices = [key for key, members in stacks(specs).items() if members[0].group == "matrix"]

    def own(whole):
        """{key: tensor} with this rank's share of every stack."""
        return whole | {key: whole[key].chunk(process.world)[process.rank] for key in matrices}

    def on_device(flat, pattern):
        """{key: stack or tensor} of numpy arrays that `pattern` names."""
        return stacked(ops, specs, {spec.name: to_device(flat[pattern.format(spec.name)], process) for spec in specs}, process.world)

    held = {"p": on_device(arrays, "{}"), "ema": {}, "clock": None}
    if has_phases(cfg):
        torch._dynamo.config.recompile_limit = 8 * len(all_phases(cfg))  # one graph a phase, and as many again for another backend
    held["state"] = optimizer_state(ops, specs, own(held["p"]))
    if cfg.train.carry:

        def own_streams(flat):
            return [[to_device(x, process) for x in micro] for micro in own_states(cfg, flat, process.rank, process.world)]

        held["carry"] = own_streams(first_states(arch, cfg))
    if hasattr(arch, "update_state"):
        held["derived"] = {}
    if cfg.train.attention_kernel == "flash":
        choose_attention(ops, cfg, next(iter(held["p"].values())))
    if cfg.train.fp8:
        check_fp8_units(process)

    def loss_function(weights, tokens, targets):
        return training_loss(ops, arch, cfg, weights, tokens, targets)

    @torch.no_grad()
    def seen(whole, rounded):
        if cfg.quant.noise and rounded:
            return seen_weights(ops, cfg, specs, spread(specs, whole) | {"noise": whole["noise"]}, rounded)
        return seen_weights(ops, cfg, specs, spread(specs, whole), rounded)

    @torch.no_grad()
    def square(gradients):
        """This rank's part of the sum of all squares: its matrices, and of what every rank has alike a part."""
        shares = {key: 1 if key in matrices else process.world for key in gradients}
        return sum(ops.sum(ops.cast(x, "float32") ** 2) / shares[key] for key, x in gradients.items())

    @torch.no_grad()
    def update(parts, gradients, state, factor, norm):
        return optimizer_step(ops, cfg, specs, parts, gradients, state, factor, norm)

    if cfg.train.compile:
        loss_function, seen = compiled(loss_function), compiled(seen)
        if process.device != "cpu":  # on a CPU the update takes a minute to compile and is no faster for it
            square, update = compiled(square), compiled(update)

    def gradients_of(inputs, targets, rounded):
        """Mean loss and {name: gradient} over this step's micro-batches on this rank."""
        if cfg.quant.noise and rounded:
            noise = [sent(array, process) for array in noise_key(cfg, held["moment"])]
            leaves = {name: weight.detach().requires_grad_() for name, weight in seen({**held["p"], "noise": noise}, rounded).items()}
        else:
            leaves = {name: weight.detach().requires_grad_() for name, weight in seen(held["p"], rounded).items()}
        mean_loss, gradients = 0.0, None
        parts = cfg.train.grad_accum_steps
        if hasattr(arch, "update_state"):
            with torch.no_grad():
                held["derived"] = arch.update_state(ops, {**leaves, **held["derived"]}, cfg)
        if cfg.train.drop_path:
            kept = np.split(kept_blocks(cfg, held["moment"], len(inputs), process.rank, process.world), parts, 1)[::-1]
        if cfg.train.carry:
            held["left"] = []
            streams = np.split(kept_streams(cfg, held["moment"], len(inputs), process.rank, process.world), parts)
        for tokens, wanted in zip(np.split(inputs, parts), np.split(targets, parts)):
            if hasattr(arch, "estimate_gradients"):
                known = {**leaves, **held["derived"]}
                loss, found, left = arch.estimate_gradients(ops, known, cfg, sent(tokens, process), sent(wanted, process))
                held["derived"] = {**held["derived"], **left}
            elif has_moments(cfg):
                known = dict(leaves)
                if hasattr(arch, "update_state"):
                    known.update(held["derived"])
                if cfg.train.recurrence_start and held["moment"].shallow:
                    known["shallow"] = True
                if cfg.train.drop_path:
                    known["keep"] = ops.cast(sent(np.ascontiguousarray(kept.pop()), process), cfg.train.compute_dtype)
                if cfg.engram.write_every > 1 and held["moment"].step % cfg.engram.write_every:
                    known["idle"] = True
                if cfg.train.ladder:
                    known |= {name: sent(array, process) for name, array in arch.stage_arrays(cfg, held["moment"].rung).items()}
                if cfg.train.carry:
                    number = len(held["left"])
                    going_on = sent(np.ascontiguousarray(streams[number]), process)
                    known["carry"] = [x * going_on for x in held["carry"][number]]
                    objective, loss, left = loss_function(known, sent(tokens, process), sent(wanted, process))
                    held["left"].append(left)
                else:
                    objective, loss = loss_function(known, sent(tokens, process), sent(wanted, process))
            elif hasattr(arch, "update_state"):
                objective, loss = loss_function({**leaves, **held["derived"]}, sent(tokens, process), sent(wanted, process))
            else:
                objective, loss = loss_function(leaves, sent(tokens, process), sent(wanted, process))
            if hasattr(arch, "estimate_gradients"):
                part = [found[name] / parts for name in leaves]
            elif cfg.engram.write_every > 1:
                part = torch.autograd.grad(objective / parts, list(leaves.values()), materialize_grads=True)
            else:
                part = torch.autograd.grad(objective / parts, list(leaves.values()))
            mean_loss = mean_loss + loss.detach() / parts
            gradients = part if gradients is None else [a.float() + b for a, b in zip(gradients, part)]
        if cfg.quant.rate_penalty:
            plain = {name: weight.detach().requires_grad_() for name, weight in spread(specs, held["p"]).items()}
            part = torch.autograd.grad(rate_price(ops, cfg, specs, plain), [plain[name] for name in leaves], allow_unused=True)
            gradients = [a if b is None else a + b for a, b in zip(gradients, part)]
            if cfg.engram.write_every > 1 and held["moment"].step % cfg.engram.write_every:
                gradients[list(leaves).index("engram.table")].zero_()
        return mean_loss, dict(zip(leaves, gradients))

    @torch.no_grad()
    def step(inputs, targets, factor, rounded, averaging):
        with torch.enable_grad():
            loss, gradients = gradients_of(inputs, targets, rounded)
        gradients = stacked(ops, specs, gradients, process.world)
        if process.world > 1:
            gradients, loss = mean_over_ranks(process, matrices, gradients, loss)
        norm = square(gradients)
        if process.world > 1:
            distributed.all_reduce(norm)
        norm = torch.sqrt(norm)
        factor = torch.full((), factor, device=process.device)
        parts, held["state"] = update(own(held["p"]), gradients, held["state"], factor, norm)
        held["p"] = whole_stacks(process, matrices, parts)
        if cfg.train.carry:  # a state that is no number would spoil every later step: after such a one all rows begin anew
            held["carry"] = [[torch.where(norm < float("inf"), x, 0.0) for x in micro] for micro in held["left"]]
        if cfg.train.ema_decay and averaging:
            share = torch.where(norm < float("inf"), 1.0 - cfg.train.ema_decay, 0.0)
            held["ema"] = {key: x + share * (held["p"][key] - x) for key, x in (held["ema"] or held["p"]).items()}
        return reader(process, loss, norm)

    if has_moments(cfg):

        def step_at(inputs, targets, factor, rounded, averaging, moment):
            held["moment"] = moment
            return step(inputs, targets, factor, rounded, averaging)

    def slowest(seconds):
        if process.world == 1:
            return seconds
        latest = torch.full((), seconds, dtype=torch.float64, device=process.device)
        distributed.all_reduce(latest, op=distributed.ReduceOp.MAX)
        before, held["clock"] = held["clock"], reader(process, latest)
        # A GPU answers with what it was asked a step ago: the new number is behind the step that is under way.
        return (before if before and process.device != "cpu" else held["clock"])()[0]

    def export():
        return {name: ops.to_numpy(x).copy() for name, x in spread(specs, held["ema"] or held["p"]).items()}

    def state():
        first = spread(specs, whole_stacks(process, matrices, {key: moments[0] for key, moments in held["state"].items()}))
        flat = {f"p/{name}": x for name, x in spread(specs, held["p"]).items()}
        flat.update({f"ema/{name}": x for name, x in (spread(specs, held["ema"]) if held["ema"] else {}).items()})
        flat.update({f"optimizer/{name}/0": x for name, x in first.items()})
        flat.update({f"optimizer/{key}/1": moments[1] for key, moments in held["state"].items() if len(moments) == 2})
        if cfg.train.carry:
            flat.update({f"carry/{number}": gathered_rows(process, parts) for number, parts in enumerate(zip(*held["carry"]))})
        if hasattr(arch, "update_state"):
            flat.update({f"derived/{name}": x for name, x in held["derived"].items()})
        return {name: ops.to_numpy(x).copy() for name, x in flat.items()} | {"step": np.array(int(held["state"]["step"][0]))}

    def restore(flat):
        held["p"] = on_device(flat, "p/{}")
        held["ema"] = on_device(flat, "ema/{}") if f"ema/{specs[0].name}" in flat else {}
        first = own(on_device(flat, "optimizer/{}/0"))
        second = {key: () if key in matrices else (to_device(flat[f"optimizer/{key}/1"], process),) for key in first}
        held["state"] = {key: (x, *second[key]) for key, x in first.items()}
        if cfg.train.carry:
            held["carry"] = own_streams(flat)
        if hasattr(arch, "update_state"):
            held["derived"] = {name[8:]: to_device(x, process) for name, x in flat.items() if name[:8] == "derived/"}
        held["state"]["step"] = (torch.full((), float(flat["step"]), device=process.device),)

    # A GPU is given the next step while it computes one; a CPU computes as it is told.
    return Backend(
        step_at if has_moments(cfg) else step,
        slowest,
        export,
        state,
        restore,
        process.rank,
        process.world,
        0 if process.device == "cpu" else 1,
    )
