"""The corpus `packagedocs`: docstrings of the pinned packages that `make setup` installs. Output: its documents, split.

Sources are parsed, never imported, and every package must have the version that the requirements files pin, so the text is the same on
every machine. It is made on the user's machine, out of files that lie there under their own licences; it is no part of this repository
and must not be committed to it.

A document is what is left of one module's docstrings when the paragraphs that mostly say again what stands elsewhere are dropped. Modules
are shuffled by a hash of their names, so that any stretch of the text, also the end that training holds out, samples all packages.
"""

import ast
import functools
import hashlib
import inspect
import re
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np

from trit.collector import collector_off
from trit.data.docstrings import module_document

PACKAGES = ("huggingface_hub", "matplotlib", "networkx", "numpy", "scipy", "sympy", "torch")
ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")
# Validation text is of packages that no program imports to score, so that a certificate forbids their files (trit/proof/touched.py):
# the docstrings of PyTorch or numpy lie in the memory of the program that is judged.
VALIDATION_PACKAGES = ("huggingface_hub", "matplotlib")
# Share of their modules that is validation text, by hash of the name: about 36,000 of the demo's tokens; `pydocs` has 40,000. More would cost
# every run of a certificate its time.
VALIDATION_SHARE = 0.08
# Tests and their tools, copies of other packages, compilers' insides with more code than text, and what not every platform has.
SKIPPED_FOLDERS = {"test", "tests", "testing", "_internal", "_vendor", "_vendored", "_inductor", "_dynamo", "distutils"}
# Files that a build writes.
SKIPPED_FILES = {"version.py", "_version.py", "__config__.py", "_distributor_init.py"}
# Functions such as add_docstr and add_newdoc give compiled functions their docstrings.
ADDS_DOCSTRINGS = re.compile(rb"^_?add_\w*doc\w*\(", re.MULTILINE)
SHINGLE_WORDS = 8
MOST_SHARED = 0.5
LEAST_CHARACTERS = 200


@functools.cache
def packagedocs():
    """{"train": tuple of documents, "val": tuple of documents}; ValueError if a package is not there as it is pinned."""
    return clean_split(read_packages(pins(REQUIREMENTS)))


def pins(files):
    """{package: version} of all `PACKAGES`, out of requirements files."""
    text = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
    found = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", text, re.MULTILINE))
    missing = [name for name in PACKAGES if name not in found]
    if missing:
        raise ValueError(f"{', '.join(map(str, files))}: no line NAME==VERSION for {', '.join(missing)}, which packagedocs reads")
    return {name: found[name] for name in PACKAGES}


def read_packages(versions, folders=None):
    """{module: text} of the packages {name: version}, in their order, modules by name; installed here, or in one of `folders`."""
    seen, modules = set(), {}
    with collector_off():
        for package, version in versions.items():
            for name, source in package_sources(package, version, folders):
                modules[name] = all_docstrings(source, name, seen)
    return modules


def package_sources(package, version, folders=None):
    """Yield (module, source bytes) of an installed package by module name; ValueError if it is not there as pinned."""
    found = next(iter(metadata.distributions(name=package, **({"path": folders} if folders else {}))), None)
    # What follows a + says for which device torch was built: the Python sources are the same.
    has = found.version.partition("+")[0] if found else ""
    if has != version or found.files is None:
        fault = "is not installed" if not found else f"is there as version {has}" if has != version else "has no list of its files"
        raise ValueError(
            f"corpus packagedocs: {package} {fault}, but is pinned as {package}=={version}; run make setup, or pip install that"
        )
    sources = {}
    for file in found.files:
        if file.suffix == ".py" and file.parts[0] == package and file.name not in SKIPPED_FILES and not SKIPPED_FOLDERS & set(file.parts):
            sources[".".join(file.with_suffix("").parts).removesuffix(".__init__")] = file.locate()
    for name in sorted(sources):
        yield name, sources[name].read_bytes()


def all_docstrings(source, name, seen):
    """`module_document`, and the texts that a module gives to compiled functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of backslashes in other people's docstrings
        text = module_document(source, name, seen)
        calls = ast.parse(source).body if ADDS_DOCSTRINGS.search(source) else ()
    texts = [text]
    for call in calls:
        if isinstance(call, ast.Expr) and isinstance(call.value, ast.Call):
            strings = [node for node in ast.walk(call.value) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
            strings.sort(key=lambda node: (node.lineno, node.col_offset))
            texts.append(inspect.cleandoc("".join(node.value for node in strings if "\n" in node.value)))
    return "\n\n".join(filter(None, texts))


def clean_split(modules):
    """{"train": documents, "val": documents} of {module: text}, without the paragraphs that repeat others.

    Of a paragraph's runs of eight words (all of them, if it has fewer), case, punctuation and white space aside, fewer than half stand
    in an earlier paragraph, and fewer than half in the other part. Training text comes first, so that what both parts say is trained on.
    """
    digests = {name: hashlib.blake2b(name.encode(), digest_size=8).digest() for name in modules}
    held_out = {
        name
        for name, digest in digests.items()
        if name.partition(".")[0] in VALIDATION_PACKAGES and int.from_bytes(digest, "big") < VALIDATION_SHARE * 2**64
    }
    order = sorted(modules, key=lambda name: (name in held_out, digests[name]))
    paragraphs = [(name, text) for name in order for text in re.split(r"\n\s*\n", modules[name]) if re.search(r"\w", text)]
    keys, owners, counts = shingles([text for _, text in paragraphs])
    held = np.array([name in held_out for name, _ in paragraphs], bool)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    kept = np.bincount(owners, owners[first][inverse] < owners, len(counts)) < MOST_SHARED * counts
    validation = np.isin(keys, keys[(kept & held)[owners]])
    kept &= held | (np.bincount(owners, validation, len(counts)) < MOST_SHARED * counts)
    left = {name: [] for name in order}
    for number in np.flatnonzero(kept):
        name, text = paragraphs[number]
        left[name].append(text)
    documents = {name: text for name, parts in left.items() if len(text := "\n\n".join(parts)) >= LEAST_CHARACTERS}
    return {
        "train": tuple(text for name, text in documents.items() if name not in held_out),
        "val": tuple(text for name, text in documents.items() if name in held_out),
    }


def shingles(paragraphs):
    """(keys, owners, counts): a 64-bit hash of each run of eight words, the number of its paragraph, how many each paragraph has."""
    numbers, stream, lengths = {}, [], []
    for text in paragraphs:
        words = re.findall(r"\w+", text.lower())
        stream += [numbers.setdefault(word, len(numbers) + 1) for word in words] + [0] * (SHINGLE_WORDS - 1)
        lengths.append(len(words))
    stream, lengths = np.array(stream, np.uint64), np.array(lengths)
    keys = np.zeros(len(stream), np.uint64)
    for shift in range(SHINGLE_WORDS):
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + np.append(stream[shift:], np.zeros(shift, np.uint64))
    counts = np.maximum(lengths - SHINGLE_WORDS + 1, 1)
    owners = np.repeat(np.arange(len(counts)), counts)
    begins = np.cumsum(lengths + SHINGLE_WORDS - 1) - (lengths + SHINGLE_WORDS - 1)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts) + begins[owners]
    return keys[places], owners, counts
