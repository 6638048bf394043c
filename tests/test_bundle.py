"""The counted file does what the package does, is the same on every build, and holds no more than it needs."""

import dataclasses
import hashlib
import itertools
import os
import random
import subprocess
import sys

import pytest
from bundle_fixtures import BUILD, FlagSection, ModelSection, ToyConfig, edited, write_package

from trit.bundle import wrap
from trit.bundle.alone import run_alone
from trit.bundle.bundle import bundle, byte_report
from trit.bundle.emit import ascii_form
from trit.bundle.modules import DialectError
from trit.bundle.verify import BundleError, check_syntax, find_pythons, verify

PACKAGE_RUN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
sys.path.insert(1, sys.argv.pop(1))
from bundle_fixtures import *
from toy.models import small
from toy.ops import plain_ops
from toy.program import main
from toy.train import plain_backend
main(eval(sys.argv.pop(1)), plain_ops, small, plain_backend)
"""
PYTHONS = find_pythons()


def run_package(root, config):
    """Output of the toy package itself, without any bundling."""
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", PACKAGE_RUN, here, str(root), repr(config), "argument"]
    return subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout.replace("toy.program", "__main__")


def configurations():
    """Every activation and flag, in a handful of files rather than the full product."""
    activations = ("relu", "tanh", "both", "none")
    for number, (activation, factor, exp, extra) in enumerate(itertools.product(activations, (-0.25, 3), (False, True), (False, True))):
        if number % 3 == 0:
            model = ModelSection(activation=activation, factor=factor, num_layers=number % 4)
            yield ToyConfig(model=model, flags=FlagSection(exp=exp, extra=extra))


@pytest.mark.parametrize(
    "config",
    list(configurations()),
    ids=lambda config: f"{config.model.activation}{config.model.factor}{config.flags.exp}{config.flags.extra}",
)
def test_isolated_file_equals_package(tmp_path, config):
    root = write_package(tmp_path / "root")
    expected = run_package(root, config)
    for shake in (True, False):
        built = bundle(config, root=root, shake=shake, **BUILD)
        result = run_alone(built, args=["argument"])
        assert result.returncode == 0, result.stderr
        assert result.stdout == expected
        readable = subprocess.run(
            [sys.executable, "-I", "-"], input=built.readable, capture_output=True, text=True, check=True, encoding="utf-8"
        )
        assert readable.stdout.splitlines()[0] == expected.splitlines()[0]


def test_names_of_builtins_and_dead_branches(tmp_path):
    built = bundle(ToyConfig(), root=write_package(tmp_path), **BUILD)
    assert "sum((" not in built.readable and "return sum(values)" in built.readable and "ops_sum(x)" in built.readable
    assert "toy.layers:open" in built.kept and "layers_open" in built.readable
    for gone in (
        "toy.layers:only_in_dead_code",
        "toy.ops.plain_ops:unused_op",
        "toy.ops.plain_ops:exp",
        "toy.ops.helpers:double",
        "toy.layers:NAMES",
    ):
        assert gone in built.dropped and gone not in built.kept
    for word in ("cfg", "arch.", "itertools", "Entry", "-> ", "absent", "rectified'}"):
        assert word not in built.readable
    full = bundle(ToyConfig(), root=tmp_path, shake=False, **BUILD)
    assert not full.dropped and "only_in_dead_code" in full.readable and len(full.wrapped) > len(built.wrapped)


def test_rebuild_is_byte_identical(tmp_path):
    write_package(tmp_path)
    program = "import sys; sys.path[:0] = sys.argv[1:3]\nfrom bundle_fixtures import *\nfrom trit.bundle.bundle import bundle\n"
    program += "print(bundle(ToyConfig(), root=sys.argv[3], **BUILD).sha256)"
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", program, here, os.path.dirname(here), str(tmp_path)]
    digests = {bundle(ToyConfig(), root=tmp_path, **BUILD).sha256}
    for seed in ("1", "2"):
        result = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        digests.add(result.stdout.strip())
    assert len(digests) == 1


def test_verify_under_every_python(tmp_path):
    built = bundle(ToyConfig(flags=FlagSection(exp=True, extra=True)), root=write_package(tmp_path), **BUILD)
    report = verify(built)
    assert (
        report["bytes"] == len(built.wrapped)
        and report["source"] == built.source
        and f"{sys.version_info[0]}.{sys.version_info[1]}" in report["pythons"]
    )
    outputs = {run_alone(built, python=python, args=["a"]).stdout for python in PYTHONS.values()}
    assert len(outputs) == 1 and "é▁ ['a'] __main__" in outputs.pop()
    with pytest.raises(BundleError, match="build it again"):
        verify(dataclasses.replace(built, source=built.source + "\n"))
    with pytest.raises(BundleError, match="no compressed literal"):
        verify(b"print(1)\n")


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\ntry:\n    pass\nexcept* OSError:\n    pass\n",
        "type X = int\n",
        "def f[T](x):\n    return x\n",
        "x = f'{'a'}'\n",
        "x = f'{\"\\n\"}'\n",
    ],
)
def test_newer_syntax_is_refused(text):
    with pytest.raises(BundleError, match=r"3\.1[02]"):
        check_syntax(text)


@pytest.mark.skipif("3.12" not in PYTHONS, reason="needs Python 3.12")
def test_newer_f_strings_are_refused_by_a_newer_python(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom trit.bundle.verify import *\n"
        + """
for text in ("x = f'{'a'}'", "x = f'{f'{1}'}'", 'x = f"{chr(10).join(["a"])}"', "x = f'{chr(10)!r:{\\"\\\\n\\"}}'"):
    try:
        check_syntax(text)
        print("accepted", text)
    except BundleError:
        pass
for text in ("x = f'{\\"a\\"}'", "x = f'''{'a'}'''", "x = f'{1:>{3}}{{'", "x = f'''{1}\\n'''"):
    check_syntax(text)
"""
    )
    result = subprocess.run(
        [PYTHONS["3.12"], "-c", program, os.path.dirname(os.path.dirname(__file__))], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def payloads():
    generator = random.Random(0)
    special = [0, 10, 13, 92, 34, 39]
    yield b""
    yield bytes(range(256))
    yield bytes(range(255, -1, -1))
    for first, second, third in itertools.product([*special, 48, 110, 120], repeat=3):
        yield bytes([first, second, third])
    for size in (1, 2, 7, 50, 2000):
        for _ in range(30):
            yield bytes(generator.choices(special + [48, 55, 56], k=size))
            yield generator.randbytes(size)


def test_literal_holds_any_payload(tmp_path):
    """All payloads in one file each way, read back by the parser, by a script run and by every Python."""
    cases = list(payloads())
    for quote in wrap.QUOTES:
        file = wrap.HEAD + b"x=[" + b",".join(wrap.quoted(case, quote) for case in cases) + b"]\n"
        space = {}
        exec(compile(file, "payloads", "exec"), space)
        assert [text.encode("latin-1") for text in space["x"]] == cases
    literals = b",".join(wrap.literal_bytes(case) for case in cases)
    file = wrap.HEAD + b"import hashlib\nprint(hashlib.sha256(b'|'.join(t.encode('l1') for t in [" + literals + b"])).hexdigest())\n"
    (tmp_path / "script.py").write_bytes(file)
    outputs = {run_alone(file, python=python).stdout for python in PYTHONS.values()}
    for python in PYTHONS.values():
        outputs.add(subprocess.run([python, "-I", tmp_path / "script.py"], capture_output=True, text=True, check=True).stdout)
    assert outputs == {hashlib.sha256(b"|".join(cases)).hexdigest() + "\n"}


@pytest.mark.parametrize("codecs", [("brotli",), ("lzma",), ("zlib",), ("brotli", "lzma", "zlib")])
@pytest.mark.parametrize("needs_source", [False, True])
def test_wrapper_round_trip(codecs, needs_source):
    source = "import inspect, sys\ndef f():\n    return 'é▁\\\\'\nassert f() == 'é▁\\\\' and __name__ == '__main__'\n"
    if needs_source:
        source += "assert inspect.getsource(f) == \"def f():\\n    return 'é▁\\\\\\\\'\\n\", inspect.getsource(f)\n"
    wrapped = wrap.wrap(source, codecs, needs_source)
    assert wrap.expand(wrapped) == source
    pythons = PYTHONS.values() if "brotli" not in codecs else [sys.executable]
    for python in pythons:
        result = run_alone(wrapped, python=python)
        assert result.returncode == 0 and not result.stderr, result.stderr


def test_literal_overhead_is_small():
    payload = random.Random(1).randbytes(20000)
    assert len(wrap.literal_bytes(payload)) < 1.02 * len(payload)


def test_run_alone_is_alone(tmp_path):
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("given")
    program = b"""
import os, socket, sys
print(sorted(os.listdir(".")), open("data/a.txt").read(), sorted(k for k in os.environ if "TRIT" in k or "PYTHON" in k))
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except OSError as error:
    print(type(error).__name__)
"""
    result = run_alone(program, {"data": tmp_path / "data"}, environ={"TRIT_X": "1"})
    assert result.stdout.splitlines() == ["['data', 'train_gpt.py'] given ['TRIT_X']", "PermissionError"], result.stderr
    assert any(path.endswith("data/a.txt") for path in result.opened) and not any(
        "secret" in path or "opened.json" in path for path in result.opened
    )
    kept = run_alone(b"open('out.txt','w').write('1'); raise SystemExit(3)", folder=tmp_path / "kept")
    assert kept.returncode == 3 and (tmp_path / "kept" / "out.txt").read_text() == "1"
    with pytest.raises(BundleError, match="not empty"):
        run_alone(b"", folder=tmp_path)


def test_byte_report_names_every_symbol(tmp_path):
    built = bundle(ToyConfig(), root=write_package(tmp_path), **BUILD)
    rows = byte_report(built)
    assert {"toy.program:main", "toy.models.small:forward", "(other)"} <= {name for name, _ in rows}
    assert [size for _, size in rows] == sorted((size for _, size in rows), reverse=True)


def test_needs_source_follows_triton_and_compile(tmp_path):
    text = {
        "toy/program.py": "import torch\n\ndef main(cfg, ops, arch, library):\n    f = torch.compile(main) if cfg.flags.exp else None\n    return f\n"
    }
    write_package(tmp_path, **text)
    with pytest.raises(DialectError, match="used as a value"):
        bundle(ToyConfig(), root=tmp_path, **BUILD)
    write_package(tmp_path, **{"toy/program.py": text["toy/program.py"].replace("compile(main)", "compile(len)")})
    plain, compiled = (bundle(ToyConfig(flags=FlagSection(exp=flag)), root=tmp_path, **BUILD) for flag in (False, True))
    assert b"linecache" not in plain.wrapped and b"linecache" in compiled.wrapped


def test_settings_without_a_literal_are_refused(tmp_path):
    write_package(tmp_path)
    for value in ([1, 2], {"a": 1}, float("nan"), object()):
        with pytest.raises(DialectError, match=r"^toy/.*py:\d+: `cfg.model.factor` is .* no literal"):
            bundle(ToyConfig(model=ModelSection(factor=value)), root=tmp_path, **BUILD)


def test_absent_setting_is_an_error_only_where_it_is_used(tmp_path):
    with pytest.raises(DialectError, match=r"^toy/layers.py:\d+: `cfg.arch.not_there` is not a setting"):
        bundle(ToyConfig(flags=FlagSection(missing=True)), root=write_package(tmp_path), **BUILD)


def test_local_lost_with_its_branch_is_refused(tmp_path):
    root = write_package(
        tmp_path,
        **edited(
            "toy/program.py", "    x, kind", "    if cfg.flags.exp:\n        lost = 1\n    if os.sep:\n        print(lost)\n    x, kind"
        ),
    )
    with pytest.raises(DialectError, match=r"^toy/program.py:\d+: `lost` is assigned only in a branch that folds away"):
        bundle(ToyConfig(), root=root, **BUILD)


@pytest.mark.parametrize(
    "text, plain",
    [
        ("x = '▁é' + \"😀\"\n", "x = '\\u2581\\u00e9' + \"\\U0001f600\"\n"),
        ("x = r'▁'\n", None),
        ("x = f'{y}▁'\n", None),
        ("x = '\\\\▁'\n", "x = '\\\\\\u2581'\n"),
        ("é = 1\n", None),
        ("x = 1  # é\n", "x = 1  # \\u00e9\n"),
    ],
)
def test_ascii_form_is_the_same_program_or_the_same_text(text, plain):
    assert ascii_form(text) == (plain or text)
