"""Random tables of tensors, the worked example of docs/format.md, and hand-made artifacts for the tests of packing and planning."""

import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from trit.compress import pack as packing
from trit.compress.layouts import PackError
from trit.compress.pack import pack, unpack
from trit.compress.quantize import SMALLEST_SCALE, QuantTensor, group_layout, scale_table
from trit.params import ParamSpec


def storage(scale_steps=0, coders="entropy", allocate=False, threshold=0.5, scale="absmean"):
    """The part of a Config that rounding and packing read."""
    quant = SimpleNamespace(
        ternary_threshold=threshold,
        ternary_scale=scale,
        scale_steps=scale_steps,
        scalar_bits=8,
        embed_bits=4,
        engram_bits=4,
        matrix_scheme="fp16",
        rotate_matrices=True,
        rotate_embedding=False,
    )
    return SimpleNamespace(quant=quant, compress=SimpleNamespace(coders=coders, allocate=allocate, engram_keep=""))


SETTINGS = storage()

EXAMPLE_SPECS = [ParamSpec("w", (1, 6), group="matrix", scheme="ternary", bits=2, group_size=4), ParamSpec("b", (2,), group="scalar")]
EXAMPLE = {
    "w": QuantTensor(np.array([[1, -1, 0, 0], [1, 1, 0, 0]], np.int8), np.array([[0.5], [0.25]], np.float16)),
    "b": QuantTensor(np.array([1, -2], np.float16), None),
}


def random_specs(generator):
    """A table of one to six tensors: all schemes, odd widths, groups inside rows (padded) and over several rows (padded)."""
    specs = []
    for i in range(generator.integers(1, 7)):
        shape = tuple(int(n) for n in generator.integers(1, 23, generator.integers(1, 4)))
        scheme = str(generator.choice(["ternary", "int", "fp16"]))
        columns = shape[-1]
        size = int(generator.choice([1, 3, columns, max(1, columns // 2), 2 * columns, 5 * columns]))
        size = size if size <= columns or size % columns == 0 else columns
        bits = {"ternary": 2, "int": int(generator.integers(2, 9)), "fp16": 16}[scheme]
        group = str(generator.choice(["matrix", "embed", "engram", "scalar"]))
        specs.append(ParamSpec(f"t{i}", shape, group=group, scheme=scheme, bits=bits, group_size=0 if scheme == "fp16" else size))
    return specs


def random_tensors(specs, generator, scale_steps=0):
    """Valid QuantTensors: some uniform, some sparse, some constant, so that every mode, layout and compressor gets its turn."""
    tensors = {}
    for spec in specs:
        if spec.scheme == "fp16":
            tensors[spec.name] = QuantTensor(generator.standard_normal(spec.shape).astype(np.float16), None)
            continue
        groups, size, _ = group_layout(spec)
        top = packing.grid_top(spec)
        codes = generator.integers(-top, top + 1, (groups, size)).astype(np.int8)
        codes *= generator.random((groups, size)) < generator.choice([0.0, 0.1, 0.5, 1.0])
        codes[~packing.real_entries(spec)] = 0
        scales = np.maximum(np.exp(generator.normal(-3, 2, (groups, 1))), SMALLEST_SCALE).astype(np.float16)
        if scale_steps:
            scales = scale_table(scale_steps)[generator.integers(0, 29 * scale_steps + 1, (groups, 1))]
        tensors[spec.name] = QuantTensor(codes, scales)
    return tensors


def same(first, second):
    """Every array of two tensor dicts agrees in type, shape and bits."""
    pairs = [(first[name], second[name]) for name in first]
    arrays = [(a, b) for one, two in pairs for a, b in zip(one, two, strict=True) if a is not None or b is not None]
    return set(first) == set(second) and all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in arrays)


def sealed(data):
    """`data` with its checksum made right, as a hostile writer would."""
    return data[:13] + hashlib.sha256(data[:13] + data[21:]).digest()[:8] + data[21:]


def artifact(cfg, specs, body):
    """A sealed file of modes and what follows them."""
    return sealed(struct.pack("<4sB8s", b"TRIT", 2, packing.spec_fingerprint(cfg, specs)) + bytes(8) + body)


def refusal(cfg, specs, data):
    """The sentence with which a file is refused; any other exception fails the test."""
    with pytest.raises(PackError) as caught:
        unpack(cfg, specs, data)
    return str(caught.value)


def small_artifact(cfg=SETTINGS):
    """A file of a few hundred bytes, its specs and tensors."""
    generator = np.random.default_rng(5)
    specs = [
        ParamSpec("w", (9, 50), group="matrix", scheme="ternary", bits=2, group_size=16),
        ParamSpec("e", (30, 8), group="embed", scheme="int", bits=4, group_size=24),
        ParamSpec("s", (40,), group="scalar"),
    ]
    tensors = random_tensors(specs, generator, cfg.quant.scale_steps)
    tensors["w"].codes[20:] = 0
    return specs, tensors, pack(cfg, specs, tensors)
