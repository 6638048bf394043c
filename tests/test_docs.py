"""What the documents name exists: links, files, modules, options, settings, functions; and the worked example of a page really works."""

import ast
import dataclasses
import functools
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from model_fixtures import BACKENDS, random_arrays, random_tokens, start, tiny_config
from test_models import future_reach

import trit.layers
import trit.models
from benchmarks import follow
from trit.bundle.alone import run_alone
from trit.bundle.bundle import bundle
from trit.compress.pack import pack, unpack
from trit.compress.quantize import quantize
from trit.config import SECTIONS, RunArgs
from trit.data.tokenizer import find_spec, open_tokenizer, train_model
from trit.models import arch_names, load_arch
from trit.ops import torch_ops
from trit.submission import load_artifact, make_artifact, score_rows
from trit.train import torch_backend
from trit.train.log import Log

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LIVING = [page for page in PAGES if page.name not in ("LOG.md", "CHANGELOG.md")]  # those two tell what was
EXAMPLE = ROOT / "docs/adding_an_architecture.md"
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = "trit|docs|tests|configs|runners|benchmarks|records"
SUFFIXES = ("py", "json", "jsonl", "log", "toml", "md", "sh", "txt", "model", "trit", "npz", "gz")
LAUNCHED = {"train_gpt.py": "trit/launch.py", "train_gpt_mlx.py": "trit/launch.py"}  # whose parser stands elsewhere


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


def fences(page):
    """[(info line, text)] of the fenced blocks of a page."""
    return FENCE.findall(page.read_text())


def spans(page):
    """Inline code of a page."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def anchors(page):
    """The fragments that a page's headings have on GitHub."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(page):
    """[[word, ...]] of the commands of a page: lines of blocks that are no program text, and inline code."""
    texts = [text.replace("\\\n", " ") for info, text in fences(page) if info.split(" ")[0] in ("", "bash", "sh")]
    found = []
    for line in [line for text in texts for line in text.splitlines()] + spans(page):
        for part in re.split(r"&&|;|\|", line.partition(" #")[0]):
            try:
                words = shlex.split(part)
            except ValueError:
                continue
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def started(words):
    """(path of the program that a command starts, its module or "", its arguments); None where it is none of the repository's."""
    program = words[0].rpartition("/")[2]
    if program == "torchrun":
        place = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words))
        words = ["python", *words[place:]]
    elif program == "bash" and len(words) > 1:
        return words[1], "", words[2:]
    elif not program.startswith("python") or len(words) < 2:
        return None
    if words[1] != "-m":
        return (words[1], "", words[2:]) if words[1].endswith(".py") else None
    module = words[2] if len(words) > 2 else ""
    if module.split(".")[0] not in ("trit", "benchmarks"):
        return None
    path = ROOT / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return path.relative_to(ROOT).as_posix(), module, words[3:]


@functools.cache
def options(path):
    """{option that the parser in a file knows: whether a value follows it}."""
    found = {"--help": False}
    for node in ast.walk(ast.parse((ROOT / LAUNCHED.get(path, path)).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            takes = not any(keyword.arg == "action" for keyword in node.keywords)
            found |= {word.value: takes for word in node.args if isinstance(word, ast.Constant)}
    return found


@functools.cache
def settings():
    """{section: {key}} of every architecture."""
    found = {section: {field.name for field in dataclasses.fields(cls)} for section, cls in {**SECTIONS, "run": RunArgs}.items()}
    architectures = [load_arch(name).ArchConfig for name in arch_names()]
    return found | {"arch": {field.name for cls in architectures for field in dataclasses.fields(cls)}}


@functools.cache
def tracked():
    """Paths of the repository's files, new ones too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.splitlines())


@functools.cache
def defined(path):
    """Names at the top level of a file."""
    tree, found = ast.parse((ROOT / path).read_text()), set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


@functools.cache
def vocabulary():
    """Every identifier of the package and its tests: definitions, fields, parameters, attributes."""
    found = set()
    for path in [*(ROOT / "trit").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            found |= {getattr(node, key) for key in ("name", "id", "attr", "arg") if isinstance(getattr(node, key, None), str)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)
    return found


@pytest.mark.parametrize("name", names(PAGES))
def test_links_lead_to_files_and_headings(name):
    page, missing = ROOT / name, []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, fragment = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        if not other.exists() or fragment and fragment not in anchors(other):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("name", names(LIVING))
def test_files_that_a_page_names_exist(name):
    page, missing = ROOT / name, []
    base_names = {path.rpartition("/")[2] for path in tracked()}
    example = {info.partition(" ")[2] for info, _ in fences(EXAMPLE)}
    for path in re.findall(rf"(?<![\w./<*-])((?:{FOLDERS})/[\w./-]*\w)(?![\w*<{{-])", page.read_text()):
        if not re.search(r"NAME|FILE|RUN", path) and not (ROOT / path).exists() and path not in example:
            missing.append(path)
    for span in spans(page):
        if re.fullmatch(r"[\w-]+\.(py|sh|md|toml|json)", span) and span not in base_names | {"metrics.jsonl", "run.json"}:
            missing.append(span)
    assert not missing


@pytest.mark.parametrize("name", names(LIVING))
def test_commands_of_a_page_can_be_given(name):
    wrong, known = [], {key for keys in settings().values() for key in keys}
    for words in commands(ROOT / name):
        if words[0] == "make" and len(words) > 1:
            if not re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE):
                wrong.append(words)
            continue
        found = started(words)
        if not found:
            continue
        path, module, arguments = found
        if not (ROOT / path).exists():
            wrong.append(words)
            continue
        if module:
            assert importlib.import_module(module if not path.endswith("__main__.py") else f"{module}.__main__")
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        if path.endswith(".sh"):
            wrong += [(path, option) for option in given if option not in (ROOT / path).read_text()]
        else:
            wrong += [(path, option) for option in given - options(path).keys()]
            # What an option takes is its own affair, but for settings that every variant of a benchmark gets.
            taken = [before != "--base" and options(path).get(before, False) for before in ["", *arguments]]
            arguments = [word for word, skipped in zip(arguments, taken) if not skipped]
        for word in arguments:
            for part in word.rpartition(":")[2].split(",") if ":" in word else [word]:
                key, sign, _ = part.partition("=")
                if sign and re.fullmatch(r"[a-z][a-z_0-9]*(\.[a-z_0-9]+)?", key):
                    section, _, last = key.rpartition(".")
                    if last not in (settings().get(section, ()) if section else known):
                        wrong.append((path, part))
    assert not wrong


@pytest.mark.parametrize("name", names(LIVING))
def test_settings_that_a_page_names_exist(name):
    page, pattern = ROOT / name, re.compile(r"(?<![\w./-])(model|arch|engram|quant|train|compress|eval|track|run)\.([a-z]\w*)(?![\w(/])")
    texts = spans(page) + [text for info, text in fences(page) if not info.startswith(("python", "mermaid"))]
    tensors = {spec.name for spec in load_arch("unet").param_specs(tiny_config(engram_buckets=64))}
    unknown = {f"{section}.{key}" for text in texts for section, key in pattern.findall(text) if key not in settings()[section]} - tensors
    assert not {key for key in unknown if key.partition(".")[2] not in SUFFIXES}


@pytest.mark.parametrize("name", names(LIVING))
def test_functions_that_a_page_places_stand_there(name):
    missing = []
    for path, listed in re.findall(r"`(trit/[\w/]+\.py): (\w+(?:, \w+)*)`", (ROOT / name).read_text()):
        missing += [f"{path}: {word}" for word in listed.split(", ") if (ROOT / path).exists() and word not in defined(path)]
    if name in ("docs/architecture.md", "docs/adding_an_architecture.md"):
        example = "".join(text for info, text in fences(EXAMPLE) if " " in info)
        words = [span.partition("(")[0] for span in spans(ROOT / name)]
        words = [word for word in words if re.fullmatch(r"[a-z]+(_[a-z]+)+|([A-Z][a-z]+)+", word)]
        missing += [word for word in words if word not in vocabulary() and word not in example and word not in tracked()]
    assert not missing


def test_the_checks_see_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One head: `x`\n\n`python -m trit.study FILE --nowhere`\n```\npython train_gpt.py train.lr=1 # no --comment\n```\n")
    assert anchors(page) == {"one-head-x"}
    first, second = [started(words) for words in commands(page)[:2]], commands(page)
    assert ("train_gpt.py", "", ["train.lr=1"]) in first and any("--nowhere" in words for words in second)
    assert "--nowhere" not in options("trit/study/__main__.py") and "--jobs" in options("trit/study/__main__.py")
    assert "--profile" in options("train_gpt.py") and "lr" not in settings()["train"] and "matrix_lr" in settings()["train"]


PAGE = """Text.

```bash
echo one   # said first
cat > made <<'END'
false
END

X=2; echo "a \\
b"
```
```
false
```
```bash
test -s made && test $X = 2
```
"""


def test_a_page_is_followed_command_by_command_until_one_fails(tmp_path):
    wanted, said = follow.commands(PAGE), []
    assert wanted == ["echo one   # said first", "cat > made <<'END'\nfalse\nEND", 'X=2; echo "a \\\nb"', "test -s made && test $X = 2"]
    assert len(follow.follow(wanted, tmp_path, said.append)) == 4 and "    one" in said and "$ echo one   # said first" in said
    assert len(follow.follow(["printf unended", "false", "echo never"], tmp_path, said.append)) == 1 and "    never" not in said
    tutorial = follow.commands((ROOT / "docs/tutorial.md").read_text())
    assert tutorial[0] == "make setup" and sum(command.startswith("python train_gpt.py") for command in tutorial) == 3


def block(title):
    """The text of the block of the worked example that is headed by `title`."""
    (text,) = [text for info, text in fences(EXAMPLE) if info.partition(" ")[2] == title]
    return text


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Folder of a copy of the package that holds the example; its architecture is found in this process too, by its name."""
    root, patch = tmp_path_factory.mktemp("example"), pytest.MonkeyPatch()
    shutil.copytree(ROOT / "trit", root / "trit", ignore=shutil.ignore_patterns("__pycache__"))
    for place, package in (("trit/models/delay_line.py", trit.models), ("trit/layers/delays.py", trit.layers)):
        (root / place).write_text(block(place))
        patch.setattr(package, "__path__", [*package.__path__, str((root / place).parent)])
    yield root
    patch.undo()


def example_config(**changed):
    return tiny_config("delay_line", vocab_size=260, engram_buckets=64, **changed)


def test_the_example_is_found_and_its_logits_have_their_shape(example):
    assert "delay_line" in arch_names()
    cfg, arch = example_config(), load_arch("delay_line")
    arrays, tokens = random_arrays(arch.param_specs(cfg)), random_tokens(cfg, 2, 17)
    for side in BACKENDS.values():
        p = {name: side.ops.from_numpy(array) for name, array in arrays.items()}
        stream, losses = arch.forward(side.ops, p, cfg, side.ops.from_numpy(tokens))
        logits = side.ops.to_numpy(arch.readout(side.ops, p, cfg, stream))
        assert logits.shape == (2, 17, 260) and logits.dtype == np.float32 and not losses


def test_the_example_is_causal_and_sees_the_past(example):
    for changed in ({}, {"isolate_documents": "true"}):
        cfg = example_config(**changed)
        arrays = random_arrays(load_arch("delay_line").param_specs(cfg))
        assert max(future_reach(cfg, arrays, 17, backend=name) for name in BACKENDS) <= 1e-6
    looking_ahead = block("trit/layers/delays.py").replace(
        "((0, 0), (lag, 0), (0, 0)))[:, : x.shape[1]]", "((0, 0), (0, lag), (0, 0)))[:, lag:]"
    )
    namespace = {}
    exec(looking_ahead, namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_arch("delay_line"), "delay_layer", namespace["delay_layer"])
        assert future_reach(cfg, arrays, 17) > 1e-6


def test_the_example_trains_every_tensor(example):
    cfg = example_config()
    trained, rows = start(cfg), random_tokens(cfg, 4, 33)
    before, (loss, norm) = trained.export(), trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    after = trained.export()
    assert abs(loss - np.log(260)) < 0.5 and np.isfinite(norm)
    assert not [name for name in before if (before[name] == after[name]).all()]


def test_the_example_is_packed_and_bundled(example, shard_folder, tmp_path):
    cfg, arch = example_config(), load_arch("delay_line")
    specs = arch.param_specs(cfg)
    arrays = random_arrays(specs)
    tensors = quantize(torch_ops, cfg, specs, {name: torch_ops.from_numpy(array) for name, array in arrays.items()}, {})
    back = unpack(cfg, specs, pack(cfg, specs, tensors))
    assert all((back[spec.name].codes == tensors[spec.name].codes).all() for spec in specs)
    artifact = make_artifact(torch_ops, arch, cfg, arrays, {})
    (tmp_path / "artifact.trit").write_bytes(artifact)
    files = {"artifact.trit": tmp_path / "artifact.trit", "data": shard_folder}
    environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "byte260", "LOSSES": "losses", "OMP_NUM_THREADS": "1"}
    built = bundle(cfg, root=example, codecs=("brotli",))
    assert "trit.layers.delays:delay_layer" in built.kept and "trit.layers.attention:attention_layer" not in built.kept
    done = run_alone(built, files, environ=environ, folder=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    given = torch_ops, torch_backend, arch, cfg, torch_backend.start_process(), load_artifact(torch_ops, arch, cfg, artifact)
    losses = score_rows(*given, shard_folder, "byte260", Log(rank=1), ())[1]
    assert (np.fromfile(tmp_path / "alone" / "losses") == losses).all()


def test_the_example_of_an_op_agrees_in_both_libraries_and_numpy():
    from op_cases import __dict__ as row

    case = eval(block("tests/op_cases.py").strip().removesuffix(","), dict(row))
    wanted = case.reference(*case.inputs)
    for name, side in BACKENDS.items():
        namespace = dict(vars(side.ops))
        exec(block(f"trit/ops/{name}_ops.py"), namespace)
        ops = type("ops", (), {case.op: staticmethod(namespace[case.op])})
        found = side.ops.to_numpy(case.call(ops, *map(side.ops.from_numpy, case.inputs)))
        assert np.abs(found - wanted).max() <= 1e-5 and case.op not in vars(side.ops)


def test_the_example_of_a_tokenizer_can_be_trained(tmp_path):
    entry = json.loads(block("tokenizer_specs.json"))
    (tmp_path / "specs.json").write_text(json.dumps([entry]))
    assert entry["name"] not in (ROOT / "tokenizer_specs.json").read_text()
    path = tmp_path / entry["filename"]
    path.write_bytes(train_model(find_spec(entry["name"], tmp_path / "specs.json"), [page.read_text() for page in PAGES]))
    tokenizer = open_tokenizer(path)
    assert tokenizer.vocab_size == entry["vocab_size"] and tokenizer.lossless
