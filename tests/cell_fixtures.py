"""What the tests of equilibrium cells share: small operators in 64 bits, cosines."""

from types import SimpleNamespace

import numpy as np
import torch
from model_fixtures import random_tokens, tiny_config

from trit.dynamics.precise import precise_ops, precise_weights
from trit.layers.equilibrium import capped, cell, cell_tables, drive, force, own_force
from trit.models import equilibrium
from trit.params import init_params

OPS = precise_ops()
SMALL = {
    "num_layers": 1,
    "model_dim": 16,
    "embed_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 2,
    "mlp_mult": 4,
    "matrix_scheme": "fp16",
    "embed_bits": 16,
}
SMALL |= {"relax_rate": 0.25, "relax_steps": 60, "norm_cap": 0, "jacobian_penalty": 0, "adjoint_tolerance": 1e-9, "adjoint_budget": 400}
SMALL |= {"free_tolerance": 1e-10, "free_budget": 2000, "residual_gate": 1e-6, "vocab_size": 32}


def cell_config(**settings):
    """Configuration of a small cell, solved to the last digits."""
    return tiny_config("equilibrium", **SMALL | settings)


def operator(cfg, rows=3, length=12, gain=1.5, seed=0):
    """A cell at its start, its output matrices `gain` times as large: `ops`, weights, tokens, targets, force and what it is made of."""
    arrays = init_params(equilibrium.param_specs(cfg), seed)
    for name in arrays:
        if name.endswith((".output", ".contract")):
            arrays[name] = arrays[name] * np.float32(gain)
    arrays["embed"] *= 25
    q = precise_weights(arrays)
    tokens, targets = (torch.from_numpy(random_tokens(cfg, rows, length, seed + i)) for i in (0, 1))
    p, tables = capped(OPS, q, cfg), cell_tables(OPS, cfg, tokens)
    x = drive(OPS, p, cfg, tokens)
    return SimpleNamespace(
        cfg=cfg,
        q=q,
        p=p,
        x=x,
        tables=tables,
        tokens=tokens,
        targets=targets,
        names=[spec.name for spec in equilibrium.param_specs(cfg)],
        force=lambda z: force(OPS, p, cfg, z, x, tables),
        own=lambda own, past: own_force(OPS, p, cfg, own, past, x, tables),
        cell=lambda z: cell(OPS, p, cfg, z, tables),
    )


def cosine(left, right):
    """Of two arrays or of two {name: array} taken as one vector."""
    if isinstance(left, dict):
        left, right = (torch.cat([found[name].flatten() for name in left]) for found in (left, right))
    return float((left * right).sum() / (left.norm() * right.norm()))
