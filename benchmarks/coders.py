"""Coders side by side on the streams of a trained run: python -m benchmarks.coders --run RUN (pip install constriction for its column)

Bytes of every kind of stream under: the order-0 entropy of each tensor; this project's adaptive coder; constriction's range coder with
one exact table a tensor (three bytes a symbol of table counted for it); the smallest of brotli and LZMA over all layouts. Then seconds to
code and decode four million independent trits.
"""

import argparse
import time

import numpy as np

from trit.compress.entropy import Stream, best_mode, decode_streams, encode_streams, lane_count
from trit.compress.layouts import compress_stream
from trit.compress.pack import stream_symbols, stream_table
from trit.compress.plan import entropy
from trit.compress.quantize import quantize
from trit.config_load import with_overrides
from trit.models import load_arch
from trit.ops import torch_ops
from trit.train.checkpoint import load_checkpoint, trained_arrays

try:
    import constriction
except ImportError:
    constriction = None


def table_of(symbols, base):
    """A constriction model with the shares of the symbols, none of them zero."""
    counts = np.bincount(symbols, minlength=base) + 0.01
    return constriction.stream.model.Categorical((counts / counts.sum()).astype(np.float32), perfect=False)


def library_bytes(symbols, base):
    """Bytes of a stream under constriction, its table with it."""
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(symbols.astype(np.int32), table_of(symbols, base))
    return 4 * len(coder.get_compressed()) + 3 * len(np.unique(symbols))


def kind(spec_name, scheme):
    """Row of the table that a tensor counts in."""
    return spec_name if spec_name in ("embed", "engram.table") else "ternary matrices" if scheme == "ternary" else "gains, scales, biases"


def stream_rows(run, overrides):
    """{kind: [numbers, order-0, ours, library, brotli and LZMA]} in bytes."""
    config, state, *_ = load_checkpoint(f"{run}/checkpoint.npz")
    config = with_overrides(config, overrides)
    specs, arrays = load_arch(config.model.name).param_specs(config), trained_arrays(state)
    tensors = quantize(torch_ops, config, specs, {name: torch_ops.from_numpy(array) for name, array in arrays.items()}, {})
    streams, symbols = stream_table(config, specs), stream_symbols(config, specs, tensors)
    lanes, rows = lane_count(streams), {}
    names = [kind(spec.name, spec.scheme) for spec in specs]
    names = [name for pair in zip(names, ["scales"] * len(names), strict=True) for name in pair]
    for name, stream, part in zip(names, streams, symbols, strict=True):
        row = rows.setdefault(name, [0, 0.0, 0.0, 0.0, 0.0])
        order_0 = stream.count * entropy(np.bincount(part)) / 8
        library = library_bytes(part, stream.base) if constriction else 0
        found = (stream.count, order_0, best_mode(stream, part, lanes)[0] / 8, library, len(compress_stream(stream, part)[1]))
        rows[name] = [a + b for a, b in zip(row, found, strict=True)]
    return rows


def speeds():
    """[(coder, bytes over entropy, seconds to code, seconds to decode)] for four million trits."""
    generator = np.random.default_rng(0)
    symbols = np.where(generator.random(4_000_000) < 0.369, 1, 2 * generator.integers(0, 2, 4_000_000))
    stream, ideal, rows = Stream(3, len(symbols), 768), len(symbols) * entropy(np.bincount(symbols)) / 8, []
    start = time.perf_counter()
    modes, _, data = encode_streams([stream], [symbols], {})
    middle = time.perf_counter()
    decode_streams([stream], modes, data)
    rows.append(("ours, modes tried included", len(data) / ideal, middle - start, time.perf_counter() - middle))
    if constriction:
        start = time.perf_counter()
        coder, model = constriction.stream.queue.RangeEncoder(), table_of(symbols, 3)
        coder.encode(symbols.astype(np.int32), model)
        words = coder.get_compressed()
        middle = time.perf_counter()
        constriction.stream.queue.RangeDecoder(words).decode(model, len(symbols))
        rows.append(("constriction", 4 * len(words) / ideal, middle - start, time.perf_counter() - middle))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("overrides", nargs="*", default=["quant.scale_steps=8", "quant.scalar_bits=6"])
    options = parser.parse_args()
    rows = stream_rows(options.run, options.overrides)
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(
        "| streams | numbers | order-0 entropy | adaptive coder | constriction, a table a tensor | brotli or LZMA |\n|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{round(value):,}" for value in row) + " |")
    print("\n| four million trits | bytes over entropy | seconds to code | to decode |\n|---|---|---|---|")
    for name, ratio, code, decode in speeds():
        print(f"| {name} | {ratio:.5f} | {code:.2f} | {decode:.2f} |")


if __name__ == "__main__":
    main()
