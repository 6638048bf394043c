"""Other ways to store a stream than the entropy coder: brotli or LZMA over digits laid out as bytes. For compress.coders=all.

They win where a stream repeats itself at a distance, which the coder's tables cannot see.
"""

import lzma

import brotli
import numpy as np

MASK_LAYOUT = 6  # one bit a trit says whether it is kept, one bit a kept trit gives its sign; layouts 1 to 5 are digits a byte
BITS_LAYOUT = 7  # as many bits as the grid needs, high bit first
BY_COLUMN = 128  # the tensor's codes stand column by column: columns often differ in scale more than rows do
STORED = 0
BROTLI = 1
LZMA = 2


class PackError(ValueError):
    """The bytes are not an artifact of this configuration, or the tensors cannot be stored in one."""


def ensure_packable(holds, message):
    """PackError with `message` unless `holds`."""
    if not holds:
        raise PackError(message)


def stream_layouts(base):
    """Ways to write digits below `base` as bytes that are worth trying (measured on Gaussian weights: docs/format.md)."""
    if base == 3:
        return 5, MASK_LAYOUT
    if base < 17:
        return 1, 2
    return (1, BITS_LAYOUT) if base < 128 else (1,)


def layout_size(base, count, layout):
    """Bytes that `count` digits take in a layout; for the mask layout the most they can take."""
    if layout == MASK_LAYOUT:
        return 2 * -(-count // 8)
    return -(-count * base.bit_length() // 8) if layout == BITS_LAYOUT else -(-count // layout)


def write_digits(digits, base, layout):
    """uint8 digits below `base` -> bytes."""
    if layout == MASK_LAYOUT:
        return np.packbits(digits != 1).tobytes() + np.packbits(digits[digits != 1] > 1).tobytes()
    if layout == BITS_LAYOUT:
        return np.packbits(np.unpackbits(digits[:, None], axis=1)[:, 8 - base.bit_length() :]).tobytes()
    digits = np.concatenate([digits, np.zeros(-len(digits) % layout, np.uint8)])
    total = digits[layout - 1 :: layout]
    for place in range(layout - 2, -1, -1):
        total = total * np.uint8(base) + digits[place::layout]
    return total.tobytes()


def read_digits(data, base, count, layout):
    """Inverse of `write_digits`: (count,) uint8. PackError unless writing the result again gives `data`."""
    raw = np.frombuffer(data.ljust(layout_size(base, count, layout), b"\0"), np.uint8)
    if layout == MASK_LAYOUT:
        kept = np.unpackbits(raw[: -(-count // 8)])[:count] > 0
        digits = np.ones(count, np.uint8)
        digits[kept] = 2 * np.unpackbits(raw[-(-count // 8) :])[: kept.sum()]
    elif layout == BITS_LAYOUT:
        width = base.bit_length()
        places = np.unpackbits(raw)[: count * width].reshape(count, width)
        digits = np.packbits(places, axis=1)[:, 0] >> np.uint8(8 - width)
    else:
        digits, rest = np.empty((len(raw), layout), np.uint8), raw.astype(np.uint16)
        for place in range(layout):
            rest, digits[:, place] = np.divmod(rest, base)
        digits = digits.reshape(-1)[:count]
    again = write_digits(digits, base, layout)
    ensure_packable(digits.max() < base and again == data, f"a stream does not hold exactly {count} codes of a grid of {base} values")
    return digits


def compress_stream(stream, symbols):
    """Symbols (count,) below 257, in row order -> (method byte, bytes), the smallest of all choices: row or column order, layouts,
    compressors. A fast setting of the compressor picks order and layout.
    """
    best, base, digits = None, stream.base, symbols.astype(np.uint8)
    orders = [digits] if stream.columns == 1 else [digits, digits.reshape(-1, stream.columns).T.reshape(-1)]
    for order, digits in enumerate(orders):
        for layout in stream_layouts(base):
            raw = write_digits(digits, base, layout)
            for compressor, data in (STORED, raw), (BROTLI, brotli.compress(raw, quality=9, lgwin=24)):
                if not best or len(data) < len(best[1]):
                    best = (order * BY_COLUMN | layout << 4 | compressor, data, raw)
    method, raw = best[0] & 240, best[2]
    thorough = brotli.compress(raw, quality=11, lgwin=24)
    filtered = lzma.compress(raw, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": max(4096, len(raw))}])
    return min(best[:2], (method | BROTLI, thorough), (method | LZMA, filtered), key=lambda choice: len(choice[1]))


def expand_stream(stream, method, data):
    """Inverse of `compress_stream`; decompression stops where the stream outgrows its symbols, so bombs cost no memory."""
    layout, compressor, base, count = method >> 4 & 7, method & 15, stream.base, stream.count
    ensure_packable(
        base < 257 and layout in stream_layouts(base) and compressor <= LZMA and (stream.columns > 1 or method < BY_COLUMN),
        f"mode {method} is unknown for a stream of {count} symbols below {base}",
    )
    limit, complete = layout_size(base, count, layout), True
    try:
        if compressor == BROTLI:
            decoder = brotli.Decompressor()
            data = decoder.process(data, output_buffer_limit=limit + 1)
            complete = decoder.is_finished()
        elif compressor == LZMA:
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": max(4096, limit)}])
            data = decoder.decompress(data, limit + 1)
            complete = decoder.eof and not decoder.unused_data
    except (brotli.error, lzma.LZMAError) as fault:
        raise PackError(f"a compressed stream is damaged: {fault}") from None
    ensure_packable(complete and len(data) <= limit, f"a stream does not end after the at most {limit} bytes that {count} codes need")
    digits = read_digits(data, base, count, layout)
    return digits.reshape(stream.columns, -1).T.reshape(-1) if method >= BY_COLUMN else digits
