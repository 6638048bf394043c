"""The artifact container: bit-exact round trips, the worked example of its format page, and a file that must stay readable."""

import hashlib
import lzma
import re
from pathlib import Path

import brotli
import numpy as np
import pytest
from pack_fixtures import EXAMPLE, EXAMPLE_SPECS, artifact, random_specs, random_tensors, same

from trit.compress import pack as packing
from trit.compress.pack import pack, unpack
from trit.params import ParamSpec

FORMAT = Path(__file__).resolve().parent.parent / "docs" / "format.md"
GOLDEN = "02678a24a89afe6d"  # of a file of format version 1: it must stay readable as it is


def test_round_trip_over_random_specs():
    generator = np.random.default_rng(1)
    used = set()
    for _ in range(120):
        specs = random_specs(generator)
        tensors = random_tensors(specs, generator)
        data = pack(specs, tensors)
        assert same(tensors, unpack(specs, data))
        assert data == pack(specs, {name: tensors[name] for name in reversed(tensors)})
        used |= {method for method, _, _ in packing.read_streams(specs, data)}
    assert {method >> 4 & 7 for method in used} >= {1, 2, 5, 6} and {method & 15 for method in used} >= {0, 1}


@pytest.mark.parametrize("base", [3, 7, 15, 31, 63, 127, 255, 256])
def test_every_layout_and_compressor_inverts(base):
    generator = np.random.default_rng(base)
    for count in (1, 2, 4, 5, 8, 9, 41, 1000):
        digits = generator.integers(0, base, count).astype(np.uint8)
        for layout in packing.stream_layouts(base):
            raw = packing.write_digits(digits, base, layout)
            assert len(raw) <= packing.layout_size(base, count, layout)
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
            for compressor, data in enumerate((raw, brotli.compress(raw), lzma.compress(raw, lzma.FORMAT_RAW, filters=filters))):
                assert (packing.expand_stream(layout << 4 | compressor, data, base, count) == digits).all()


def test_column_order_is_used_and_inverts():
    generator = np.random.default_rng(2)
    specs = [
        ParamSpec("e", (500, 7), group="embed", scheme="int", bits=4, group_size=7),
        ParamSpec("f", (90, 11), "normal", 0, "embed", "int", 4, 4),
    ]
    tensors = random_tensors(specs, generator)
    spread = np.array([7, 1, 3, 0, 6, 2, 1])  # columns of different spread
    tensors["e"].codes[:] = generator.integers(-spread, spread + 1, (500, 7))
    data = pack(specs, tensors)
    assert packing.read_streams(specs, data)[0][0] >= packing.BY_COLUMN
    assert same(tensors, unpack(specs, data))


def test_worked_example_of_the_format_page():
    block = re.search(r"## Worked example.*?```\n(.*?)```", FORMAT.read_text(), re.DOTALL).group(1)
    written = bytes.fromhex("".join(re.match(r"(?:[0-9a-f]{2} )*[0-9a-f]{2}", line).group(0) for line in block.splitlines()))
    assert pack(EXAMPLE_SPECS, EXAMPLE) == written
    assert same(unpack(EXAMPLE_SPECS, written), EXAMPLE)


def test_golden_hash_of_format_version_1():
    # Hand-made streams of all compressors and layouts, so that the hash does not depend on the compressor's version.
    specs = [*EXAMPLE_SPECS, ParamSpec("i", (2, 3), group="embed", scheme="int", bits=6, group_size=6)]
    brotli_pair = bytes.fromhex("8b00803c3c03")  # two stored bytes 3c 3c
    streams = [(0xD0, b"\xc8\x02"), (0x10, b"84"), (0x10, b"\0\0"), (0x11, brotli_pair), (0x10, b"\0\0")]
    streams += [(0xF0, bytes.fromhex("01f7bcf5c0")), (0x12, bytes.fromhex("010000 34 00")), (0x10, b"\1")]
    data = artifact(specs, streams)
    assert hashlib.sha256(data).hexdigest()[:16] == GOLDEN
    tensors = unpack(specs, data)
    assert same({"w": EXAMPLE["w"]}, {"w": tensors["w"]})
    assert tensors["b"].codes.tolist() == [1.0, 1.0]
    assert tensors["i"].codes.tolist() == [[-31, -1, 30, 0, 29, -3]] and tensors["i"].scales.view(np.uint16).tolist() == [[0x3401]]
