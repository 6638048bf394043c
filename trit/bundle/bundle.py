"""One counted file from the package: load, lint, specialise, fold, shake, shorten, wrap.

In: a configuration, the entry and the array library. Out: `Bundle`, the wrapped file with its readable form and its contents.
The same inputs give the same bytes.
"""

import ast
import functools
import hashlib
import lzma
from dataclasses import dataclass, field
from pathlib import Path

from trit.bundle.cache import Memory, fingerprint, sources_sha256
from trit.bundle.dialect import lint
from trit.bundle.emit import minified, readable, strip_symbol
from trit.bundle.messages import number_messages, table_text
from trit.bundle.mixing_encoder import mixed_file
from trit.bundle.modules import load
from trit.bundle.names import walk
from trit.bundle.shake import join, needed_imports, reachable
from trit.bundle.specialise import flatten
from trit.bundle.wrap import wrap
from trit.collector import collector_off
from trit.console import CLOCK_FORMAT, progress

QUICK_CODECS = ("brotli", "lzma", "zlib")
ALL_CODECS = (*QUICK_CODECS, "mixing")  # mixing saves a tenth; its file takes some four seconds longer to start


@dataclass(frozen=True)
class Bundle:
    """A build. `source` is the shortened text that runs, `readable` the same program before shortening (with what the numbers mean that
    stand for error messages in `source`), `wrapped` the counted file.

    `kept` and `dropped` list symbols as `module:name`. `sha256` is that of `wrapped`.
    """

    source: str
    readable: str
    wrapped: bytes
    kept: list
    dropped: list
    sha256: str
    names: list = field(repr=False)

    @property
    def sizes(self):
        """Bytes of the three forms, for logs."""
        return {"readable": len(self.readable.encode()), "source": len(self.source.encode()), "wrapped": len(self.wrapped)}


MEMORY = Memory(Bundle)


def bundle(
    config,
    entry="trit.submission",
    library="torch",
    root=None,
    shake=True,
    codecs=ALL_CODECS,
    needs_source=None,
    arch_module=None,
    remember=True,
):
    """Build the counted file of a configuration. Raises DialectError with `file:line` where the source breaks a rule.

    `library` is "torch" or "mlx"; `root` is the folder that holds the package (this one's by default), `codecs` the compressors the target machine has.
    Without `shake` whole modules are joined, with the reserved names substituted and nothing folded, dropped or shortened.
    With `remember` a file that was built from the very same inputs is read back; a proof that builds agree does without.
    """
    package, root, arch_module = places(config, entry, root, arch_module)
    inputs = config, entry, library, shake, tuple(codecs), needs_source, arch_module
    key = fingerprint(root, package, *inputs)
    found = MEMORY.get(key) if remember else None
    if found is None:
        with collector_off():
            found = built(config, entry, library, root, shake, codecs, needs_source, arch_module)
        MEMORY.put(key, found)
    return found


def places(config, entry, root, arch_module):
    """(name of the package, folder that holds it, module of the architecture), each as given or by default."""
    package = entry.partition(".")[0]
    root = Path(root or Path(__file__).resolve().parents[2]).resolve()
    return package, root, arch_module or f"{package}.models.{config.model.name}"


def built(config, entry, library, root, shake, codecs, needs_source, arch_module):
    """`bundle`, from the sources."""
    with progress("bundling", bar_format=CLOCK_FORMAT):
        flat, kept, tree = flat_tree(config, entry, library, root, shake, arch_module)
        text = source = readable(tree, flat.entry)
    if needs_source is None:
        needs_source = uses_source(tree)
    if shake:
        numbered = ast.parse(text)
        text += table_text(number_messages(numbered))
        numbered.body[-1:] = numbered.body[-1].body  # a counted file is only ever run as the program
        with progress("shortening", bar_format=CLOCK_FORMAT):
            source = minified(numbered)
    wrapped = smallest(source, codecs, needs_source)
    labels = {name: symbol.label for name, symbol in flat.symbols.items()}
    dropped = [labels[name] for name in flat.symbols if name not in set(kept)]
    return Bundle(source, text, wrapped, [labels[name] for name in kept], dropped, hashlib.sha256(wrapped).hexdigest(), kept)


def flat_tree(config, entry, library, root, shake, arch_module):
    """(flat program, names of the kept symbols, module tree) of a configuration."""
    sources = sources_sha256(root / entry.partition(".")[0])
    flat = flatten(linted(entry, library, arch_module, root, sources), config)
    if shake:
        kept = reachable(flat)
    else:
        kept = list(flat.symbols)
        for symbol in flat.symbols.values():
            strip_symbol(symbol)
    imports = needed_imports(flat, kept) if shake else flat.imports.values()
    return flat, kept, join(imports, [flat.symbols[name].node for name in kept])


@functools.lru_cache(8)
def linted(entry, library, arch_module, root, sources):
    """The program of a build, loaded and linted. `sources` is the hash of the package: a changed one is another program."""
    return lint(load(entry, library, arch_module, root))


def shaken_text(config, entry="trit.submission", library="torch", root=None, arch_module=None):
    """The readable form of a configuration's program."""
    _, root, arch_module = places(config, entry, root, arch_module)
    with collector_off():
        flat, _, tree = flat_tree(config, entry, library, root, True, arch_module)
        return readable(tree, flat.entry)


def smallest(text, codecs, needs_source):
    """The smallest counted file of a text. Mixing is slow to unpack, so it has to be smaller than the others."""
    wrapped = wrap(text, [codec for codec in codecs if codec != "mixing"], needs_source)
    mixed = mixed_file(text, needs_source) if "mixing" in codecs else None
    return mixed if mixed and len(mixed) < len(wrapped) else wrapped


def uses_source(tree):
    """True when the file imports triton or reads `torch.compile`: their machinery asks for source lines."""
    for node in walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == "triton" for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "triton":
            return True
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.compile":
            return True
    return False


def byte_report(built):
    """[(module:name, bytes)], dearest first: what the compressed file would lose without each definition; the rest under `(other)`."""
    lines = built.source.encode().splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))
    whole = b"".join(lines)
    labels = dict(zip(built.names, built.kept, strict=True))
    definitions = (ast.FunctionDef, ast.ClassDef)
    readable_names = [node.name for node in ast.parse(built.readable).body if isinstance(node, definitions)]
    short_nodes = [node for node in ast.parse(built.source).body if isinstance(node, definitions)]
    total, rows = _packed(whole), []
    for name, node in zip(readable_names, short_nodes, strict=True):
        first = min([node, *node.decorator_list], key=lambda part: part.lineno)
        start = offsets[first.lineno - 1] + first.col_offset - (first is not node)
        end = offsets[node.end_lineno - 1] + node.end_col_offset
        rows.append((labels[name], total - _packed(whole[:start] + whole[end:])))
    rows.append(("(other)", total - sum(size for _, size in rows)))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _packed(data):
    # A dictionary beyond the data changes no byte and takes most of the time.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": max(4096, len(data))}]
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=filters))
