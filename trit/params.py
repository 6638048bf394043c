"""A model's tensors as a table: `ParamSpec` rows fix name, shape, start, optimiser group and storage. Shared by both backends."""

import zlib
from typing import NamedTuple

import numpy as np


class ParamSpec(NamedTuple):
    """One tensor. `init` is normal (value: standard deviation) or constant; `group` is matrix (Muon), embed, engram or scalar (Adam);
    `scheme` is ternary, int (of `bits`) or fp16; `group_size` weights share one scale, and an integer grid spans `clip` times their
    root mean square. A tensor with a constant start is stored on its grid as the distance from it. `rotate` stores every group after
    a Hadamard rotation. `adapt` is the kind of tensor that test-time training knows it as (trit/eval/ttt.py), empty for what never
    moves after training."""

    name: str
    shape: tuple
    init: str = "normal"
    value: float = 0.02
    group: str = "matrix"
    scheme: str = "fp16"
    bits: int = 16
    group_size: int = 0
    clip: float = 2.5
    lr_scale: float = 1.0
    adapt: str = ""
    rotate: bool = False


def on_grid(spec, bits, group_size, clip):
    """`spec` stored with `bits`: 1 is ternary, 2 to 8 an integer grid that spans `clip` RMS of a group, 16 a float16 each."""
    scheme = "fp16" if bits == 16 else "ternary" if bits == 1 else "int"
    return spec._replace(scheme=scheme, bits=max(bits, 2), group_size=group_size, clip=clip)


def matrix_spec(cfg, name, rows, columns, std):
    """A large matrix (rows, columns) in the storage that `quant.matrix_scheme` names, trained by Muon."""
    spec = ParamSpec(name, (rows, columns), "normal", std, "matrix", adapt="matrix", rotate=cfg.quant.rotate_matrices)
    bits = 1 if cfg.quant.matrix_scheme == "ternary" else cfg.quant.matrix_bits if cfg.quant.matrix_scheme == "int" else 16
    return on_grid(spec, bits, min(cfg.quant.bitnet_group_size, columns), cfg.quant.int_clip)


def scalar_spec(cfg, name, shape, value, adapt="scale"):
    """Gains, scales and biases: constant start, Adam without decay, one scale for the whole tensor."""
    spec = ParamSpec(name, shape, "constant", value, "scalar", adapt=adapt)
    return on_grid(spec, cfg.quant.scalar_bits, int(np.prod(shape)), cfg.quant.scalar_clip)


def table_spec(cfg, name, shape, std, adapt="scale"):
    """A small table with a random start, stored and trained as scalars are: its factors may not both start at 0."""
    spec = ParamSpec(name, shape, "normal", std, "scalar", adapt=adapt)
    return on_grid(spec, cfg.quant.scalar_bits, int(np.prod(shape)), cfg.quant.scalar_clip)


def init_params(specs, seed):
    """{name: float32 array} drawn from (seed, name), so that a tensor's start does not depend on its neighbours."""
    arrays = {}
    for spec in specs:
        if spec.init == "normal":
            generator = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
            arrays[spec.name] = (generator.standard_normal(spec.shape, dtype=np.float32) * np.float32(spec.value)).astype(np.float32)
        else:
            arrays[spec.name] = np.full(spec.shape, spec.value, np.float32)
    return arrays


def parameter_count(specs):
    """Number of weights in the table."""
    return sum(int(np.prod(spec.shape)) for spec in specs)
