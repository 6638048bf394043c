"""Context mixing: every Python decodes what was coded, `expand` finds the same text without running it, and edges are refused."""

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from trit.bundle import mixing, mixing_encoder
from trit.bundle.bundle import smallest
from trit.bundle.verify import BundleError, find_pythons, verify
from trit.bundle.wrap import expand, wrap

SOURCE = Path(mixing.__file__).read_text(encoding="utf-8")[:2500]
PROGRAM = (
    "import sys, inspect\ndef f(x):\n return x\nprint(f('TEXT'), __name__, sys.argv[1:], sum([1, 2]), pow(2, 3, 5))\n" + "# padding\n" * 40
)


def run(python, path):
    return subprocess.run([python, "-I", str(path), "a"], capture_output=True, text=True, check=False, encoding="utf-8")


@pytest.mark.parametrize("text", ["x", "\n", "ab" * 300, "é▁", SOURCE, "'''\"\"\"\\\r\x00", "x=1\n" * 200 + "é"])
def test_round_trip_without_running(text):
    wrapped = mixing_encoder.mixed_file(text)
    assert expand(wrapped) == text == mixing.expand_mixed(wrapped)
    assert mixing_encoder.mixed_file(text) == wrapped and b"\r" not in wrapped and b"\0" not in wrapped


@pytest.mark.parametrize("needs_source", [False, True])
@pytest.mark.parametrize("word", ["plain", "é▁"])
def test_every_python_decodes_alike(tmp_path, word, needs_source):
    program = PROGRAM.replace("TEXT", word)
    if needs_source:
        program += "assert inspect.getsource(f) == 'def f(x):\\n return x\\n'\n"
    wrapped = mixing_encoder.mixed_file(program, needs_source)
    (tmp_path / "train_gpt.py").write_bytes(wrapped)
    assert verify(wrapped)["source"] == program
    for python in {sys.executable, *find_pythons().values()}:
        done = run(python, tmp_path / "train_gpt.py")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{word} __main__ ['a'] 3 3\n", ""), done.stderr


def test_it_is_chosen_where_it_is_smallest():
    long = "".join(Path(mixing.__file__).with_name(name).read_text() for name in ("fold.py", "emit.py", "shake.py", "folder.py"))
    for text, best in ((long, True), ("print(1)\n", False)):
        wrapped = smallest(text, ("brotli", "zlib", "mixing"), False)
        mixed, other = mixing_encoder.mixed_file(text), wrap(text, ("brotli", "zlib"))
        assert wrapped == (mixed if best else other) and (len(mixed) < len(other)) == best


def test_another_decoder_or_payload_is_not_expanded():
    wrapped = mixing_encoder.mixed_file(SOURCE)
    assert expand(wrapped) == SOURCE
    for old, new in (
        (b"exec(o)", b"exec(o+s)"),
        (b"o+=k", b"o+=k*1"),
        (b"[4000]", b"[4001]"),
        (b"T={};", b"T={} ;"),
        (b"math\n", b"math;\n"),
    ):
        with pytest.raises(ValueError, match="no compressed literal"):
            expand(wrapped.replace(old, new, 1))
        with pytest.raises(BundleError):
            verify(wrapped.replace(old, new, 1))
    longer = wrapped.replace(b"<%d:" % len(SOURCE), b"<%d:" % 999_999)
    assert longer != wrapped and mixing.expand_mixed(longer) is None
    assert mixing.expand_mixed(wrapped.replace(b"<%d:" % len(SOURCE), b"<%d:" % 9_999_999)) is None
    assert mixing_encoder.mixed_file("") is None and mixing_encoder.mixed_file("x" * (mixing_encoder.LONGEST + 1)) is None
    middle = len(mixing.HEAD) + 200
    changed = wrapped[:middle] + bytes([wrapped[middle] ^ 1 or 7]) + wrapped[middle + 1 :]
    assert mixing.expand_mixed(changed) != SOURCE


@pytest.mark.parametrize("quote", mixing.QUOTES)
@pytest.mark.parametrize("planted", ["x{q}\nprint(1)\ns=r{q}y", "x{q}+{q}y", "x\\", "x{c}", "{q}", "x\r", "x\0y", "x\\{c}"])
def test_no_program_hides_in_a_payload(quote, planted):
    payload = planted.format(q=quote, c=quote[0])
    wrapped = mixing.file_around(payload, quote, 5, 128, False)
    assert mixing.mixed_form(wrapped) is None and mixing.expand_mixed(wrapped) is None and mixing.decoder_bytes(wrapped) == 0
    honest = mixing.file_around("x" + chr(1), quote, 5, 128, False)
    assert mixing.mixed_form(honest) == ("x" + chr(1), 5, 128) and mixing.decoder_bytes(honest) > 0


def test_results_on_a_rounding_edge_are_refused(monkeypatch):
    for value in (3.0, -2.0, 5 - 1e-11, 5 + 1e-11):
        with pytest.raises(ValueError, match="rounding edge"):
            mixing.rounded(value)
    assert [mixing.rounded(value) for value in (0.0, 1e-15, -1e-15, 0.999, -0.999, 2.5, -2.5)] == [0, 0, 0, 0, 0, 2, -2]
    monkeypatch.setattr(mixing, "MARGIN", 0.1)
    mixing_encoder.encode.cache_clear()
    assert mixing_encoder.mixed_file(SOURCE + "#") is None
    mixing_encoder.encode.cache_clear()


def test_a_library_that_differs_in_the_last_digits_decodes_the_same_text(monkeypatch):
    payload, shaken = mixing_encoder.encode(SOURCE), random.Random(0)

    class Library:
        log = staticmethod(lambda x: math.log(x) * (1 + shaken.choice((-1, 0, 1)) * 2**-52))
        exp = staticmethod(lambda x: math.exp(x) * (1 + shaken.choice((-1, 0, 1)) * 2**-52))

    monkeypatch.setattr(mixing, "math", Library)
    assert mixing.decode(payload, len(SOURCE), mixing_encoder.latin(SOURCE)[1]) == SOURCE


def test_a_payload_with_both_quotes_is_left_to_other_packers(monkeypatch):
    monkeypatch.setattr(mixing_encoder, "encode", lambda text: "a'''b\"\"\"c")
    assert mixing_encoder.mixed_file("x") is None
    monkeypatch.setattr(mixing_encoder, "encode", lambda text: "a'''b")
    assert b'r"""a' in mixing_encoder.mixed_file("x")
