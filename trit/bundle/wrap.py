"""The self-extracting file: compressed source inside a latin-1 string literal, and back.

In: source text. Out: bytes of a Python file that runs it as `__main__`; `expand` gets the source back without running anything.
A latin-1 file stores 253 of 256 byte values as they are, so the literal costs about 1.5 % where base85 costs 25 %.
"""

import ast
import lzma
import re
import zlib

from trit.bundle.mixing import expand_mixed

HEAD = b"#coding:l1\n"
QUOTES = (b"'", b'"', b"'''", b'"""')
FULL = {"dict_size": 1 << 20, "mode": lzma.MODE_NORMAL, "nice_len": 273, "mf": lzma.MF_BT4, "depth": 2000}
SOURCE_LINES = 'import linecache as l;l.cache["<string>"]=0,None,s.splitlines(1),""'


def compress(data, codecs=("brotli", "lzma", "zlib")):
    """[(module, payload, text after the payload in the call)] of every way to compress that is worth trying."""
    found = []
    if "zlib" in codecs:
        for memory in (8, 9):
            packer = zlib.compressobj(9, zlib.DEFLATED, -15, memory)
            found.append(("zlib", packer.compress(data) + packer.flush(), ",-15"))
    if "brotli" in codecs:
        import brotli

        modes = (brotli.MODE_GENERIC, brotli.MODE_FONT)
        found += [
            ("brotli", brotli.compress(data, mode=mode, quality=11, lgwin=window), "") for mode in modes for window in (15, 16, 18, 22)
        ]
    if "lzma" in codecs:
        for context_bits in range(5):
            settings = {"lc": context_bits, "lp": 0, "pb": 0, **FULL}
            alone = lzma.compress(data, lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, **settings}])
            raw = lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, **settings}])
            found += [("lzma", alone, ""), ("lzma", raw, ',3,None,[{"id":33}]')]
    return found


def literal_bytes(payload):
    """The shortest latin-1 string literal of a payload."""
    return min((quoted(payload, quote) for quote in QUOTES), key=len)


def quoted(payload, quote):
    """A literal with one kind of quote. Only NUL, CR, backslash, the quote and (in one-line literals) LF need escapes."""
    mark, triple = quote[:1], len(quote) == 3
    out = re.sub(rb"\0(?=[0-7])", rb"\\x00", payload.replace(b"\\", b"\\\\")).replace(b"\0", b"\\0").replace(b"\r", b"\\r")
    if not triple:
        return quote + out.replace(b"\n", b"\\n").replace(mark, b"\\" + mark) + quote
    out = out.replace(quote, mark * 2 + b"\\" + mark)  # three in a row would end the literal, and so would one at its end
    if out.endswith(mark) and not out.endswith(mark * 2 + b"\\" + mark):
        out = out[:-1] + b"\\" + mark
    return quote + out + quote


def wrap(source, codecs=("brotli", "lzma", "zlib"), needs_source=False):
    """The smallest self-extracting file of a source text. `needs_source` gives inspect, and so JIT kernels, the source lines."""
    files = []
    for module, payload, after in compress(source.encode(), codecs):
        call = b'%s.decompress(%s.encode("l1")%s)' % (module.encode(), literal_bytes(payload), after.encode())
        if needs_source:
            files.append(HEAD + b"import %s;s=%s.decode();%s;exec(s)" % (module.encode(), call, SOURCE_LINES.encode()))
        else:
            files.append(HEAD + b"import %s;exec(%s)" % (module.encode(), call))
    return min(files, key=lambda file: (len(file), file))


def expand(wrapped):
    """The source text inside a wrapped file, found by parsing, not by running it. Raises ValueError on any other file."""
    mixed = expand_mixed(wrapped)
    if mixed is not None:
        return mixed
    try:
        tree = ast.parse(wrapped)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the wrapped file is not valid Python: {error}; build it again with bundle()") from None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "decompress"]
    text = calls[0].args[0].func.value if len(calls) == 1 and isinstance(calls[0].args[0], ast.Call) else None
    if type(getattr(text, "value", None)) is not str:
        raise ValueError("this is not a file written by trit.bundle.wrap: it holds no compressed literal; build it with bundle()")
    payload, module = text.value.encode("latin-1"), calls[0].func.value.id
    rest = [ast.literal_eval(argument) for argument in calls[0].args[1:]]
    if module == "brotli":
        import brotli as decoder
    else:
        decoder = {"zlib": zlib, "lzma": lzma}[module]
    return decoder.decompress(payload, *rest).decode()
