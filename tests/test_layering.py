"""The house: who may import what, how long a file may be, and what no file may contain."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for p in ROOT.rglob("*.py") if not {".venv", "records", "runs", "data", "build"} & set(p.relative_to(ROOT).parts))


def imports(path):
    """Modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def importers(package):
    """Files of the package that import an external package."""
    paths = (ROOT / "trit").rglob("*.py")
    return {str(p.relative_to(ROOT)) for p in paths if any(name.split(".")[0] == package for name in imports(p))}


def test_torch_and_mlx_stay_in_their_files():
    """Each in its vocabulary and its backend; torch's optional kernels, its profiler and what its compiler says have files of their own."""
    kernels = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trit/ops").glob("torch_*.py")}
    assert importers("torch") == kernels | {f"trit/train/torch_{name}.py" for name in ("backend", "compile", "profile")}
    assert importers("mlx") == {"trit/ops/mlx_ops.py", "trit/train/mlx_backend.py"}


def test_models_do_not_import_each_other_and_layers_know_no_model():
    for path in (ROOT / "trit" / "models").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("trit.models")], path
    for path in (ROOT / "trit" / "layers").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith(("trit.models", "trit.train", "trit.compress"))], path


def test_what_scores_does_not_know_what_judges():
    """The certificate would prove little about a program that could ask it."""
    judges = {"build.py", "eval/certify.py", "report/record.py", "report/seeds.py"}
    for path in (ROOT / "trit").rglob("*.py"):
        place = path.relative_to(ROOT / "trit").as_posix()
        if place not in judges and not place.startswith("proof/"):
            assert not [name for name in imports(path) if name.startswith(("trit.proof", "trit.eval.certify"))], path


def test_files_stay_short():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines, split the stage: {long}"
    for name in ("train_gpt.py", "train_gpt_mlx.py"):
        assert len((ROOT / name).read_text().splitlines()) <= 80, name


def test_modules_say_their_job():
    for path in SOURCES:
        if path.read_text().strip():
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path}: no module docstring"


def unreachable(tree):
    """Lines of statements that stand behind one that always leaves their block."""
    found = []
    for node in ast.walk(tree):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if isinstance(block, list):
                leaves = [i for i, each in enumerate(block) if isinstance(each, (ast.Return, ast.Raise, ast.Continue, ast.Break))]
                found += [each.lineno for each in block[leaves[0] + 1 :]] if leaves else []
    return found


def test_no_statement_stands_behind_a_return():
    """A published trainer's check of itself stood there, calling what no longer existed (equilibrium.md BUG10)."""
    assert unreachable(ast.parse("def f():\n    return 1\n    check()\n")) == [3]
    assert not {str(path): lines for path in SOURCES if (lines := unreachable(ast.parse(path.read_text())))}


def test_no_pickle_reaches_an_artifact():
    for path in (ROOT / "trit").rglob("*.py"):
        assert not re.search(r"\bimport pickle\b|torch\.load\(|allow_pickle=True", path.read_text()), path


def test_launchers_are_short_and_strict():
    for path in (ROOT / "runners").glob("*.sh"):
        text = path.read_text()
        assert "set -euo pipefail" in text and '"$@"' in text and len(text.splitlines()) <= 40, path
