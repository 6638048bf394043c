"""The artifact container: bit-exact round trips, the worked example of its format page, and a file that must stay readable."""

import hashlib
import lzma
import re
from pathlib import Path

import brotli
import numpy as np
import pytest
from pack_fixtures import EXAMPLE, EXAMPLE_SPECS, SETTINGS, random_specs, random_tensors, same, storage

from trit.compress import layouts
from trit.compress.entropy import Stream
from trit.compress.pack import OTHER_CODER, pack, read_streams, storage_byte, stored_specs, stream_table, unpack
from trit.compress.quantize import QuantTensor
from trit.params import ParamSpec

FORMAT = Path(__file__).resolve().parent.parent / "docs" / "format.md"
GOLDEN = "79b311a0ec3913c0"  # of a file of format version 2: it must stay readable as it is


@pytest.mark.parametrize(
    "cfg", [SETTINGS, storage(8), storage(0, "all"), storage(160, "all", True)], ids=["plain", "steps", "all", "allocated"]
)
def test_round_trip_over_random_specs(cfg):
    generator = np.random.default_rng(1)
    used = set()
    for _ in range(40):
        specs = random_specs(generator)
        tensors = random_tensors(specs, generator, cfg.quant.scale_steps)
        data = pack(cfg, specs, tensors)
        assert stored_specs(cfg, specs, data) == specs and same(tensors, unpack(cfg, specs, data))
        assert data == pack(cfg, specs, {name: tensors[name] for name in reversed(tensors)})
        used |= set(read_streams(cfg, specs, data)[0])
    assert {0, 1} <= used and (max(used) >= OTHER_CODER) == (cfg.compress.coders == "all")


@pytest.mark.parametrize("base", [3, 7, 15, 31, 63, 127, 255, 256])
def test_every_layout_and_compressor_inverts(base):
    generator = np.random.default_rng(base)
    for count in (1, 2, 4, 5, 8, 9, 41, 1000):
        digits = generator.integers(0, base, count).astype(np.uint8)
        for layout in layouts.stream_layouts(base):
            raw = layouts.write_digits(digits, base, layout)
            assert len(raw) <= layouts.layout_size(base, count, layout)
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
            for compressor, data in enumerate((raw, brotli.compress(raw), lzma.compress(raw, lzma.FORMAT_RAW, filters=filters))):
                assert (layouts.expand_stream(Stream(base, count, 1), layout << 4 | compressor, data) == digits).all()


def test_repeats_at_a_distance_go_to_another_coder():
    cfg, generator = storage(8, "all"), np.random.default_rng(2)
    specs = [ParamSpec("e", (600, 7), group="embed", scheme="int", bits=4, group_size=7)]
    codes = np.tile(generator.integers(-7, 8, (100, 7)), (6, 1)).astype(np.int8)
    tensors = {"e": QuantTensor(codes, np.full((600, 1), 0.5, np.float16))}
    data, alone = pack(cfg, specs, tensors), pack(storage(8), specs, tensors)
    assert read_streams(cfg, specs, data)[0][0] >= OTHER_CODER and len(data) < len(alone) / 3
    assert same(tensors, unpack(cfg, specs, data))
    assert layouts.compress_stream(Stream(15, 4200, 7), codes.T.reshape(7, 600).T.reshape(-1) + 7)[0] >= OTHER_CODER


def test_column_order_inverts():
    generator = np.random.default_rng(3)
    spread = np.array([7, 1, 3, 0, 6, 2, 1])  # columns of different spread
    symbols = (generator.integers(-spread, spread + 1, (500, 7)) + 7).reshape(-1)
    method, data = layouts.compress_stream(Stream(15, 3500, 7), symbols)
    assert method >= layouts.BY_COLUMN and (layouts.expand_stream(Stream(15, 3500, 7), method, data) == symbols).all()


def test_storages_travel_with_the_artifact():
    cfg, generator = storage(8, allocate=True), np.random.default_rng(4)
    planned = [
        ParamSpec("a", (8, 16), scheme="fp16", bits=16, group_size=16),
        ParamSpec("b", (8, 16), scheme="ternary", bits=2, group_size=16),
        ParamSpec("c", (8, 16), scheme="int", bits=8, group_size=16),
    ]
    chosen = [
        planned[0]._replace(scheme="int", bits=5, rotate=True),
        planned[1]._replace(scheme="int", bits=2),
        planned[2]._replace(scheme="ternary", bits=2),
    ]
    tensors = random_tensors(chosen, generator, 8)
    data = pack(cfg, chosen, tensors)
    found = stored_specs(cfg, planned, data)
    assert found == chosen and same(tensors, unpack(cfg, found, data))
    assert [storage_byte(spec) for spec in chosen] == [21, 2, 1] and stored_specs(storage(8), planned, data) == planned


def test_worked_example_of_the_format_page():
    block = re.search(r"## Worked example.*?```\n(.*?)```", FORMAT.read_text(), re.DOTALL).group(1)
    written = bytes.fromhex("".join(re.match(r"(?:[0-9a-f]{2} )*[0-9a-f]{2}", line).group(0) for line in block.splitlines()))
    assert pack(storage(8), EXAMPLE_SPECS, EXAMPLE) == written
    assert same(unpack(storage(8), EXAMPLE_SPECS, written), EXAMPLE)


def test_golden_hash_of_format_version_2():
    x = np.arange(1, 60_001, dtype=np.int64)
    mixed = x * 2654435761 % (1 << 32) >> 7
    specs = [
        ParamSpec("w", (200, 300), group="matrix", scheme="ternary", bits=2, group_size=100),
        ParamSpec("e", (500, 8), group="embed", scheme="int", bits=4, group_size=8, init="constant", value=0.5),
        ParamSpec("s", (40,), group="scalar"),
    ]
    codes = (
        (mixed % 9 % 4 % 3 - 1).reshape(600, 100).astype(np.int8),
        (mixed[:4000] % (x[:4000] % 8 + 4) - 5).reshape(500, 8).astype(np.int8),
    )
    scales = np.exp2((mixed[:600, None] % 20 - 40) / 4.0).astype(np.float16)
    tensors = {
        "w": QuantTensor(codes[0], scales),
        "e": QuantTensor(codes[1], scales[:500]),
        "s": QuantTensor((mixed[:40] % 999 / 64).astype(np.float16), None),
    }
    data = pack(storage(8), specs, tensors)
    assert hashlib.sha256(data).hexdigest()[:16] == GOLDEN and same(unpack(storage(8), specs, data), tensors)
    assert [stream.base for stream in stream_table(storage(8), specs)] == [3, 233, 15, 233, 256, 256]
