"""A run of the suite that was stopped goes on where it was: what passed is not run again, all the rest is, and a changed file begins anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = {f"test_{file}.py::test_case[{case}]" for file in "abc" for case in range(3)}
FILE = """import os, pytest
@pytest.mark.parametrize("case", range(3))
def test_case(case):
    name = f"{os.path.basename(__file__)}::test_case[{case}]"
    with open(os.environ["RAN"], "a") as file:
        print(name, file=file)
    assert name != os.environ["BAD"]
"""


@pytest.fixture
def suite(tmp_path):
    """Runs three files of three tests with options, one of them bad -> (exit status, names of the tests that ran)."""
    (tmp_path / "suite").mkdir()
    for file in "abc":
        (tmp_path / "suite" / f"test_{file}.py").write_text(FILE)

    def run(*options, bad=""):
        (tmp_path / "ran").write_text("")
        environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "RAN": str(tmp_path / "ran"), "BAD": bad}
        environ.pop("PYTEST_XDIST_WORKER", None)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "resuming", "--rootdir", ".", *options]
        done = subprocess.run(command, cwd=tmp_path / "suite", env=environ, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, (tmp_path / "ran").read_text().split()

    return run


def test_two_workers_go_on_where_they_were(suite):
    workers, bad = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"), "test_b.py::test_case[1]"
    status, first = suite(*workers, "-x", bad=bad)
    assert status and bad in first
    status, second = suite(*workers, "--resume")
    assert status == 0 and bad in second and "test_b.py::test_case[0]" not in second and {*first, *second} == NAMES


def test_what_passed_is_left_out_until_a_file_changes_or_a_run_begins_anew(suite, tmp_path):
    bad, rest = "test_c.py::test_case[0]", [f"test_c.py::test_case[{case}]" for case in range(3)]
    assert len(suite("-x", bad=bad)[1]) == 7
    assert suite("--resume", bad=bad) == (1, rest)
    assert set(suite(bad=bad)[1]) == NAMES
    (tmp_path / "suite" / "test_a.py").write_text(FILE + "\n")
    assert set(suite("--resume", bad=bad)[1]) == NAMES
    assert suite("--resume") == (0, rest[:1])
