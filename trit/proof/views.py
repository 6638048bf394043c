"""What a submission ships, as byte strings to search. Tools only. Input: artifact and specs, or a counted file; output: {name: bytes}.

Nothing here runs the counted file: its literals come from the parsed source, and known compressors and text codes are tried on them.
"""

import ast
import base64
import binascii
import bz2
import lzma
import zlib

import brotli
import numpy as np

from trit.bundle.wrap import expand
from trit.compress.layouts import stream_layouts, write_digits
from trit.compress.pack import read_streams, real_entries, stored_specs, stream_symbols, stream_table, unpack

LITERAL_BYTES = 48
NUMBERS = 24
DECODED_BYTES = 1 << 26
DEPTH = 3
LZMA_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": DECODED_BYTES}]


def add_view(views, name, data):
    """Add bytes under a name unless they are there already; returns whether they were added."""
    new = len(data) > 0 and data not in views.values()
    if new:
        views[name] = data
    return new


def artifact_views(data, cfg, specs):
    """Views of an artifact of the table `specs`: the file, each stream's symbols one and several a byte, each tensor's codes and scales.

    Codes are int8 without padding in row order, values and scales float16 little-endian. PackError where the file is not of these specs.
    """
    data, views = bytes(data), {}
    add_view(views, "artifact", data)
    specs = stored_specs(cfg, specs, data)
    tensors = unpack(cfg, specs, data)
    for number, (stream, symbols) in enumerate(zip(stream_table(cfg, specs), stream_symbols(cfg, specs, tensors), strict=True)):
        add_view(views, f"stream {number}", symbols.astype(np.uint8 if stream.base < 257 else "<u2").tobytes())
        for layout in stream_layouts(stream.base) if stream.base < 257 else ():
            add_view(views, f"stream {number}, layout {layout}", write_digits(symbols.astype(np.uint8), stream.base, layout))
    for number, other in read_streams(cfg, specs, data)[1].items():
        add_view(views, f"stream {number}, as stored", other)
    for spec in specs:
        codes, scales = tensors[spec.name].codes, tensors[spec.name].scales
        if scales is None:
            add_view(views, spec.name, codes.astype("<f2").tobytes())
        else:
            add_view(views, f"{spec.name}, codes", codes[real_entries(spec)].tobytes())
            add_view(views, f"{spec.name}, scales", scales.astype("<f2").tobytes())
    return views


def code_views(source):
    """Views of a counted file (bytes): the file, the source inside its wrapper, its literals, and what these decode to."""
    views, taken, source = {}, {}, bytes(source)
    add_view(views, "counted file", source)
    try:
        expanded = expand(source).encode()
        add_view(views, "expanded source", expanded)
        taken[expanded] = DEPTH
        add_literals(views, taken, "expanded source", expanded, DEPTH)
    except (ValueError, LookupError, AttributeError, TypeError, zlib.error, lzma.LZMAError, brotli.error):
        pass  # not wrapped by trit: what it hides is found through its literals
    add_literals(views, taken, "counted file", source, DEPTH)
    return views


def add_literals(views, taken, name, source, depth):
    """Add the long literals of Python source (bytes) and all its short ones joined; nothing where it is not Python. `taken` {bytes: depth}
    is what was taken apart already, and how deep."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return
    short = []
    for node in nodes:
        found = literal_bytes(node)
        short += found if isinstance(node, ast.Constant) else []
        for data in found:
            if len(data) >= LITERAL_BYTES:
                add_decoded(views, taken, f"{name}, literal in line {node.lineno}", data, depth)
    add_view(views, f"{name}, all literals", b"".join(short))


def literal_bytes(node):
    """[bytes] that a node of a syntax tree writes out: text, bytes, a large number, or a row of numbers below 65536 (uint16)."""
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bytes):
            return [value]
        if isinstance(value, str):
            return [value.encode("latin-1")] if value and max(value) < "\u0100" else [value.encode("utf-8", "surrogatepass")]
        if isinstance(value, int) and value.bit_length() >= 8 * LITERAL_BYTES:
            return [value.to_bytes((value.bit_length() + 7) // 8, order) for order in ("big", "little")]
    if isinstance(node, ast.List | ast.Tuple | ast.Set) and len(node.elts) >= NUMBERS:
        values = [element.value for element in node.elts if isinstance(element, ast.Constant) and type(element.value) is int]
        if len(values) >= NUMBERS and min(values) >= 0 and max(values) < 65536:
            numbers = np.array(values, np.uint16)
            return [numbers.astype("<u2").tobytes(), numbers.astype(np.uint8).tobytes()]
    return []


def add_decoded(views, taken, name, data, depth):
    """Add bytes, and unless they were taken apart as deep as this, what every decoder makes of them and the literals of what turns out to
    be Python. Returns whether they were not."""
    add_view(views, name, data)
    if depth <= taken.get(data, -1):
        return False
    taken[data] = depth
    for label, decode in DECODERS.items() if depth else ():
        try:
            decoded = decode(data)
        except (ValueError, EOFError, OSError, MemoryError, zlib.error, lzma.LZMAError, brotli.error):
            continue
        if decoded and len(decoded) >= LITERAL_BYTES:
            inner = f"{name}, {label}"
            if add_decoded(views, taken, inner, decoded, depth - 1):
                add_literals(views, taken, inner, decoded, depth - 1)
    return True


def inflate(data, bits):
    """Bytes of a deflate stream; bombs stop at DECODED_BYTES."""
    return zlib.decompressobj(bits).decompress(data, DECODED_BYTES)


def brotli_decompress(data):
    """Bytes of a complete brotli stream; ValueError on any other, since nearly all bytes begin like one."""
    decoder = brotli.Decompressor()
    decoded = decoder.process(data, output_buffer_limit=DECODED_BYTES)
    if not decoder.is_finished() and len(decoded) < DECODED_BYTES:
        raise ValueError("not a complete brotli stream")
    return decoded


DECODERS = {
    "zlib": lambda data: inflate(data, 47),
    "deflate": lambda data: inflate(data, -15),
    "lzma": lambda data: lzma.LZMADecompressor(memlimit=4 * DECODED_BYTES).decompress(data, DECODED_BYTES),
    "raw lzma2": lambda data: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA_FILTERS).decompress(data, DECODED_BYTES),
    "bz2": lambda data: bz2.BZ2Decompressor().decompress(data, DECODED_BYTES),
    "brotli": brotli_decompress,
    "base64": lambda data: base64.b64decode(data, validate=True),
    "base85": base64.b85decode,
    "ascii85": base64.a85decode,
    "hexadecimal": binascii.unhexlify,
}
