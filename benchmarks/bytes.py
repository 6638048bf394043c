"""What every byte is spent on, against the bars: python benchmarks/bytes.py [--json] [--quick]

Prints one row a bar: trits against their entropy; the public ternary entry's shape (10 layers, 768 wide, 8/4 heads, 4x MLP, tied
embedding 8192 x 254) at no more error than its own formats; counted code of the competition preset; packing speed and memory on one
core; the planner on configs/ternary_10x768.toml and configs/demo.toml with Gaussian weights. --quick takes a tenth of the layers.
"""

# ruff: noqa: E402
import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package is not installed, so that counted files run alone in this environment

from trit.bundle.bundle import bundle
from trit.compress.entropy import Stream, encode_streams, stream_bits
from trit.compress.pack import grid_top, pack, unpack
from trit.compress.plan import entropy, plan
from trit.compress.quantize import QuantTensor, dequantize, group_layout, quantize
from trit.compress.sizes import category_bytes, sizes
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import ParamSpec

PRESET = str(ROOT / "configs" / "ternary_10x768.toml")
DEMO = str(ROOT / "configs" / "demo.toml")
ZERO_SHARE = 0.369
FP8_CLIP = 11.0  # an 8-bit grid of steps of 0.087 RMS: 2.5 % error where e4m3 has 2.6 %
SCALE_STEPS = 112  # a scale's error is 0.18 %, a bfloat16 scale's 0.19 %


def trit_symbols(generator, count, zero):
    """Independent symbols 0, 1, 2 of which a share `zero` is 1."""
    return np.where(generator.random(count) < zero, 1, 2 * generator.integers(0, 2, count)).astype(np.int64)


def trit_rows(count):
    """Rows of the table: bits a trit over the order-0 entropy, for independent trits and for rows that differ."""
    rows, generator = [], np.random.default_rng(0)
    for zero in (1 / 3, 0.37, 0.44, 0.6):
        symbols = trit_symbols(generator, count, zero)
        _, _, data = encode_streams([Stream(3, count, 768)], [symbols], {})
        ratio = 8 * len(data) / count / entropy(np.bincount(symbols))
        rows.append((f"trits over order-0 entropy, zeros {zero:.3f}", 1.002, round(ratio, 5), ratio <= 1.002))
    shares = generator.uniform(0.2, 0.6, (count // 768, 1))
    symbols = np.where(generator.random((len(shares), 768)) < shares, 1, 2 * generator.integers(0, 2, (len(shares), 768))).reshape(-1)
    _, _, data = encode_streams([Stream(3, symbols.size, 768)], [symbols], {})
    ratio = 8 * len(data) / symbols.size / entropy(np.bincount(symbols))
    rows.append(("the same where rows have 0.2 to 0.6 zeros", 1.0, round(ratio, 5), ratio < 1))
    return rows


def public_specs(layers, group_size):
    """Table of the public entry: ternary matrices, the 2-D rest on an 8-bit grid that stands in for fp8, a 16-bit vocabulary bias."""
    specs = []

    def add(name, shape, scheme="int", bits=8):
        size = min(group_size, shape[-1]) if scheme == "ternary" else shape[-1]
        specs.append(ParamSpec(name, shape, scheme=scheme, bits=bits, group_size=size, clip=FP8_CLIP))

    for i in range(layers):
        for name, shape in (("qkv", (1536, 768)), ("out", (768, 768)), ("up", (3072, 768)), ("down", (768, 3072))):
            add(f"{i}.{name}", shape, "ternary", 2)
        for name, shape in (("mix", (2, 768)), ("scales", (2, 768))):
            add(f"{i}.{name}", shape)
    for name, shape in (
        ("embed", (8192, 254)),
        ("embed.up", (768, 254)),
        ("embed.down", (254, 768)),
        ("skips", (5, 768)),
    ):
        add(name, shape)
    return [*specs, ParamSpec("vocab_bias", (8192,)), ParamSpec("q_gain", (80,))]


def drawn(generator, shape, spread):
    """Weights whose logarithms' spread widens the tails of a Gaussian: `spread` 0.47 or so gives the public zero share."""
    return (generator.standard_normal(shape) * np.exp(spread * generator.standard_normal(shape))).astype(np.float32)


def spread_for(zero, group_size):
    """Spread that makes a share `zero` of weights fall below half the mean magnitude of their group."""
    low, high = 0.0, 2.0
    for _ in range(30):
        middle = (low + high) / 2
        size = np.abs(drawn(np.random.default_rng(1), (2400, min(group_size, 768)), middle))
        low, high = (middle, high) if (size <= size.mean(1, keepdims=True) / 2).mean() < zero else (low, middle)
    return low


def relative_error(found, wanted):
    """RMS of the difference over the RMS of what was wanted."""
    return float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))


def fp8(x):
    """x through e4m3 with one scale a row, as the public entry's best form does."""
    scale = np.abs(x).max(-1, keepdims=True) / 448
    return torch.from_numpy(x / scale).to(torch.float8_e4m3fn).float().numpy() * scale


def public_entry(layers, group_size, code_bytes):
    """Rows of the table for the public entry's shape: bytes, and per-tensor errors against its own formats."""
    overrides = [f"quant.scale_steps={SCALE_STEPS}", "quant.scalar_bits=16"]
    config, _, _ = load(PRESET, environ={}, overrides=overrides)
    specs, generator, spread = public_specs(layers, group_size), np.random.default_rng(2), spread_for(ZERO_SHARE, group_size)
    tensors, worst, zeros = {}, 0.0, []
    for spec in specs:
        x = drawn(generator, spec.shape, spread if spec.scheme == "ternary" else 0.0) * 0.02
        tensors |= quantize(torch_ops, config, [spec], {spec.name: torch_ops.from_numpy(x)}, {})
        ours = dequantize(torch_ops, config, [spec], tensors)[spec.name]
        if spec.scheme == "fp16":
            continue
        if spec.scheme == "ternary":
            codes = tensors[spec.name].codes
            zeros.append((codes == 0).mean())
            exact = np.abs(x.reshape(codes.shape)).mean(1, keepdims=True)
            wanted = (codes * exact).reshape(spec.shape)
            theirs = (codes * torch.from_numpy(exact).bfloat16().float().numpy()).reshape(spec.shape)
        else:
            wanted, theirs = x, fp8(x)
        worst = max(worst, relative_error(ours, wanted) / relative_error(theirs, wanted))
    data = pack(config, specs, tensors)
    same = unpack(config, specs, data)
    exact = all(np.array_equal(same[name].codes, tensors[name].codes) for name in tensors)
    total, bar = len(data) + code_bytes, (15_100_000 if group_size == 128 else 14_700_000)
    name = "public shape, group 128" if group_size == 128 else "public shape, scales per row"
    bar = bar if layers == 10 else None
    parts = category_by_kind(config, specs, tensors, data)
    return [
        (f"{name}: weights + code", bar, total, bar is None or total <= bar),
        (f"{name}: largest error over its formats' error", 1.0, round(worst, 4), worst <= 1),
        (f"{name}: share of zeros", ZERO_SHARE, round(float(np.mean(zeros)), 4), abs(np.mean(zeros) - ZERO_SHARE) < 0.002),
        (f"{name}: unpacked equals packed", True, exact, exact),
        (f"{name}: bytes by kind", None, parts, True),
    ]


def category_by_kind(config, specs, tensors, data):
    """{kind: bytes} with trits, the grids, scales and the rest apart."""
    kinds = {spec.name: spec.scheme for spec in specs}
    totals = {}
    for row in sizes(config, specs, tensors, data):
        kind = "scales" if row.category == "scales" else kinds.get(row.name, row.category)
        totals[kind] = totals.get(kind, 0) + row.size
    return totals


def code_rows():
    """Rows of the table for the counted code of the competition preset, and the sizes of both forms."""
    rows, found = [], []
    for name, overrides, bar in (("", [], 12_500), (", evaluation only", ["eval.evaluation_only=true"], 8_000)):
        config, _, _ = load(PRESET, environ={}, overrides=overrides)
        found.append(len(bundle(config).wrapped))
        rows.append((f"counted code{name}", bar, found[-1], found[-1] <= bar))
    return rows, found[0]


def planner_rows(presets):
    """Rows of the table for presets with Gaussian weights: expected over packed total, and whether the bound holds."""
    rows = []
    for preset in presets:
        config, _, _ = load(preset, environ={})
        specs, generator = load_arch(config.model.name).param_specs(config), np.random.default_rng(3)
        begin = time.perf_counter()
        made = plan(config, specs, 0)
        seconds = time.perf_counter() - begin
        tensors = {}
        for spec in specs:
            x = torch_ops.from_numpy((generator.standard_normal(spec.shape) * 0.02).astype(np.float32))
            tensors |= quantize(torch_ops, config, [spec], {spec.name: x}, {})
        data = pack(config, specs, tensors)
        bound, expected = made.model_bytes()
        ratio = expected / len(data)
        preset = Path(preset).name
        rows += [
            (f"{preset}: packed Gaussian weights", None, len(data), True),
            (f"{preset}: bound holds", bound, len(data), len(data) <= bound),
            (f"{preset}: expected (for trained weights) over packed", None, round(ratio, 4), True),
            (f"{preset}: planned in seconds", 2.0, round(seconds, 4), seconds < 2),
            (f"{preset}: bytes by category", None, category_bytes(sizes(config, specs, tensors, data)), True),
        ]
    return rows


def speed(layers):
    """Print seconds and peak memory of packing and unpacking the public entry's tensors in this process, as JSON."""
    config, _, _ = load(PRESET, environ={}, overrides=[f"quant.scale_steps={SCALE_STEPS}", "quant.scalar_bits=16"])
    specs, generator, tensors = public_specs(layers, 128), np.random.default_rng(4), {}
    for spec in specs:
        if spec.scheme == "fp16":
            tensors[spec.name] = QuantTensor(generator.standard_normal(spec.shape).astype(np.float16), None)
            continue
        layout, top = group_layout(spec)[:2], grid_top(spec)
        codes = np.clip(np.rint(generator.standard_normal(layout, dtype=np.float32) * (0.8 if top == 1 else 11)), -top, top).astype(np.int8)
        scales = np.exp2(np.rint(generator.standard_normal((layout[0], 1)) * 18) / SCALE_STEPS - 6).astype(np.float16)
        tensors[spec.name] = QuantTensor(codes, scales)
    start = time.perf_counter()
    data = pack(config, specs, tensors)
    middle = time.perf_counter()
    found = unpack(config, specs, data)
    end = time.perf_counter()
    assert all(np.array_equal(found[name].codes, tensors[name].codes) for name in tensors)
    numbers = sum(int(np.prod(spec.shape)) for spec in specs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)
    print(json.dumps({"numbers": numbers, "bytes": len(data), "pack": middle - start, "unpack": end - middle, "peak": peak}))


def speed_rows(layers):
    """Rows of the table for speed and memory, measured in a process of its own with one thread."""
    code = f"from benchmarks.bytes import speed; speed({layers})"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        (f"seconds to pack {found['numbers']:,} numbers", 120, round(found["pack"], 1), found["pack"] <= 120),
        ("seconds to unpack them", 25, round(found["unpack"], 1), found["unpack"] <= 25),
        ("peak memory of that process, bytes", 2_000_000_000, found["peak"], found["peak"] <= 2e9),
    ]


def mode_rows():
    """Bits a symbol of trits whose columns differ, in every mode of the coder: what learning by column is worth."""
    generator = np.random.default_rng(5)
    shares = generator.uniform(0.2, 0.6, (1, 768))
    symbols = np.where(generator.random((1536, 768)) < shares, 1, 2 * generator.integers(0, 2, (1536, 768))).reshape(-1)
    stream = Stream(3, symbols.size, 768)
    return [
        (f"bits a trit where columns differ, mode {mode}", None, round(stream_bits(stream, mode, symbols, 32) / symbols.size, 4), True)
        for mode in range(4)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    layers = 1 if options.quick else 10
    rows, code_bytes = code_rows()
    rows += trit_rows(400_000 if options.quick else 4_000_000) + mode_rows()
    rows += public_entry(layers, 128, code_bytes) + public_entry(layers, 1 << 20, code_bytes)
    rows += speed_rows(layers)
    rows += planner_rows([DEMO] if options.quick else [PRESET, DEMO])
    if options.json:
        print(json.dumps([{"what": w, "bar": b, "measured": m, "holds": bool(h)} for w, b, m, h in rows], indent=1))
    else:
        for what, bar, measured, holds in rows:
            print(f"{'ok  ' if holds else 'MISS'} {what:<64}{'-' if bar is None else bar:>14}  {measured}")
    sys.exit(0 if all(row[3] for row in rows) else 1)


if __name__ == "__main__":
    main()
