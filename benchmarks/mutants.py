"""Small faults planted one at a time, each of which the fast suite must see: python -m benchmarks.mutants [--only ID ...] [--named-only]

benchmarks/mutants.toml lists them. The tree is copied to a temporary folder; there one text of one file is replaced, and tests run until the
first fails: those that the entry names, then the files that import the faulty module, nearest first, then the rest. That test killed the
fault; a fault that no test sees survived and is a gap, and the command ends with 1. A run that hangs is ended after --timeout seconds and
counts as killed. The tests that killed run once more without a fault at the end: what fails anyway kills nothing.

--tree FOLDER plants the same faults in another checkout, say one from before a change; what is not written there is reported as that.
--results FILE keeps every verdict as a JSON line: a run that was stopped goes on, unless entry, faulty file or named tests changed since.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

from trit.console import Parser, command, progress, say

ROOT = Path(__file__).resolve().parent.parent
OWN_TEST = "tests/test_mutants.py"
LISTED = Path(__file__).with_suffix(".toml")
AREAS = {"train": "training", "compress": "compression", "eval": "evaluation"}  # every other folder's name is its area's
TOGETHER = 8  # test files of one process, where no test is named: few enough to stop early, many enough that starting costs little
OPTIONS = ("-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", "-rfE", "--no-header")
RUNNING = set()  # processes that test, for whoever has to end them
KILLED, SURVIVED, ABSENT = "killed", "survived", "not there"


class Mutant(NamedTuple):
    """A fault: `old`, which `file` holds once, becomes `new`. `fault` says in a few words what that breaks, `tests` which tests or test
    files should see it, the best first."""

    id: str
    file: str
    old: str
    new: str
    fault: str
    tests: tuple

    @property
    def area(self):
        """The part of the package that the fault is in."""
        folder = self.file.split("/")[1]
        return "program" if folder.endswith(".py") else AREAS.get(folder, folder)


class Verdict(NamedTuple):
    """What became of a fault: its state, the first test that failed ("" for none), seconds, and whether all tests were asked or the named."""

    id: str
    area: str
    fault: str
    state: str
    by: str
    seconds: float
    whole: bool


def read_mutants(path=LISTED):
    """[Mutant] of a list. ValueError where an entry is incomplete."""
    with open(path, "rb") as file:
        listed = tomllib.load(file)
    found = []
    for name, entry in listed.items():
        if set(entry) != {"file", "old", "new", "fault", "tests"} or entry["old"] == entry["new"] or not entry["tests"]:
            raise ValueError(f"{path}: {name} needs file, old, another new, fault and at least one of tests, and nothing else")
        found.append(Mutant(name, entry["file"], entry["old"], entry["new"], entry["fault"], tuple(entry["tests"])))
    return found


def planted(text, mutant):
    """The text of a file with the fault in it, or None unless what the fault replaces stands there once."""
    return text.replace(mutant.old, mutant.new) if text.count(mutant.old) == 1 else None


def misplaced(tree, mutants):
    """[sentence] on the faults that cannot be planted in a tree: the file is missing, or its text stands there not once."""
    found = []
    for mutant in mutants:
        path = tree / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if count != 1:
            found.append(f"{mutant.id}: its old text stands {count} times in {mutant.file}")
    return found


def tree_files(tree):
    """Paths of a checkout's files, relative to it: those that git tracks, and new ones that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=tree, capture_output=True, text=True, check=True
    )
    return sorted(name for name in set(listed.stdout.split("\0")) if name and (tree / name).is_file())


def copy_tree(tree, target):
    """Copy the files of a checkout into the new folder `target`, a repository of its own: tests ask git which files there are."""
    for name in tree_files(tree):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(tree / name, target / name)
    subprocess.run(["git", "init", "-q"], cwd=target, check=True)


def module_paths(tree):
    """{dotted name: path} of a checkout's Python files; those of tests/ by their last name, as tests import them."""
    found = {}
    for name in tree_files(tree):
        dotted = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if name.endswith(".py") and dotted.replace(".", "_").isidentifier():  # records hold programs that nobody imports
            found[dotted.rpartition(".")[2] if dotted.startswith("tests.") else dotted] = name
    return found


def named_modules(text, known):
    """Names of known modules that a program imports, or names anywhere else, as for `python -m`."""
    found = set(re.findall(r"\w+(?:\.\w+)+", text))
    for names in re.findall(r"^\s*import (.*)", text, re.MULTILINE):
        found |= set(re.findall(r"[\w.]+", names))
    for module, names in re.findall(r"^\s*from ([\w.]+) import (\([^)]*\)|.*)", text, re.MULTILINE):
        found |= {f"{module}.{name}" for name in re.findall(r"\w+", names)} | {module}
    return found & known


@functools.cache
def importers(tree):
    """{path: {paths that import it}} of a checkout. Whoever imports a package by itself may load every module in it by its name."""
    paths, found = module_paths(tree), {}
    for name, path in paths.items():
        wanted = named_modules((tree / path).read_text(encoding="utf-8"), paths.keys())
        if path.endswith("__init__.py"):
            wanted |= {other for other in paths if other.rpartition(".")[0] == name}
        for other in wanted - {name}:
            found.setdefault(paths[other], set()).add(path)
    return found


def test_order(tree, file):
    """Test files of a checkout: those that import `file`, by how far it is, then the others. Not the one that compares this list with the
    code: it would see every fault, and none by what it does."""
    reverse, distance, edge = importers(tree), {file: 0}, [file]
    for near in edge:
        for path in sorted(reverse.get(near, ())):
            if path not in distance:
                distance[path] = distance[near] + 1
                edge.append(path)
    tests = [name for name in tree_files(tree) if re.fullmatch(r"tests/(.*/)?test_\w+\.py", name) and name != OWN_TEST]
    return sorted(tests, key=lambda name: (distance.get(name, len(distance)), name))


def present(tree, test):
    """Whether a checkout has a test: its file, and the function that a node id names."""
    path, _, name = test.partition("::")
    function = name.rpartition("::")[2].partition("[")[0]
    return (tree / path).is_file() and (not name or f"def {function}(" in (tree / path).read_text(encoding="utf-8"))


def first_failure(tree, tests, timeout):
    """The first test of `tests` that fails in a checkout, "" where all pass; "timeout" where they take too long. RuntimeError where pytest
    cannot run them at all."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, open(Path(scratch) / "printed", "w+") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *OPTIONS, *tests],
            cwd=tree,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environ | {"TMPDIR": scratch},
            start_new_session=True,
        )
        RUNNING.add(process)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            RUNNING.discard(process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, or whatever it left running
            process.wait()
        printed.seek(0)
        text = printed.read()
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    if code in (0, 5):  # 5: nothing was chosen, all of these are slow
        return ""
    if failed:
        return failed.group(1)
    if "while loading conftest" in text:
        return "tests/conftest.py"
    if code < 0:
        return f"a crash by signal {-code}"
    raise RuntimeError(f"pytest ended with {code}: {' '.join(text.split())[-500:]}")


def batches(tree, mutant, named_only):
    """Lists of tests, each to be run by one process, in the order in which they are asked."""
    named = [test for test in mutant.tests if present(tree, test)]
    others = [] if named_only else [test for test in test_order(tree, mutant.file) if test not in named]
    return list(filter(None, [named, *(others[i : i + TOGETHER] for i in range(0, len(others), TOGETHER))]))


def judged(copy, mutant, named_only, timeout):
    """`Verdict` on a fault planted in the folder `copy`, which is as it was afterwards."""
    path, begin, by = copy / mutant.file, time.monotonic(), ""
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    after = planted(before, mutant)
    if after is not None:
        asked = batches(copy, mutant, named_only)
        path.write_text(after, encoding="utf-8")
        try:
            by = next(filter(None, (first_failure(copy, tests, timeout) for tests in asked)), "")
        finally:
            path.write_text(before, encoding="utf-8")
    state = ABSENT if after is None else KILLED if by else SURVIVED
    return Verdict(mutant.id, mutant.area, mutant.fault, state, by, round(time.monotonic() - begin, 1), not named_only)


def fingerprint(tree, mutant):
    """What a kept verdict hangs on: the entry, the faulty file and the files of the named tests."""
    digest = hashlib.sha256(repr(mutant).encode())
    for name in (mutant.file, *sorted({test.partition("::")[0] for test in mutant.tests})):
        digest.update(hashlib.sha256((tree / name).read_bytes() if (tree / name).is_file() else b"").digest())
    return digest.hexdigest()[:16]


def kept_verdicts(path, tree, mutants, named_only):
    """{id: Verdict} of a file of results that still hold. A survivor of the named tests alone is asked again where all shall be."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    known, found = {mutant.id: fingerprint(tree, mutant) for mutant in mutants}, {}
    for line in map(json.loads, lines):
        verdict = Verdict(**line["verdict"])
        if known.get(verdict.id) == line["of"] and (verdict.state != SURVIVED or verdict.whole or named_only):
            found[verdict.id] = verdict
    return found


def judge(tree, mutants, named_only=False, timeout=900, jobs=1, results=None):
    """[Verdict] of faults planted in copies of the checkout `tree`, in their order; kept in the file `results`, and taken from there.
    ValueError where a test that killed fails without a fault too."""
    found = kept_verdicts(results, tree, mutants, named_only)
    waiting = [mutant for mutant in mutants if mutant.id not in found]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as outside, progress("mutants", len(waiting), " faults") as bar:
        free = queue.SimpleQueue()
        for number in range(jobs):
            copy_tree(tree, Path(outside) / str(number))
            free.put(Path(outside) / str(number))

        def one(mutant):
            copy = free.get()
            try:
                return mutant, judged(copy, mutant, named_only, timeout)
            finally:
                free.put(copy)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool, ended_with(pool):
            for done in concurrent.futures.as_completed([pool.submit(one, mutant) for mutant in waiting]):
                mutant, verdict = done.result()
                found[mutant.id] = verdict
                say(f"{verdict.id}: {verdict.state}{' by ' * bool(verdict.by)}{verdict.by}, {verdict.seconds:.0f} s")
                if results:
                    with open(results, "a") as file:
                        file.write(json.dumps({"of": fingerprint(tree, mutant), "verdict": verdict._asdict()}) + "\n")
                bar.update()
        copy = free.get()
        killers = sorted({verdict.by for verdict in found.values() if present(copy, verdict.by)})
        if killers and (broken := first_failure(copy, killers, timeout + 60 * len(killers))):
            raise ValueError(f"{broken} fails without a fault too: it kills nothing; mend it first")
    return [found[mutant.id] for mutant in mutants]


@contextlib.contextmanager
def ended_with(pool):
    """End the runs that are going on, and begin no other, where the body is interrupted."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise


def table(verdicts):
    """Markdown table of what became of every fault."""
    lines = ["| fault | area | what it is | killed by | seconds |", "|---|---|---|---|---|"]
    for each in verdicts:
        by = f"`{each.by}`" if each.by else f"**{each.state}**"
        lines.append(f"| {each.id} | {each.area} | {each.fault} | {by} | {each.seconds:.0f} |".replace("\n", " "))
    return "\n".join(lines)


def chosen_mutants(only, path=LISTED):
    """The listed faults, or those with the ids `only`. ValueError where one is unknown."""
    mutants = read_mutants(path)
    unknown = set(only or ()) - {mutant.id for mutant in mutants}
    if unknown:
        raise ValueError(f"no fault {', '.join(sorted(unknown))} in {path}; its ids are the headings there")
    return [mutant for mutant in mutants if not only or mutant.id in only]


def main(arguments=None):
    """Command line of this module."""
    parser = Parser(prog="python -m benchmarks.mutants", description=__doc__, answers=True)
    parser.add_argument("--only", nargs="+", metavar="ID", help="these faults alone")
    parser.add_argument("--tree", default=str(ROOT), metavar="FOLDER", help="checkout to plant them in; this one by default")
    parser.add_argument("--named-only", action="store_true", help="ask the named tests alone, which is quick")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a run of tests has hung")
    parser.add_argument("--jobs", type=int, default=1, help="copies of the tree that are asked at once")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keeps verdicts, so that a stopped run goes on")
    options = parser.parse_args(arguments)
    with command(options.json, "stopped; what --results keeps is not asked again") as answer:
        tree, mutants = Path(options.tree).resolve(), chosen_mutants(options.only)
        if tree == ROOT and (wrong := misplaced(tree, mutants)):
            raise ValueError(f"the list no longer fits the code: {'; '.join(wrong)}")
        verdicts = judge(tree, mutants, options.named_only, options.timeout, max(options.jobs, 1), options.results)
        counts = {state: sum(each.state == state for each in verdicts) for state in (KILLED, SURVIVED, ABSENT)}
        print(table(verdicts))
        print(f"\n{counts[KILLED]} killed, {counts[SURVIVED]} survived, {counts[ABSENT]} not there")
        answer |= {"counts": counts, "verdicts": verdicts}
    sys.exit(bool(counts[SURVIVED]))


if __name__ == "__main__":
    main()
