"""What the speed benchmarks share and what needs no array library: shapes, FLOP counts, the roofline of a step, tables.

**FLOP of a token** in training, as model FLOP utilisation (MFU) counts them: 6 for every matrix weight that the token is multiplied by
(2 forward, 4 backward; the tied embedding counts once, as the head), and for causal attention 12 * L * T * C / 2 over L layers, windows
of T tokens and C channels. Look-ups, norms, rounding and the optimiser count nothing.
"""

import json
import math
from typing import NamedTuple

from trit.config_load import load
from trit.models import load_arch

# One H100 SXM, NVIDIA's data sheet: dense tensor-core FLOP/s by type, bytes/s of HBM3, of NVLink 4 one way and of PCIe 5 x16 one way.
H100 = {"bfloat16": 989e12, "float8": 1979e12, "float32": 494e12, "memory": 3.35e12, "link": 450e9, "host": 64e9}

FREE = [
    "track.track=non_record_16mb",
    "train.max_wallclock_seconds=0",
    "compress.predict_every=0",
    "compress.calibration_evals=0",
    "compress.calibration_tokens=0",
]
# name: layers, width, heads, key heads, MLP multiple, vocabulary, embedding width
SHAPES = {
    # The contest's baseline scaled down: heads of 18 channels, all of them rotated.
    "contest": (3, 72, 4, 2, 2, 1024, 72),
    "tiny": (2, 64, 4, 2, 2, 256, 32),
    "1m": (5, 128, 4, 2, 4, 1024, 128),
    "5m": (6, 256, 4, 2, 4, 1024, 256),
    "23m": (7, 512, 8, 4, 4, 8192, 256),
    # The public ternary entry, but for its embedding of 8192 x 254: groups of 128 need 256, which costs us 1 % more products.
    "67m": (10, 768, 8, 4, 4, 8192, 256),
    "120m": (10, 1024, 8, 4, 4, 8192, 512),
}
LENGTHS = (512, 1024, 2048, 4096, 8192)


def shape_settings(name, length, tokens):
    """`key=value` strings of one row of `SHAPES` with windows of `length` and `tokens` a step over all ranks."""
    layers, width, heads, kv_heads, multiple, vocabulary, embedding = SHAPES[name]
    return FREE + [
        f"model.num_layers={layers}",
        f"model.model_dim={width}",
        f"model.num_heads={heads}",
        f"model.num_kv_heads={kv_heads}",
        f"model.mlp_mult={multiple}",
        f"model.vocab_size={vocabulary}",
        f"model.embed_dim={embedding}",
        f"model.partial_rope_dims={min(width // heads, 18 if name == 'contest' else 16)}",
        f"model.yarn_max_len={max(length, 256)}",
        f"quant.bitnet_group_size={max(n for n in range(1, 129) if math.gcd(width, embedding) % n == 0)}",
        "quant.embed_bits=8",
        "train.muon_backend_steps=3",
        f"train.train_seq_len={length}",
        f"train.train_batch_tokens={tokens}",
    ]


def shape_environment(name, length, tokens, steps, folder):
    """The contest's environment variables for the same row, tokens to read in `folder`, and `steps` steps without a clock."""
    layers, width, heads, kv_heads, multiple, vocabulary, _ = SHAPES[name]
    return {
        "DATA_PATH": folder,
        "NUM_LAYERS": layers,
        "MODEL_DIM": width,
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": kv_heads,
        "MLP_MULT": multiple,
        "VOCAB_SIZE": vocabulary,
        "TRAIN_SEQ_LEN": length,
        "TRAIN_BATCH_TOKENS": tokens,
        "ITERATIONS": steps,
        "MAX_WALLCLOCK_SECONDS": 0,
    }


def build(settings, world=1):
    """(Config, architecture module, its parameter table) of `key=value` strings."""
    config, _, _ = load(environ={}, overrides=settings, world_size=world)
    arch = load_arch(config.model.name)
    return config, arch, arch.param_specs(config)


def products(specs):
    """[(name, rows, columns)] of the matrices that every token is multiplied by; the tied embedding as the head."""
    return [(spec.name, *spec.shape) for spec in specs if spec.group in ("matrix", "embed") and len(spec.shape) == 2]


def flops_per_token(config, specs):
    """Training FLOP of a token: the module's formula."""
    matrices = sum(rows * columns for _, rows, columns in products(specs))
    return 6 * matrices + 12 * config.model.num_layers * config.train.train_seq_len * config.model.model_dim // 2


class Work(NamedTuple):
    """One kind of work in a step, on one GPU: FLOP, bytes through memory (or over a link), milliseconds if nothing else limits it."""

    phase: str
    name: str
    flop: float
    bytes: float
    ms: float


def work(phase, name, flop, moved, rate, bandwidth):
    """`Work` whose time is the larger of arithmetic and transfer."""
    return Work(phase, name, flop, moved, 1000 * max(flop / rate, moved / bandwidth))


def newton_schulz(rows, columns, steps):
    """(FLOP, elements moved) of orthogonalising one matrix: three products an iteration, x x^T, its square, and their sum times x."""
    short, long = sorted((rows, columns))
    flop = steps * (4 * short * short * long + 2 * short**3)
    return flop, steps * (3 * short * long + 5 * short * short)


def block_widths(config):
    """Elements of activations that one layer's elementwise kernels move for a token going forward, if every chain between two products
    is one kernel that reads its inputs and writes its outputs once:
    skip, mix and norm 5 widths, residual and norm 4, output norm 2; norm, rotation and value mix of heads; squared activation and norm."""
    width = config.model.model_dim
    keys = width // config.model.num_heads * config.model.num_kv_heads
    heads = 2 * (width + keys) + (3 * keys if config.model.value_residual else 0)
    return 11 * width + heads + 2 * config.model.mlp_mult * width


def roofline(config, specs, world=1, machine=H100, product_type=None):
    """[Work] of one optimiser step on one of `world` GPUs: what no implementation with these kernels can beat on `machine`.

    Activations and the weights as the forward sees them have train.compute_dtype, gradients, moments and parameters 4 bytes. Backward
    elementwise kernels move twice what forward ones do (the saved value and the gradient in, the gradient out). Attention keeps its
    scores on the chip and computes them again going back (5 half products for 2). Logits are written and read once in each direction.
    """
    kind = product_type or config.train.compute_dtype
    rate, bandwidth, size = machine[kind], machine["memory"], 2 if config.train.compute_dtype == "bfloat16" else 4
    seen = 1 if kind == "float8" else size  # bytes of an operand of a product
    tokens = config.train.train_batch_tokens // world
    layers, width, length = config.model.num_layers, config.model.model_dim, config.train.train_seq_len
    keys = width // config.model.num_heads * config.model.num_kv_heads
    total = sum(math.prod(spec.shape) for spec in specs)
    rows = [
        work("data", "tokens to the device", 0, 8 * tokens, rate, machine["host"]),
        work("forward", "rounding of the weights", 0, total * (4 + size), rate, bandwidth),
    ]
    forward, backward, muon, muon_flop = 0.0, 0.0, 0, 0
    counted = products(specs)
    for _, outputs, inputs in counted:
        flop = 2 * tokens * outputs * inputs
        moved = seen * (outputs * inputs + tokens * inputs) + size * tokens * outputs
        forward += work("", "", flop, moved, rate, bandwidth).ms
        # Backward: the gradient of the inputs, then that of the weights, in float32.
        twice = (flop, moved), (flop, tokens * (seen * (outputs + inputs)) + 4 * outputs * inputs)
        backward += sum(work("", "", *one, rate, bandwidth).ms for one in twice)
    weights = sum(outputs * inputs for _, outputs, inputs in counted)
    sides = sum(outputs + inputs for _, outputs, inputs in counted)
    rows.append(Work("forward", "matrix products", 2.0 * tokens * weights, size * (weights + tokens * sides), forward))
    half = 2 * tokens * length * width  # two products of T x T scores, half of them masked
    rows.append(
        work("forward", "attention", layers * half, layers * tokens * size * (2 * width + 2 * keys), machine["bfloat16"], bandwidth)
    )
    elements = layers * tokens * block_widths(config)
    rows.append(work("forward", "elementwise", 0, size * elements, rate, bandwidth))
    logits = size * tokens * config.model.vocab_size
    rows.append(work("forward", "cross-entropy", 0, logits, rate, bandwidth))
    rows.append(Work("backward", "matrix products", 4.0 * tokens * weights, 2.0 * size * (weights + tokens * sides), backward))
    moved = layers * tokens * size * (4 * width + 4 * keys)
    rows.append(work("backward", "attention", layers * half * 5 // 2, moved, machine["bfloat16"], bandwidth))
    rows.append(work("backward", "elementwise", 0, 2 * size * elements, rate, bandwidth))
    rows.append(work("backward", "cross-entropy", 0, 2 * logits, rate, bandwidth))
    if config.engram.engram_buckets:
        read = config.engram.engram_heads * config.engram.engram_orders * config.engram.engram_row_dim * tokens
        rows.append(work("forward", "engram rows", 0, 2 * size * read, rate, bandwidth))
        rows.append(work("backward", "engram rows", 0, (size + 8) * read, rate, bandwidth))
    for spec in specs:
        if spec.group == "matrix":
            flop, moved = newton_schulz(*spec.shape, config.train.muon_backend_steps)
            muon, muon_flop = muon + moved, muon_flop + flop
    held = sum(math.prod(spec.shape) for spec in specs if spec.group == "matrix")
    rows.append(work("optimiser", "Newton-Schulz", muon_flop, 2 * muon, machine["bfloat16"], bandwidth))
    # Read gradient, moments and parameter, write moments and parameter: 20 bytes a weight with one moment, 28 with two.
    average = 12 * total if config.train.ema_decay else 0
    rows.append(work("optimiser", "moments and parameters", 0, 20 * held + 28 * (total - held) + average, rate, bandwidth))
    if world > 1:
        rows.append(work("communication", "gradients", 0, 4 * total * 2 * (world - 1) / world, rate, machine["link"]))
    return rows


def roofline_table(rows, tokens, flop_token, peak):
    """Text: every row, the sum of each phase and of all, and the MFU at which that sum would run."""
    lines = [f"{'phase':<15}{'work':<26}{'GFLOP':>12}{'MB':>12}{'ms':>9}"]
    lines += [f"{r.phase:<15}{r.name:<26}{r.flop / 1e9:12.1f}{r.bytes / 1e6:12.1f}{r.ms:9.3f}" for r in rows]
    phases = dict.fromkeys(row.phase for row in rows)
    lines += [f"{phase:<15}{'together':<26}{'':24}{sum(r.ms for r in rows if r.phase == phase):9.3f}" for phase in phases]
    total = sum(row.ms for row in rows)
    mfu = flop_token * tokens / (total / 1000) / peak
    lines.append(f"{'step':<41}{'':24}{total:9.3f}  {tokens / total * 1000:,.0f} tokens/s, MFU {mfu:.1%} of {peak / 1e12:.0f} TFLOP/s")
    return "\n".join(lines)


def table(rows, columns):
    """Markdown of dicts: `columns` maps a key to (heading, format)."""
    lines = ["| " + " | ".join(heading for heading, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append(
            "| " + " | ".join(format(row[key], form) if row.get(key) is not None else "-" for key, (_, form) in columns.items()) + " |"
        )
    return "\n".join(lines)


def write_json(path, results):
    """One JSON document, or nothing where no path is given."""
    if path:
        with open(path, "w") as file:
            file.write(json.dumps(results, indent=1) + "\n")
