"""The MLX side of training and evaluation: the same names and contracts as `torch_backend`. With `ops/mlx_ops` the only importer of mlx."""

import mlx.core as mx
import numpy as np

from trit.eval.temperature import model_logits, scored_losses, scored_rows
from trit.eval.ttt import adapted
from trit.train.backend import Backend, Evaluator, Process
from trit.train.carry import first_states, kept_streams, own_states
from trit.train.chance import kept_blocks, noise_key
from trit.train.loss import rate_price, seen_weights, training_loss
from trit.train.optimizer import optimizer_state, optimizer_step, spread, stacked
from trit.train.phases import has_moments


def start_process():
    """Join the group that mlx.launch describes (if any); the device is MLX's default one."""
    group = mx.distributed.init()
    return Process(group.rank(), group.size(), "gpu" if mx.default_device() == mx.Device(mx.gpu) else "cpu")


def total_over_ranks(array, process):
    """Sum of a numpy array over all ranks, on every rank."""
    if process.world == 1:
        return array
    array = np.array(array)
    # float64 exists on the CPU only.
    return np.array(mx.distributed.all_sum(mx.array(array, getattr(mx, array.dtype.name)), stream=mx.cpu))


def mlx_weights(ops, cfg, arrays):
    """{name: array of type compute_dtype} from numpy arrays."""
    return {name: ops.cast(mx.array(np.array(array)), cfg.train.compute_dtype) for name, array in arrays.items()}


def evaluator(ops, arch, cfg, arrays, process):
    """`Evaluator` of a model whose weights are `arrays` (numpy) as they are."""
    weights = mlx_weights(ops, cfg, arrays)
    gradients = None

    def used(changes):
        return adapted(ops, cfg, weights, changes) if cfg.eval.ttt_scope != "none" and changes else weights

    def scored(p, tokens, targets, first):
        return scored_losses(ops, arch, cfg, p, tokens, targets, first)

    if cfg.eval.eval_compile:
        scored = mx.compile(scored)  # traced again for every new shape, which is cheap

    def losses(inputs, targets, changes=None, first=0):
        return ops.to_numpy(scored(used(changes), mx.array(np.array(inputs)), mx.array(np.array(targets)), first))

    def rows(inputs, changes=None, first=0):
        return ops.to_numpy(scored_rows(ops, arch, cfg, used(changes), mx.array(np.array(inputs)), first))

    if cfg.eval.ttt_scope != "none":

        def gradients(changes, inputs, targets, shares):
            def loss(leaves):
                losses = scored_losses(ops, arch, cfg, used(leaves), mx.array(np.array(inputs)), mx.array(np.array(targets)))
                return (losses * mx.array(np.array(shares))).sum()

            return {name: ops.to_numpy(array) for name, array in mx.grad(loss)(changes).items()}

    return Evaluator(losses, rows, gradients, weights, lambda array: total_over_ranks(array, process), process.rank, process.world)


def observe(ops, arch, cfg, arrays, inputs, process):
    """Second moment of the inputs of every matrix on `inputs` (B, T): {name: float32 array (I, I)}; its diagonal holds the mean squares."""
    weights = {name: mx.array(np.array(array)) for name, array in arrays.items()}
    weights["taps"] = {}
    model_logits(ops, arch, cfg, weights, mx.array(np.array(inputs)))
    return {name: ops.to_numpy(x) for name, x in weights["taps"].items()}


def squared_gradients(ops, arch, cfg, arrays, inputs, targets, process):
    """Mean over windows (B, T) of the squared gradient of a window's summed loss, for each weight, over T: the curvature that the
    loss of a token has along it, in expectation (the diagonal of the empirical Fisher information). {name: float32 array}."""
    weights = {name: mx.array(np.array(array)) for name, array in arrays.items()}

    def loss(p, tokens, wanted):
        return scored_losses(ops, arch, cfg, p, tokens, wanted).sum()

    found = dict.fromkeys(arrays, 0.0)
    for row in range(len(inputs)):
        gradients = mx.grad(loss)(weights, *(mx.array(np.array(x[row : row + 1])) for x in (inputs, targets)))
        found = {name: total + ops.to_numpy(gradients[name]) ** 2 for name, total in found.items()}
    return {name: total / inputs.size for name, total in found.items()}


def make_backend(ops, arch, cfg, specs, arrays, process):
    """`Backend` over the parameter table `specs`, started from numpy `arrays`. ValueError where MLX cannot do what is set."""
    if cfg.train.fp8:
        raise ValueError("train.fp8=True: MLX multiplies no 8-bit floats; train with PyTorch (train_gpt.py) or set train.fp8=false")
    names = [spec.name for spec in specs]

    def arrays_of(flat, pattern):
        """{key: stack or array} of numpy arrays that `pattern` names."""
        return stacked(ops, specs, {name: mx.array(np.array(flat[pattern.format(name)])) for name in names})

    held = {"p": arrays_of(arrays, "{}"), "ema": {}}
    held["state"] = optimizer_state(ops, specs, held["p"])

    def own_streams(flat):
        return [[mx.array(x) for x in micro] for micro in own_states(cfg, flat, process.rank, process.world)]

    if cfg.train.carry:
        held["carry"] = own_streams(first_states(arch, cfg))

    if hasattr(arch, "update_state"):
        held["derived"] = {}

    # Pure, so that compiling them needs no hidden state. `beside` {name: array} has no gradient.
    def differentiated(**known):
        """Function to (loss, gradients of q) of a micro-batch; `known` holds in all its steps ("shallow", "idle")."""

        def objective(q, tokens, targets, beside):
            return training_loss(ops, arch, cfg, {**q, **beside, **known}, tokens, targets)

        function = mx.value_and_grad(objective)
        return mx.compile(function) if cfg.train.compile else function

    def rounded_weights(whole, beside):
        return seen_weights(ops, cfg, specs, spread(specs, whole) | beside, True)

    # By whether recurrent layers are visited once, and whether the engram's tables get no gradient.
    loss_gradients = {
        (False, False): differentiated(),
        (True, False): differentiated(shallow=True),
        (False, True): differentiated(idle=True),
        (True, True): differentiated(shallow=True, idle=True),
    }

    def update(whole, gradients, state, factor, norm):
        return optimizer_step(ops, cfg, specs, whole, gradients, state, factor, norm)

    if cfg.train.compile:
        rounded_weights = mx.compile(rounded_weights)
        if process.device != "cpu":  # on a CPU MLX hands every fused kernel to a C++ compiler
            update = mx.compile(update)

    def gradients_of(inputs, targets, rounded):
        """Mean loss and gradients over this step's micro-batches and all ranks."""
        mean_loss, gradients = 0.0, None
        beside = {"noise": [mx.array(array) for array in noise_key(cfg, held["moment"])]} if cfg.quant.noise else {}
        q = rounded_weights(held["p"], beside) if rounded else seen_weights(ops, cfg, specs, spread(specs, held["p"]), False)
        parts, micro = cfg.train.grad_accum_steps, [{}] * cfg.train.grad_accum_steps
        if cfg.train.drop_path:
            kept = kept_blocks(cfg, held["moment"], len(inputs), process.rank, process.world)
            micro = [{"keep": ops.cast(mx.array(part), cfg.train.compute_dtype)} for part in np.split(kept, parts, 1)]
        if cfg.train.ladder:
            staged = {name: mx.array(array) for name, array in arch.stage_arrays(cfg, held["moment"].rung).items()}
            micro = [beside | staged for beside in micro]
        if cfg.train.carry:
            held["left"] = []
            going_on = np.split(kept_streams(cfg, held["moment"], len(inputs), process.rank, process.world), parts)
            carried = [[x * mx.array(kept) for x in states] for states, kept in zip(held["carry"], going_on)]
            micro = [beside | {"carry": states} for beside, states in zip(micro, carried)]
        if hasattr(arch, "update_state"):
            held["derived"] = arch.update_state(ops, {**q, **held["derived"]}, cfg)
            micro = [known | held["derived"] for known in micro]
        early = cfg.train.recurrence_start > 0 and held["moment"].shallow
        idle = cfg.engram.write_every > 1 and held["moment"].step % cfg.engram.write_every > 0
        for tokens, wanted, beside in zip(np.split(inputs, parts), np.split(targets, parts), micro):
            if hasattr(arch, "estimate_gradients"):
                loss, part, left = arch.estimate_gradients(ops, {**q, **beside}, cfg, mx.array(tokens), mx.array(wanted))
                held["derived"] = {**held["derived"], **left}
            else:
                (_, loss, *left), part = loss_gradients[early, idle](q, mx.array(tokens), mx.array(wanted), beside)
            mean_loss = mean_loss + loss / parts
            part = {name: ops.cast(part[name], "float32") / parts for name in names}
            gradients = part if gradients is None else {name: gradients[name] + part[name] for name in names}
            if parts > 1:  # evaluated here, a micro-batch's graph and activations are gone before the next one begins
                mx.eval(mean_loss, gradients, left)
            if cfg.train.carry:
                held["left"] += left
        if cfg.quant.rate_penalty:
            part = mx.grad(lambda p: rate_price(ops, cfg, specs, p))(spread(specs, held["p"]))
            gradients = {name: gradients[name] + part[name] for name in names}
            if idle:
                gradients["engram.table"] = mx.zeros_like(gradients["engram.table"])
        if process.world > 1:
            flat = mx.concatenate([gradients[name].reshape(-1) for name in names] + [mean_loss.reshape(1)])
            flat = mx.distributed.all_sum(flat) / process.world
            pieces = mx.split(flat, np.cumsum([gradients[name].size for name in names]).tolist())
            gradients = {name: piece.reshape(gradients[name].shape) for name, piece in zip(names, pieces)}
            mean_loss = pieces[-1][0]
        return mean_loss, gradients

    def step(inputs, targets, factor, rounded, averaging):
        loss, gradients = gradients_of(inputs, targets, rounded)
        norm = mx.sqrt(sum((g * g).sum() for g in gradients.values()))
        held["p"], held["state"] = update(held["p"], stacked(ops, specs, gradients), held["state"], mx.array(factor), norm)
        if cfg.train.ema_decay and averaging:
            share = mx.where(norm < float("inf"), 1.0 - cfg.train.ema_decay, 0.0)
            held["ema"] = {key: x + share * (held["p"][key] - x) for key, x in (held["ema"] or held["p"]).items()}
        if cfg.train.carry:  # a state that is no number would spoil every later step: after such a one all rows begin anew
            held["carry"] = [[mx.where(norm < float("inf"), x, 0.0) for x in micro] for micro in held["left"]]
            held["left"] = []
        if hasattr(arch, "update_state"):
            mx.async_eval(held["derived"])
        # Begun here and waited for by who asks, so that a GPU computes while the next step's graph is built.
        mx.async_eval(loss, norm, held["p"], held["state"], held["ema"], held.get("carry", []))
        return lambda: (float(loss), float(norm))

    def step_at(inputs, targets, factor, rounded, averaging, moment):
        held["moment"] = moment
        return step(inputs, targets, factor, rounded, averaging)

    def slowest(seconds):
        if process.world == 1:
            return seconds
        return float(mx.distributed.all_max(mx.array(seconds)))

    def export():
        return {name: ops.to_numpy(x) for name, x in spread(specs, held["ema"] or held["p"]).items()}

    def state():
        first = spread(specs, {key: moments[0] for key, moments in held["state"].items()})
        flat = {f"p/{name}": x for name, x in spread(specs, held["p"]).items()}
        flat.update({f"ema/{name}": x for name, x in (spread(specs, held["ema"]) if held["ema"] else {}).items()})
        flat.update({f"optimizer/{name}/0": x for name, x in first.items()})
        flat.update({f"optimizer/{key}/1": moments[1] for key, moments in held["state"].items() if len(moments) == 2})
        if cfg.train.carry:
            whole = {f"carry/{number}": mx.concatenate(parts) for number, parts in enumerate(zip(*held["carry"]))}
            flat |= {name: mx.distributed.all_gather(x) for name, x in whole.items()} if process.world > 1 else whole
        if hasattr(arch, "update_state"):
            flat.update({f"derived/{name}": x for name, x in held["derived"].items()})
        return {name: ops.to_numpy(x) for name, x in flat.items()} | {"step": np.array(int(held["state"]["step"][0]))}

    def restore(flat):
        held["p"] = arrays_of(flat, "p/{}")
        held["ema"] = arrays_of(flat, "ema/{}") if f"ema/{names[0]}" in flat else {}
        first = arrays_of(flat, "optimizer/{}/0")
        second = {key: (mx.array(flat[f"optimizer/{key}/1"]),) if f"optimizer/{key}/1" in flat else () for key in first}
        held["state"] = {key: (x, *second[key]) for key, x in first.items()} | {"step": (mx.array(float(flat["step"])),)}
        if cfg.train.carry:
            held["carry"] = own_streams(flat)
        if hasattr(arch, "update_state"):
            held["derived"] = {name[8:]: mx.array(x) for name, x in flat.items() if name[:8] == "derived/"}

    ahead = 0 if process.device == "cpu" else 1
    return Backend(step_at if has_moments(cfg) else step, slowest, export, state, restore, process.rank, process.world, ahead)
