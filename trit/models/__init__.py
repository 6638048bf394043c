"""One file per architecture, found by file name. Each exports `ArchConfig`, `param_specs(cfg)`, `forward(ops, p, cfg, tokens)` and
`readout(ops, p, cfg, x)`. An `ArchConfig` with a `layer_map` is checked by trit/layer_map.py; one that is not
built on the backbone says `experts = 0`, which the optimiser reads. One whose forward carries a state from window to window also exports
`carry_shapes(cfg)`, the shapes of it (trit/layers/scan.py).

Where an architecture needs them it also exports `check_settings(cfg)`, ValueError for settings that cannot be; `in_training(ops, cfg, q)`,
the weights of a training step with what tells its forward so; `update_state(ops, p, cfg)`, {name: array} of buffers that no gradient
teaches, which a training step finds in its `p`, made once before each step from weights and what the step before was given;
`estimate_gradients(ops, q, cfg, tokens, targets)` beside `update_state`, (loss, {name: gradient}, {name: array} that the next `update_state`
finds) of a micro-batch, where it has gradients of its own instead of those of its forward; `stage_arrays(cfg, rung)`, numpy arrays that a training step's forward finds beside the weights at a rung of train.ladder; `probe` and
`probed_groups`, what a run logs of its weights (trit/train/probe.py)."""

import importlib
import pkgutil


def arch_names():
    """Names of all architectures, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_arch(name):
    """The architecture module called `name`; ValueError lists the known ones."""
    if name not in arch_names():
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(arch_names())}")
    return importlib.import_module(f"{__name__}.{name}")
