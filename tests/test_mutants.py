"""The list of planted faults fits today's code, and their runner tells a fault that tests see from one that they do not."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import mutants
from benchmarks.mutants import ABSENT, AREAS, KILLED, SURVIVED, Mutant

ROOT = Path(__file__).resolve().parent.parent
FAULTS = mutants.read_mutants()
AREA_FOLDERS = ("data", "layers", "models", "ops", "train", "compress", "eval", "bundle", "proof", "report", "study", "use")


def test_every_fault_can_be_planted_and_leaves_a_program():
    assert not mutants.misplaced(ROOT, FAULTS)
    texts = {fault.file: (ROOT / fault.file).read_text() for fault in FAULTS}
    programs = {file: compile(text, file, "exec", dont_inherit=True) for file, text in texts.items()}
    for fault in FAULTS:
        faulty = compile(mutants.planted(texts[fault.file], fault), fault.file, "exec", dont_inherit=True)
        assert faulty != programs[fault.file], f"{fault.id} changes nothing"


def test_tests_that_a_fault_names_are_there():
    assert not [(fault.id, test) for fault in FAULTS for test in fault.tests if not mutants.present(ROOT, test)]
    assert not mutants.present(ROOT, "tests/test_mutants.py::test_nowhere") and not mutants.present(ROOT, "tests/test_nowhere.py")


def test_faults_are_many_and_everywhere():
    assert len(FAULTS) >= 80
    wanted = {AREAS.get(name, name) for name in AREA_FOLDERS}
    assert wanted <= {fault.area for fault in FAULTS}
    assert {"trit/ops/torch_ops.py", "trit/ops/mlx_ops.py"} <= {fault.file for fault in FAULTS}


def test_tests_that_import_the_faulty_module_come_first():
    order = mutants.test_order(ROOT, "trit/train/rate.py")
    assert mutants.OWN_TEST not in order and (ROOT / mutants.OWN_TEST).samefile(__file__)
    assert order[0] == "tests/test_rate.py" and "tests/models/test_unet.py" in order
    assert order.index("tests/test_same_training.py") < order.index("tests/test_paid_prefix.py")
    assert mutants.test_order(ROOT, "trit/models/unet.py").index("tests/test_models.py") < order.index("tests/test_paid_prefix.py")


TOY = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow: slow"]\n',
    "trit/sums.py": "def total(values):\n    found = 0\n    for value in values:\n        found += value\n    return found\n\n\n"
    "def unasked(value):\n    return value + 1\n\n\nLEAST = 1\n",
    "trit/means.py": "from trit.sums import total\n\n\ndef mean(values):\n    return total(values) / len(values)\n",
    "tests/test_ahead.py": "def test_ahead():\n    pass\n",
    "tests/test_sums.py": "import pytest\n\nfrom trit.sums import total, unasked\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n\n\n"
    "@pytest.mark.slow\ndef test_slow():\n    assert unasked(1) == 2\n",
    "tests/test_means.py": "from trit.means import mean\n\n\n@pytest.mark.parametrize('n', ['a b'])\ndef test_mean(n):\n"
    "    assert mean([2, 4]) == 3\n".replace("from", "import pytest\nfrom", 1),
}
SEEN = Mutant("seen", "trit/sums.py", "found += value", "found -= value", "a sign", ("tests/test_sums.py::test_total",))
ELSEWHERE = Mutant("elsewhere", "trit/means.py", "/ len(values)", "/ 2.5", "a | divisor", ("tests/test_sums.py", "tests/test_gone.py"))
UNSEEN = Mutant("unseen", "trit/sums.py", "value + 1", "value + 2", "off by one", ("tests/test_sums.py",))
HANGS = Mutant(
    "hangs", "trit/sums.py", "    for value in values:\n", "    while True:\n        value = 1\n", "no end", ("tests/test_sums.py",)
)
BREAKS = Mutant("breaks", "trit/sums.py", "LEAST = 1", "LEAST = nothing", "no module", ("tests/test_sums.py",))
GONE = Mutant("gone", "trit/sums.py", "not written there", "nor this", "of another version", ("tests/test_sums.py",))


@pytest.fixture
def toy(tmp_path):
    """A checkout of a toy package with tests, one of which is slow."""
    for name, text in TOY.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "toy", check=True)
    return tmp_path / "toy"


def test_a_toy_tree_is_judged(toy, tmp_path):
    kept, faults = tmp_path / "kept.jsonl", [SEEN, ELSEWHERE, UNSEEN, BREAKS, GONE]
    found = mutants.judge(toy, faults, jobs=2, results=kept) + mutants.judge(toy, [HANGS], timeout=2)
    assert [(each.state, each.by) for each in found] == [
        (KILLED, "tests/test_sums.py::test_total"),
        (KILLED, "tests/test_means.py::test_mean[a b]"),
        (SURVIVED, ""),
        (KILLED, "tests/test_sums.py"),
        (ABSENT, ""),
        (KILLED, "timeout"),
    ]
    assert {path.name: path.read_text() for path in toy.rglob("*.py")} == {Path(n).name: text for n, text in TOY.items() if n[-3:] == ".py"}
    lines = mutants.table(found).splitlines()
    assert len(lines) == 8 and "| unseen | sums.py" not in lines[4] and "**survived**" in lines[4] and "`timeout`" in lines[7]


def test_a_stopped_run_goes_on_and_what_changed_is_asked_again(toy, tmp_path, monkeypatch):
    kept, asked = tmp_path / "kept.jsonl", []
    before = mutants.first_failure
    monkeypatch.setattr(mutants, "first_failure", lambda tree, tests, timeout: asked.append(tests) or before(tree, tests, timeout))
    first = mutants.judge(toy, [SEEN], results=kept)
    assert asked == [["tests/test_sums.py::test_total"]] * 2, "once with the fault and once without"
    (toy / "trit/means.py").write_text("another\n")
    assert mutants.judge(toy, [SEEN], results=kept) == first and len(asked) == 3
    assert mutants.judge(toy, [UNSEEN], named_only=True, results=kept)[0].state == SURVIVED
    known = mutants.kept_verdicts(kept, toy, [SEEN, UNSEEN], True)
    assert set(known) == {"seen", "unseen"} and set(mutants.kept_verdicts(kept, toy, [SEEN, UNSEEN], False)) == {"seen"}
    (toy / "trit/sums.py").write_text(TOY["trit/sums.py"] + "\n")
    assert not mutants.kept_verdicts(kept, toy, [SEEN, UNSEEN], True)


def test_a_test_that_fails_anyway_kills_nothing(toy):
    (toy / "tests/test_sums.py").write_text("def test_total():\n    assert False\n")
    with pytest.raises(ValueError, match=r"tests/test_sums\.py::test_total fails without a fault too"):
        mutants.judge(toy, [SEEN])


def test_the_command_ends_with_1_where_a_fault_survives(toy, tmp_path, monkeypatch, capsys):
    listed = tmp_path / "listed.toml"
    parts = ("file", "old", "new", "fault", "tests")
    texts = ["".join(f"{part} = {json.dumps(getattr(fault, part))}\n" for part in parts) for fault in (SEEN, UNSEEN, GONE)]
    listed.write_text("".join(f"[{name}]\n{text}" for name, text in zip(("seen", "unseen", "gone"), texts)))
    monkeypatch.setattr(mutants, "chosen_mutants", lambda only, chosen=mutants.chosen_mutants: chosen(only, listed))
    endings = []
    for only in (["seen", "gone"], ["unseen"]):
        with pytest.raises(SystemExit) as ended:
            mutants.main(["--tree", str(toy), "--named-only", "--json", "--only", *only])
        endings.append((ended.value.code, json.loads(capsys.readouterr().out)["counts"]))
    assert endings == [(0, {KILLED: 1, SURVIVED: 0, ABSENT: 1}), (1, {KILLED: 0, SURVIVED: 1, ABSENT: 0})]
    with pytest.raises(SystemExit, match="no fault nowhere"):
        mutants.main(["--only", "nowhere"])
    listed.write_text(listed.read_text().replace('"found -= value"', '"found += value"'))
    with pytest.raises(ValueError, match="seen needs file, old, another new"):
        mutants.read_mutants(listed)
