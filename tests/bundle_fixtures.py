"""A toy package with every feature that the bundler handles, written into a folder, and settings for it."""

from dataclasses import dataclass

FILES = {
    "toy/__init__.py": "",
    "toy/ops/__init__.py": "",
    "toy/ops/plain_ops.py": '''
"""Array vocabulary on lists."""
import math
from toy.ops.helpers import double

CALLS = {"count": 0}

def sum(x):
    """Total."""
    total = 0.0
    for value in x:
        total += value
    return total

def mean(x, keep: bool = False):
    result = sum(x) / len(x)
    return [result] if keep else result

def abs(x):
    return [max(value, -value) for value in x]

def scale(x, factor):
    CALLS["count"] += 1
    return [value * factor for value in x]

def twice(x):
    import itertools
    return list(itertools.chain(double(x)))

def exp(x):
    return [math.exp(value) for value in x]

def unused_op(x):
    return x
''',
    "toy/ops/helpers.py": "def double(x):\n    return [2 * value for value in x]\n",
    "toy/models/__init__.py": "",
    "toy/models/small.py": '''
from dataclasses import dataclass
from toy.layers import gate, layer_scale, open
from toy.setting import setting

@dataclass(frozen=True)
class ArchConfig:
    """Settings."""
    gain: float = setting(0.5)

def forward(ops, p, cfg, tokens):
    """Doc."""
    x = [float(token) * cfg.arch.gain for token in tokens]
    for index in range(cfg.model.num_layers):
        x = gate(ops, cfg, x, index)
    first, rest = open(x)
    return layer_scale(ops, p, cfg, [first] + rest)

def extra(cfg):
    return "extra", cfg.arch.gain
''',
    "toy/models/other.py": "def forward(ops, p, cfg, tokens):\n    return [0.0 for _ in tokens]\n",
    "toy/setting.py": "def setting(default):\n    return default\n",
    "toy/layers.py": '''
import math
from typing import NamedTuple

EPSILON = 1e-6
NAMES: dict = {"relu": "rectified", "tanh": "hyperbolic"}

class Pair(NamedTuple):
    """Two parts."""
    first: float
    rest: list = []

def open(x):
    return Pair(x[0], x[1:])

def only_in_dead_code(ops, x):
    return ops.unused_op(x)

def gate(ops, cfg, x, index):
    if cfg.model.activation == "relu":
        return [max(value, 0.0) for value in x]
    elif cfg.model.activation in ("tanh", "both"):
        return [math.tanh(value + EPSILON) for value in x]
    elif cfg.model.activation == "dead":
        return only_in_dead_code(ops, x)
    scaled = ops.scale(x, cfg.model.factor if index else 1.0)
    return ops.exp(scaled) if cfg.flags.exp and index < 2 else scaled

def layer_scale(ops, p, cfg, x):
    kind = NAMES.get(cfg.model.activation, "none")
    if cfg.flags.extra and p is not None:
        x = ops.twice(ops.abs(x))
    def inner(values, forward=1.0):
        return [value * p["w"] * forward + cfg.model.factor for value in values]
    if cfg.flags.missing:
        x = cfg.arch.not_there + x
    return inner(x), kind, f"{cfg.model.activation!r}:{cfg.model.factor:.3f}:{len(x)}"
''',
    "toy/train/__init__.py": "",
    "toy/train/plain_backend.py": "from toy.layers import EPSILON\n\ndef device(cfg):\n    return f'lists{EPSILON * 0:g}{cfg.flags.exp}'\n",
    "toy/program.py": '''
import os
import sys
from toy.layers import EPSILON

def total(values):
    return sum(values)

def main(cfg, ops, arch, library):
    """Entry."""
    def forward(tokens):
        return arch.forward(ops, {"w": 1.5}, cfg, tokens)
    x, kind, text = forward([1, 2, -3])
    print(x, kind, text, ops.mean(x), ops.mean(x, keep=True), total(x), EPSILON, sep="|")
    print(library.device(cfg))
    if hasattr(arch, "extra"):
        print(arch.extra(cfg))
    if hasattr(arch, "absent"):
        print(arch.absent(cfg))
    if cfg.flags.exp:
        with open(os.devnull) as file:
            print(len(file.read()), "é▁", sys.argv[1:], __name__)
''',
}


@dataclass(frozen=True)
class ModelSection:
    name: str = "small"
    num_layers: int = 2
    activation: str = "relu"
    factor: float = -0.25
    shape: tuple = (1, 2.5, None)


@dataclass(frozen=True)
class FlagSection:
    exp: bool = False
    extra: bool = False
    missing: bool = False


@dataclass(frozen=True)
class ArchSection:
    gain: float = 0.5


@dataclass(frozen=True)
class ToyConfig:
    model: ModelSection = ModelSection()
    flags: FlagSection = FlagSection()
    arch: ArchSection = ArchSection()


BUILD = {"entry": "toy.program", "library": "plain", "codecs": ("lzma", "zlib")}


def write_package(folder, **changed):
    """Write the toy package below `folder`; keyword `layers_py=text` and the like replace or append files."""
    for name, text in {**FILES, **changed}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def edited(name, old, new):
    """The toy files with one replacement in one of them."""
    assert old in FILES[name], f"{old!r} is not in {name}"
    return {name: FILES[name].replace(old, new, 1)}
