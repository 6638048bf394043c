"""Every file that is not exactly right is refused with a PackError that says why: damage, hostile streams, bombs, wrong tensors."""

import lzma
import time
import tracemalloc

import brotli
import numpy as np
import pytest
from pack_fixtures import EXAMPLE, EXAMPLE_SPECS, artifact, refusal, same, sealed, small_artifact

from trit.compress import pack as packing
from trit.compress.pack import PackError, pack, unpack
from trit.compress.quantize import SMALLEST_SCALE, QuantTensor


def test_every_truncation_extension_and_flip_is_refused():
    specs, _, data = small_artifact()
    assert len({method & 15 for method, _, _ in packing.read_streams(specs, data)}) > 1
    start = time.time()
    for end in range(len(data)):
        refusal(specs, data[:end])
    for tail in (b"\0", b"TRIT", data):
        assert "announces" in refusal(specs, data + tail)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            refusal(specs, bytes(flipped))
    assert time.time() - start < 10


def test_resealed_damage_never_raises_anything_else():
    specs, _, data = small_artifact()
    generator = np.random.default_rng(6)
    for _ in range(3000):
        damaged = bytearray(data)
        for place in generator.integers(21, len(data), generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        try:
            tensors = unpack(specs, sealed(bytes(damaged)))
        except PackError:
            continue
        for spec in specs:
            packing.check_tensor(spec, tensors[spec.name])  # what is accepted is at least storable


def test_each_fault_has_its_sentence():
    specs, _, data = small_artifact()
    assert "not an artifact" in refusal(specs, b"") and "not an artifact" in refusal(specs, b"PK\3\4" + data[4:])
    assert "version [2] is not the known version 1" in refusal(specs, data[:4] + b"\2" + data[5:])
    assert "cut off: 40 bytes" in refusal(specs, data[:40])
    assert f"{len(data) - 1} bytes where its header announces {len(data)}" in refusal(specs, data[:-1])
    assert "checksum" in refusal(specs, data[:-1] + bytes([data[-1] ^ 1]))
    assert "damaged" in refusal(specs, data[:-1] + bytes([data[-1] ^ 1]))
    for change in ({"name": "v"}, {"shape": (10, 50)}, {"group_size": 32}, {"scheme": "int"}, {"bits": 3}, {"group": "engram"}):
        other = [specs[0]._replace(**change), *specs[1:]]
        if len(packing.stream_table(other)) == len(packing.stream_table(specs)):
            assert "another configuration" in refusal(other, data)
        else:
            refusal(other, data)
    huge = data[:22] + b"\xff\xff\xff\xff" + data[26:]
    assert "announces" in refusal(specs, sealed(huge))
    assert "method byte 255 is unknown" in refusal(specs, sealed(data[:21] + b"\xff" + data[22:]))


EXAMPLE_STREAMS = [(0x50, b"\xc8\x02"), (0x10, b"84"), (0x10, b"\0\0"), (0x10, b"\x3c\xc0"), (0x10, b"\0\0")]


@pytest.mark.parametrize(
    "index, method, stream, text",
    [
        (0, 0x50, b"\xf3\x02", "exactly 6 codes of a grid of 3"),  # 243 is five trits and a carry
        (0, 0x50, b"\xc8\x05", "exactly 6 codes"),  # padding digits filled
        (0, 0x50, b"\xc8", "exactly 6 codes"),
        (0, 0x50, b"\xc8\x02\x00", "does not end after the at most 2 bytes"),
        (0, 0x60, b"\xcc\xb1", "exactly 6 codes"),  # a sign bit too many
        (0, 0x60, b"\xcd\xb0", "exactly 6 codes"),  # a mask bit too many
        (0, 0x10, b"\2\0\1\1\2\2", "method byte 16 is unknown"),
        (0, 0x53, b"\xc8\x02", "method byte 83 is unknown"),
        (1, 0x90, b"84", "method byte 144 is unknown"),  # halves have no column order
        (0, 0x51, b"\xff\xff", "compressed stream is damaged"),
        (0, 0x52, b"\xc8\x02", "compressed stream is damaged"),
        (0, 0x51, b"", "does not end"),
        (0, 0x52, b"", "does not end"),
        (0, 0x51, brotli.compress(b"\xc8\x02")[:-1], "does not end"),
        (0, 0x51, brotli.compress(b"\xc8\x02") + b"\0", "compressed stream is damaged"),
        (1, 0x10, b"\x7c4", "w: a scale is not a finite number of at least 6.1e-05"),  # infinity
        (1, 0x10, b"\x7e4", "w: a scale"),  # NaN
        (1, 0x10, b"\xb44", "w: a scale"),  # negative
        (1, 0x10, b"\x004", "w: a scale"),  # zero
        (1, 0x10, b"\x034", "w: a scale"),  # below the smallest normal number
        (3, 0x10, b"\x7c\x3c", "b: a value is not finite"),
        (3, 0x10, b"\xfe\x3c", "b: a value is not finite"),
    ],
)
def test_hostile_streams_with_a_right_checksum(index, method, stream, text):
    streams = list(EXAMPLE_STREAMS)
    assert same(unpack(EXAMPLE_SPECS, artifact(EXAMPLE_SPECS, streams)), EXAMPLE)
    streams[index] = (method, stream)
    assert text in refusal(EXAMPLE_SPECS, artifact(EXAMPLE_SPECS, streams))


@pytest.mark.parametrize("compressor", [1, 2])
def test_bombs_are_refused_without_memory(compressor):
    zeros = bytes(50_000_000)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    bomb = brotli.compress(zeros, quality=5) if compressor == 1 else lzma.compress(zeros, lzma.FORMAT_RAW, filters=filters)
    assert len(bomb) < 10_000
    del zeros
    streams = [(0x50 | compressor, bomb), *EXAMPLE_STREAMS[1:]]
    tracemalloc.start()
    start = time.time()
    text = refusal(EXAMPLE_SPECS, artifact(EXAMPLE_SPECS, streams))
    assert "does not end after the at most 2 bytes" in text and time.time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_pack_refuses_what_it_could_not_give_back():
    def refused(name, codes, scales, specs=EXAMPLE_SPECS):
        with pytest.raises(PackError) as caught:
            pack(specs, {**EXAMPLE, name: QuantTensor(codes, scales)})
        return str(caught.value)

    codes, scales = EXAMPLE["w"]
    assert "outside the grid from -1 to 1" in refused("w", codes * 2, scales)
    assert "padding position" in refused("w", np.ones((2, 4), np.int8), scales)
    assert "codes are int64 of shape (2, 4), not int8" in refused("w", codes.astype(np.int64), scales)
    assert "not int8 of shape (2, 4)" in refused("w", codes[:1], scales)
    assert "scales are not float16 of shape (2, 1)" in refused("w", codes, scales.astype(np.float32))
    assert "scales are not float16" in refused("w", codes, None)
    for bad in (0, -1, np.inf, np.nan, SMALLEST_SCALE / 2):
        assert "a scale is not a finite number" in refused("w", codes, np.array([[1], [bad]], np.float16))
    assert "b: a value is not finite" in refused("b", np.array([1, np.inf], np.float16), None)
    assert "differ in extra" in refused("extra", codes, scales)
    with pytest.raises(PackError, match="differ in b"):
        pack(EXAMPLE_SPECS, {"w": EXAMPLE["w"]})
