"""Bits where they lower the loss most: one storage for every tensor, so that the artifact is no larger than a cap.

Every tensor gets a ladder of roundings: steps from coarse to fine, dead zones, and three ways to spread the step over its groups. A
rounding's price is what the entropy coder takes for it. Its harm is the rise of the loss to second order, half of d^T F d for the
difference d: F is the measured curvature (squared gradients), for matrices with error feedback the product of the curvature of a
row and the second moment of the inputs. Only roundings on the lower convex hull can be chosen; taking hull steps in falling order of
harm saved a bit is then optimal for every budget (Shoham and Gersho 1988, doi 10.1109/29.90373).

What is chosen is measured on held-out training text: each tensor in turn is restored, the fall of the loss over its harm corrects
its curve, and the choice is made again. The packed artifact is measured too: it never exceeds the cap. All choices are
deterministic; the number of evaluations is bounded, and the clock only stops them.
"""

import time
from typing import NamedTuple

import numpy as np

from trit.compress.entropy import DIFFERENCES, SHARED, best_mode, lane_count, mode_known, stream_bits
from trit.compress.gptq import rounded, spec_groups
from trit.compress.pack import pack, stream_symbols, stream_table
from trit.compress.quantize import QuantTensor, dequantize, group_counts, group_layout, stored_scale, to_groups
from trit.params import on_grid

COARSEST = 4.0  # largest step, in RMS of the tensor
LADDER = 15  # steps, each finer by the square root of two
DEAD_ZONES = (0.0, 0.12, 0.24)
SMOOTHING = 0.3  # of the mean curvature, added to every group's: what the text shows rarely is not worth nothing
SMALLEST = 8  # numbers; a tensor below that stays as it is
LARGE = 8192  # numbers; a smaller tensor's codes are priced with one table
FINE = 5  # bisections between two steps that spend the rest of a budget
SPARE = 0.001  # share of the cap that may stay free
FITS = 4  # times that the budget is corrected by the packed size
PROBED = 0.01  # share of the expected harm that a tensor must have to be measured
TRUST = 4.0  # most by which a measured slope may differ from the middle one


class Choice(NamedTuple):
    """One way to store a tensor: its spec, codes and scales, the bits that they take and the expected rise of the loss in nats."""

    spec: object
    tensor: object
    bits: float
    harm: float
    step: float
    dead: float
    pattern: str


class Curve(NamedTuple):
    """What is known of a tensor: its spec, the array that it would hold at no loss, curvature of its shape, moment (I, I) or None,
    modes of the coder that suit it (all where empty)."""

    spec: object
    array: np.ndarray
    curvature: np.ndarray
    moment: object
    modes: tuple


class Ladders(NamedTuple):
    """What an allocation chooses from: a `Curve` and a hull of choices for every tensor, and the lanes of the coder."""

    curves: list
    hulls: list
    lanes: int


def product(curve, a, b):
    """Sum of a F b over the tensor, in nats a token where `a` and `b` are differences of weights."""
    if curve.moment is None:
        return float((curve.curvature * a * b).sum())
    rows = curve.curvature.sum(1, keepdims=True) / np.trace(curve.moment)
    return float((rows * (a @ curve.moment) * b).sum())


def code_bits(cfg, spec, tensor, lanes, modes):
    """(bits that the entropy coder takes for the tensor's codes and scales, coded by themselves; the mode of the codes), the best of
    `modes`, or of all modes where it is empty. Scales are a small part, for which two modes are enough."""
    streams, symbols = stream_table(cfg, [spec]), stream_symbols(cfg, [spec], {spec.name: tensor})

    def fewest(stream, part, modes):
        return min((stream_bits(stream, mode, part, lanes), mode) for mode in modes if mode_known(stream, mode))

    beside = [fewest(*pair, (SHARED, DIFFERENCES + SHARED)) for pair in zip(streams[1:], symbols[1:])]
    codes = fewest(streams[0], symbols[0], modes) if modes else best_mode(streams[0], symbols[0], lanes)
    return codes[0] + sum(bits for bits, _ in beside), codes[1]


def entropy_bits(codes):
    """Order-0 entropy of all codes together: a quick stand-in for `code_bits`."""
    counts = np.bincount((codes - codes.min()).astype(np.int64).reshape(-1)).astype(np.float64)
    return float((counts * np.log2(counts.sum() / np.maximum(counts, 1.0))).sum())


def group_steps(ops, curve, pattern):
    """Steps (groups, 1), in powers of the fourth root of two so that they cost few bits: alike, like the group's RMS, or such that
    every group adds the same harm (like one over the root of its curvature)."""
    counts = np.resize(group_counts(curve.spec), (group_layout(curve.spec)[0], 1)).astype(np.float32)
    power = (spec_groups(ops, curve.spec, curve.array).astype(np.float64) ** 2).sum(1, keepdims=True)
    steps = np.full(counts.shape, np.sqrt(power.sum() / counts.sum()) + 1e-12)
    if pattern == "size":
        steps = np.sqrt(power / counts) + 1e-3 * steps
    elif pattern == "curvature":
        found = ops.to_numpy(to_groups(ops, curve.spec, ops.from_numpy(curve.curvature))).sum(1, keepdims=True) / counts
        steps = steps / np.sqrt(found / (found.mean() + 1e-30) + SMOOTHING)
    return np.exp2(np.round(np.log2(steps) * 4) / 4) if pattern != "equal" else steps


def choice_of(ops, cfg, curve, pattern, step, dead):
    """`Choice` of one rounding, its bits by `entropy_bits`; the scale is refitted to the codes."""
    spec = on_grid(curve.spec, 8, curve.spec.group_size, curve.spec.clip)
    start = np.float32(spec.value if cfg.quant.scalar_bits < 16 and spec.init == "constant" else 0.0)
    target = curve.array - start

    def storable(steps):
        return ops.to_numpy(stored_scale(ops, cfg, ops.from_numpy(steps.astype(np.float32))))

    def decoded(scales):
        tensor = QuantTensor(codes.astype(np.int8), scales.astype(np.float16))
        return tensor, dequantize(ops, cfg, [spec], {spec.name: tensor})[spec.name] - start

    scales = storable(group_steps(ops, curve, pattern) * step)
    codes = rounded(ops, spec, target, scales, 127, dead, curve.moment)
    tensor, value = decoded(scales)
    size = product(curve, value, value)
    if size > 0:
        tensor, value = decoded(storable(scales * min(max(product(curve, target, value) / size, 0.5), 2.0)))
    top = int(abs(codes).max())
    spec = on_grid(spec, 1 if top <= 1 else int(top).bit_length() + 1, spec.group_size, spec.clip)
    return Choice(spec, tensor, entropy_bits(codes), 0.5 * product(curve, value - target, value - target), step, dead, pattern)


def hull(choices):
    """The choices on the lower convex hull of (bits, harm), from the fewest bits on; each lowers the harm at a falling rate."""
    kept = []
    for choice in sorted(choices, key=lambda c: (c.bits, c.harm)):
        if kept and choice.harm >= kept[-1].harm:
            continue
        while len(kept) > 1 and slope(kept[-2], choice) >= slope(kept[-2], kept[-1]):
            kept.pop()
        kept.append(choice)
    return kept


def slope(left, right):
    """Harm saved a bit from one choice to the next."""
    return (left.harm - right.harm) / max(right.bits - left.bits, 1e-9)


def patterns_of(curve):
    """Ways to spread the step that are worth trying: measured on matrices, the step alike in all groups won (docs/LOG.md)."""
    return ("equal",) if curve.moment is not None or curve.spec.group == "scalar" else ("equal", "size", "curvature")


def rotations_of(curve):
    """The curve as it is, and rotated where that may be: the groups of a matrix that was trained in floats and fill their rows. What was
    trained on a grid is spread over its codes; rotated and rounded again it would be another network."""
    spec = curve.spec
    if spec.group == "matrix" and spec.scheme == "fp16" and not spec.rotate and spec.shape[-1] % spec.group_size == 0:
        return [curve, curve._replace(spec=spec._replace(rotate=True))]
    return [curve]


def choices_of(ops, cfg, curve, kept, lanes):
    """(coder modes, hull of a tensor's choices with exact bits). `kept` is the tensor as it stands, harmless by definition."""
    standing = Choice(curve.spec, kept, code_bits(cfg, curve.spec, kept, lanes, (SHARED,))[0], 0.0, 0.0, 0.0, "kept")
    if curve.array.size < SMALLEST:
        return (), [standing]
    found = [
        choice_of(ops, cfg, turned, pattern, COARSEST * 2 ** (-place / 2), dead)
        for turned in rotations_of(curve)
        for pattern in patterns_of(curve)
        for place in range(LADDER)
        for dead in DEAD_ZONES
    ]
    line = hull(found)
    # Which context a code's table is chosen by hardly depends on the step: what is best in the middle of the hull serves all of it.
    middle = line[len(line) // 2]
    modes = (SHARED,)
    if curve.array.size > LARGE:
        modes = (SHARED, code_bits(cfg, middle.spec, middle.tensor, lanes, ())[1])
    exact = [choice._replace(bits=code_bits(cfg, choice.spec, choice.tensor, lanes, modes)[0]) for choice in line]
    return modes, hull([*exact, standing])


def select(hulls, budget):
    """Place on each hull so that the bits sum to at most `budget` and the harm is least: hull steps in falling order of harm saved a
    bit, up to the first that does not fit; the least on every hull where even that exceeds the budget. Returns (places, the hull
    whose next step did not fit or None)."""
    steps = [(-slope(line[i], line[i + 1]), which, i) for which, line in enumerate(hulls) for i in range(len(line) - 1)]
    places, used = [0] * len(hulls), sum(line[0].bits for line in hulls)
    for _, which, i in sorted(steps):
        more = hulls[which][i + 1].bits - hulls[which][i].bits
        if used + more > budget:
            return places, which
        used, places[which] = used + more, i + 1
    return places, None


def weighed(line, weight):
    """A hull with its harm in measured units."""
    return [choice._replace(harm=choice.harm * weight) for choice in line]


def fill(ops, cfg, made, weights, budget):
    """([Choice, ...], whether more bits would buy more) for a budget in bits. Where the next hull step of a tensor is too large there
    are three ways on: a step in between, found by bisection; the others get what is left; or the tensor takes it and the others pay."""
    lines = [weighed(line, weight) for line, weight in zip(made.hulls, weights)]
    places, blocked = select(lines, budget)
    if blocked is None:
        return [line[place] for line, place in zip(lines, places)], False
    solved = [between(ops, cfg, made, weights, budget, lines, places, blocked)]
    cut = places[blocked] + 1
    for part in (lines[blocked][:cut], lines[blocked][cut:]):
        trial = [part if which == blocked else line for which, line in enumerate(lines)]
        found, stop = select(trial, budget)
        while stop is not None:
            trial[stop] = trial[stop][: found[stop] + 1]
            found, stop = select(trial, budget)
        chosen = [line[place] for line, place in zip(trial, found)]
        if sum(choice.bits for choice in chosen) <= budget:
            solved.append(chosen)
    return min(solved, key=lambda chosen: sum(choice.harm for choice in chosen)), True


def between(ops, cfg, made, weights, budget, lines, places, blocked):
    """The choices at `places` of the hulls `lines`, the one that is `blocked` moved as far towards its next as the budget allows."""
    chosen = [line[place] for line, place in zip(lines, places)]
    left, right = chosen[blocked], lines[blocked][places[blocked] + 1]
    spare = budget - sum(choice.bits for choice in chosen) + left.bits
    curve, low, high = made.curves[blocked], 0.0, 1.0
    turned = curve._replace(spec=curve.spec._replace(rotate=right.spec.rotate))
    for _ in range(FINE if "kept" not in (left.pattern, right.pattern) else 0):
        way = (low + high) / 2
        step, dead = left.step ** (1 - way) * right.step**way, left.dead * (1 - way) + right.dead * way
        middle = choice_of(ops, cfg, turned, right.pattern, step, dead)
        bits = code_bits(cfg, middle.spec, middle.tensor, made.lanes, curve.modes)[0]
        middle = middle._replace(bits=bits, harm=middle.harm * weights[blocked])
        low, high = (way, high) if bits <= spare else (low, way)
        if bits <= spare and middle.harm < chosen[blocked].harm:
            chosen[blocked] = middle
    return chosen


def packed_size(cfg, chosen):
    """Bytes of the artifact of a list of choices."""
    return len(pack(cfg, [c.spec for c in chosen], {c.spec.name: c.tensor for c in chosen}))


def fitted(ops, cfg, made, weights, cap, beside):
    """([Choice, ...], packed bytes, bytes beside the bits of the choices) for at most `cap` bytes: what packing takes beside the bits is
    `beside` at first, then measured and left out of the budget. ValueError where even the coarsest storages exceed the cap."""
    best = None
    for _ in range(FITS):
        chosen, more = fill(ops, cfg, made, weights, 8.0 * (cap - beside))
        size = packed_size(cfg, chosen)
        if size <= cap and (best is None or size > best[1]):
            best = (chosen, size)
        beside = size - sum(choice.bits for choice in chosen) / 8.0 + (8.0 if size > cap else 0.0)
        if size <= cap and (not more or cap - size < SPARE * cap):
            break
    if best is None:
        chosen = [line[0] for line in made.hulls]
        best = (chosen, packed_size(cfg, chosen))
        if best[1] > cap:
            raise ValueError(
                f"the coarsest storages take {best[1]:,} bytes, and compress.model_bytes_cap leaves {cap:,}; raise it, or train a smaller model"
            )
    return *best, beside


def arrays_of(ops, cfg, chosen):
    """{name: float32 array} of a list of choices."""
    return dequantize(ops, cfg, [c.spec for c in chosen], {c.spec.name: c.tensor for c in chosen})


def measured_weights(curves, chosen, stored, loss, weights, mean_loss, evaluations, late):
    """Weight of every tensor's harm: how far the loss falls when the tensor alone is restored, over its harm. Tensors whose expected
    part is largest are measured first, at most `evaluations` of them and none once `late()`; the middle of the measured stands for the others."""
    found, total = {}, sum(choice.harm for choice in chosen)
    for which in sorted(range(len(curves)), key=lambda i: -chosen[i].harm):
        harm = chosen[which].harm / weights[which]
        if len(found) == evaluations or late() or chosen[which].harm <= PROBED * total:
            break
        name = curves[which].spec.name
        found[which] = (loss - mean_loss(stored | {name: curves[which].array})) / harm
    if not found:
        return weights
    middle = max(float(np.median(list(found.values()))), 1e-3)
    return [min(max(found.get(i, middle), middle / TRUST), middle * TRUST) for i in range(len(curves))]


def ladders(ops, cfg, specs, kept, moments, curvatures):
    """`Ladders` of tensors as they stand: `kept` {name: QuantTensor}; `moments` {matrix: (I, I)} are the second moments of inputs,
    `curvatures` {name: array} those of `squared_gradients`, both of the model with these tensors."""
    values, curves, hulls = dequantize(ops, cfg, specs, kept), [], []
    lanes = lane_count(stream_table(cfg, specs))
    for spec in specs:
        moment = moments[spec.name].astype(np.float64) if spec.group == "matrix" and spec.name in moments else None
        curve = Curve(spec, values[spec.name], curvatures[spec.name].astype(np.float64), moment, ())
        modes, line = choices_of(ops, cfg, curve, kept[spec.name], lanes)
        curves.append(curve._replace(modes=modes))
        hulls.append(line)
    return Ladders(curves, hulls, lanes)


def allocate(ops, cfg, made, mean_loss, cap, log):
    """(specs as stored, {name: QuantTensor}) of at most `cap` packed bytes from the `Ladders` `made`. `mean_loss(arrays)` is the loss
    in nats a token on held-out training text; at most compress.calibration_evals calls, none after compress.calibration_seconds."""
    begin, left = time.perf_counter(), cfg.compress.calibration_evals

    def late():
        return time.perf_counter() - begin > cfg.compress.calibration_seconds

    weights = [1.0] * len(made.curves)
    chosen, size, beside = fitted(ops, cfg, made, weights, cap, 0.0)
    if left > 3 and not late():
        stored = arrays_of(ops, cfg, chosen)
        loss = mean_loss(stored)
        log.line(f"allocation: {size} of {cap} bytes, held-out training loss {loss:.5f} by expected harm")
        weights = measured_weights(made.curves, chosen, stored, loss, weights, mean_loss, left - 3, late)
        again, new_size, _ = fitted(ops, cfg, made, weights, cap, beside)
        new_loss = mean_loss(arrays_of(ops, cfg, again))
        log.line(f"allocation: {new_size} of {cap} bytes, held-out training loss {new_loss:.5f} by measured harm")
        if new_loss < loss:
            chosen = again
    return [c.spec for c in chosen], {c.spec.name: c.tensor for c in chosen}
