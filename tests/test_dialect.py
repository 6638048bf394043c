"""The shippable modules obey the dialect, and every breach is refused with file, line and advice."""

from pathlib import Path

import pytest
from bundle_fixtures import BUILD, ToyConfig, edited, write_package

from trit.bundle.bundle import bundle
from trit.bundle.dialect import DialectError, lint, lint_package, load
from trit.library import LIBRARIES

ROOT = Path(__file__).resolve().parents[1]


def test_package_obeys_the_dialect():
    assert lint_package(ROOT, libraries=LIBRARIES)


def test_toy_package_obeys_the_dialect(tmp_path):
    assert lint_package(write_package(tmp_path), "toy.program", ["plain"]) == ["other", "small"]


PROGRAM, LAYERS, MODEL, OPERATIONS = "toy/program.py", "toy/layers.py", "toy/models/small.py", "toy/ops/plain_ops.py"
BREACHES = {
    "alias": (PROGRAM, "    x, kind", "    c = cfg\n    x, kind", "stored"),
    "section": (PROGRAM, "    x, kind", "    c = cfg.model\n    x, kind", "section"),
    "container": (PROGRAM, "    x, kind", "    c = [cfg]\n    x, kind", "stored"),
    "returned": (MODEL, 'return "extra", cfg.arch.gain', "return cfg", "returned"),
    "splatted": (PROGRAM, "print(arch.extra(cfg))", "print(*cfg)", "splatted"),
    "keyword": (PROGRAM, "arch.extra(cfg)", "arch.extra(cfg=cfg)", "must pass `cfg`"),
    "wrong place": (PROGRAM, '{"w": 1.5}, cfg, tokens', 'cfg, {"w": 1.5}, tokens', "must pass `cfg`"),
    "forgotten": (PROGRAM, "arch.extra(cfg)", "arch.extra()", "must pass `cfg`"),
    "star before": (PROGRAM, "arch.extra(cfg)", "arch.extra(*[], cfg)", "must pass `cfg`"),
    "splat before": (PROGRAM, '{"w": 1.5}, cfg, tokens', '*[{"w": 1.5}], cfg, tokens', "must pass `cfg`"),
    "other name": (LAYERS, "dead_code(ops, x):\n    return ops.unused_op(x)", "dead_code(o, x):\n    return x", "another name"),
    "foreign callee": (PROGRAM, "print(arch.extra(cfg))", "print(cfg)", "not a top-level function"),
    "getattr": (PROGRAM, "print(arch.extra(cfg))", 'print(getattr(cfg, "model"))', "getattr"),
    "hasattr of settings": (PROGRAM, 'hasattr(arch, "extra")', 'hasattr(cfg, "extra")', "hasattr"),
    "value": (PROGRAM, "    x, kind", "    f = arch.forward\n    x, kind", "used as a value"),
    "rebinding": (PROGRAM, "    x, kind", "    cfg = 3\n    x, kind", "assigned"),
    "loop target": (PROGRAM, "    x, kind", "    for ops in []:\n        pass\n    x, kind", "assigned"),
    "handler": (PROGRAM, "    x, kind", "    try:\n        pass\n    except OSError as cfg:\n        pass\n    x, kind", "bound"),
    "inner function": (PROGRAM, "    def forward(tokens)", "    def cfg():\n        pass\n    def forward(tokens)", "bound"),
    "inner parameter": (PROGRAM, "def forward(tokens)", "def forward(tokens, cfg=1)", "parameter"),
    "lambda parameter": (PROGRAM, "    x, kind", "    f = lambda ops: 1\n    x, kind", "parameter"),
    "not a parameter": (PROGRAM, "return sum(values)", "return ops.sum(values)", "not a parameter"),
    "default": (MODEL, "def extra(cfg)", "def extra(cfg=None)", "default"),
    "store": (PROGRAM, "    x, kind", "    cfg.model.factor = 3\n    x, kind", "read-only"),
    "class": (PROGRAM, "def total", "class Bad:\n    x = cfg.model.factor\n\ndef total", "touches"),
    "unknown op": (PROGRAM, "ops.mean(x)", "ops.median(x)", "ops.median"),
    "unknown library function": (PROGRAM, "library.device(cfg)", "library.speed(cfg)", "library.speed"),
    "library function as a value": (PROGRAM, "    x, kind", "    f = library.device\n    x, kind", "used as a value"),
    "library import": (PROGRAM, "from toy.layers", "from toy.train.plain_backend import device\nfrom toy.layers", "`library`"),
    "unknown setting": (PROGRAM, "cfg.flags.exp", "cfg.flags.expo", "cfg.flags.expo"),
    "unknown model function": (PROGRAM, 'if hasattr(arch, "absent")', "if total([])", "arch.absent"),
    "ops with settings": (OPERATIONS, "def exp(x)", "def exp(cfg, x)", "reserved"),
    "star import": (PROGRAM, "import EPSILON", "import *", "star"),
    "import alias": (PROGRAM, "import EPSILON", "import EPSILON as E", "alias"),
    "module import": (PROGRAM, "import sys", "import sys\nimport toy.layers", "by name or alias"),
    "relative": (PROGRAM, "from toy.layers", "from .layers", "relative"),
    "late import": (PROGRAM, "    x, kind", "    from toy.layers import Pair\n    x, kind", "move it to the top"),
    "late external import": (PROGRAM, "    x, kind", "    import math\n    x, kind", "only ops modules"),
    "conditional import": (PROGRAM, "import sys", "try:\n    import sys\nexcept ImportError:\n    pass", "move it to the top"),
    "model import": (PROGRAM, "from toy.layers", "from toy.models.other import forward\nfrom toy.layers", "model"),
    "missing module": (PROGRAM, "from toy.layers", "from toy.nowhere import x\nfrom toy.layers", "no module"),
    "missing symbol": (PROGRAM, "import EPSILON", "import EPSILON, nothing", "not defined"),
    "re-export": (PROGRAM, "import EPSILON", "import EPSILON, math", "not defined"),
    "circle": (LAYERS, "import math\n", "import math\nfrom toy.program import total\n", "circle"),
    "forgotten import": (PROGRAM, "import os\n", "", "`os` is not defined"),
    "borrowed name": (PROGRAM, "return sum(values)", "return gate(values)", "`gate` is not defined"),
    "duplicate": (PROGRAM, "def total", "def gate():\n    pass\n\ndef total", "also defined"),
    "bound twice": (PROGRAM, "def total", "def total():\n    pass\n\ndef total", "bound twice"),
    "import conflict": (PROGRAM, "import sys", "import sys\nimport cmath as math", "one name"),
    "name of an import": (PROGRAM, "def total", "def math():\n    pass\n\ndef total", "also the name of an import"),
    "shadowing import": (PROGRAM, "import sys", "import sys\nfrom math import pow", "builtin"),
    "work at import": (PROGRAM, "import sys", "import sys\nX = os.getcwd()", "computed at import"),
    "statement": (PROGRAM, "import sys", "import sys\nprint(1)", "at the top level"),
    "registry": (PROGRAM, "def main", "TABLE = {1: total}\ndef main", "computed at import"),
    "computed default": (PROGRAM, "def total(values)", "def total(values, n=os.getcwd())", "computed at import"),
    "file": (PROGRAM, "return sum(values)", "return __file__", "__file__"),
    "eval": (PROGRAM, "return sum(values)", "return eval('1')", "eval"),
    "globals": (PROGRAM, "return sum(values)", "return globals()", "globals"),
    "inspect": (PROGRAM, "import sys", "import inspect", "inspect"),
    "decorator": (PROGRAM, "def total", "@print\ndef total", "decorator"),
    "state": (PROGRAM, "return sum(values)", "global EPSILON\n    EPSILON = 2\n    return 1", "state"),
    "coroutine": (PROGRAM, "def total", "async def later():\n    pass\n\ndef total", "AsyncFunctionDef"),
    "entry": (PROGRAM, "def main(cfg, ops, arch, library)", "def main(cfg, arch, ops, library)", "def main(cfg, ops, arch, library)"),
    "syntax": (PROGRAM, "def main(", "def main((", "not valid Python"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breach_is_refused_with_file_and_line(tmp_path, name):
    file, old, new, words = BREACHES[name]
    with pytest.raises(DialectError) as caught:
        bundle(ToyConfig(), root=write_package(tmp_path, **edited(file, old, new)), **BUILD)
    path, line, message = str(caught.value).split(":", 2)
    assert path.startswith("toy/") and path.endswith(".py") and int(line) > 0 and words in message, str(caught.value)


def test_error_points_at_the_line(tmp_path):
    root = write_package(tmp_path, **edited(PROGRAM, "return sum(values)", "return gate(values)"))
    with pytest.raises(DialectError, match=r"^toy/program.py:7: `gate` is not defined or imported in this file; import it here$"):
        lint(load("toy.program", "plain", "toy.models.small", root))


def test_entry_must_exist(tmp_path):
    with pytest.raises(DialectError, match="there is no module toy.nothing"):
        bundle(ToyConfig(), root=write_package(tmp_path), **{**BUILD, "entry": "toy.nothing"})
