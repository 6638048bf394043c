"""What an architecture has to say about its weights, as its forward sees them, in the log of a run: beside the counted program, not in it.

An architecture that exports `probe` is asked at the first step and every PROBE_LINES log lines, on the step's own tokens, of its weights
and of what its `update_state` left beside them; with `probed_groups` the gradients of that step are reported too. They are read off the
optimiser's moments, so a step that is not probed costs nothing.
"""

import numpy as np

from trit.params import parameter_count
from trit.train.loss import seen_weights

PROBE_LINES = 10
STEEP = 1000.0  # a gradient norm that is worth a line
ROWS = 4  # windows that a probe reads


def first_moments(cfg, specs, state, names):
    """{name: (first moment, share of it that a step keeps, share of a gradient that it takes)} of optimiser states."""
    found = {}
    for spec in specs:
        if spec.name in names:
            muon = spec.group == "matrix"
            kept = cfg.train.muon_momentum if muon else cfg.train.beta1
            found[spec.name] = state[f"optimizer/{spec.name}/0"].astype(np.float64), kept, 1.0 if muon else 1.0 - kept
    return found


def gradient_sizes(cfg, before, after, norm):
    """{name: gradient before clipping} of the step between two `first_moments`, whose gradients had this norm in all."""
    clip = cfg.train.grad_clip_norm
    scale = max(1.0, norm / clip) if clip else 1.0
    return {name: (after[name][0] - kept * moment) / taken * scale for name, (moment, kept, taken) in before.items()}


def with_probe(backend, ops, arch, cfg, specs, log):
    """`backend` that also reports, on rank 0, what `arch` says of its weights; as it is where the architecture says nothing."""
    if not hasattr(arch, "probe") or backend.rank:
        return backend
    groups, taken = arch.probed_groups(cfg), [0]
    names = {name for members in groups.values() for name in members}
    counts = {name: parameter_count([spec for spec in specs if spec.group == name]) for name in dict.fromkeys(spec.group for spec in specs)}
    log.metrics(event="start", parameters=counts, ladder=cfg.train.ladder, dtype=cfg.train.compute_dtype, compile=cfg.train.compile)

    def step(inputs, *others):
        index = taken[0]
        taken[0] += 1
        first = index == cfg.train.warmup_steps  # steps before it are warm-up, whose traces are undone
        if not first and index % (PROBE_LINES * cfg.train.log_every):
            return backend.step(inputs, *others)
        before = first_moments(cfg, specs, backend.state(), names)
        wait = backend.step(inputs, *others)

        def finish():
            loss, norm = wait()
            if np.isfinite(norm):
                gradients = gradient_sizes(cfg, before, first_moments(cfg, specs, backend.state(), names), norm)
                sizes = {group: [gradients[name] for name in members] for group, members in groups.items()}
                sizes = {
                    group: {"max": max(float(np.abs(x).max()) for x in found), "norm": sum(float((x * x).sum()) for x in found) ** 0.5}
                    for group, found in sizes.items()
                }
                log.metrics(event="gradients", step=index, **sizes)
                for group, size in sizes.items():
                    if size["norm"] > STEEP:
                        log.line(f"gradients of {group} have norm {size['norm']:.0f} before clipping")
            p = seen_weights(ops, cfg, specs, {name: ops.from_numpy(array) for name, array in backend.export().items()}, True)
            p |= {name[8:]: ops.from_numpy(array) for name, array in backend.state().items() if name.startswith("derived/")}
            log.metrics(event="probe", step=index, **arch.probe(ops, p, cfg, ops.from_numpy(inputs[:ROWS])))
            return loss, norm

        return finish

    return backend._replace(step=step)
