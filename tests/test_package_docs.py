"""The corpus `packagedocs`: read and never imported, as it is pinned, the same each time, and nothing said in both parts."""

import hashlib
import random
import re
from collections import Counter
from itertools import pairwise

import pytest

from trit.data import corpus, package_docs
from trit.data.corpus import open_corpus
from trit.data.package_docs import PACKAGES, REQUIREMENTS, clean_split, pins, read_packages
from trit.data.prepare import prepare
from trit.data.tokenizer import find_spec

WORDS = [f"word{number}" for number in range(400)]


def install(folder, name, version, files, listed=True):
    """A package as pip would leave it in `folder`: {path: source} and the list of its files."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source)
    if listed:
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in reversed(files)))
    return [str(folder)]


def paragraph(generator, words=30):
    return " ".join(generator.choices(WORDS, k=words))


def runs(text):
    """The set of a text's runs of eight words, by another road than the module's."""
    words = tuple(re.findall(r"\w+", text.lower()))
    return {words[start : start + 8] for start in range(max(len(words) - 7, 1))}


def paragraphs(documents):
    return [part for document in documents for part in document.split("\n\n")]


def test_modules_are_read_in_order_and_never_run(tmp_path):
    bomb = 'raise SystemExit("imported")\n'
    folders = install(
        tmp_path,
        "zoo",
        "1.2",
        {
            "zoo/__init__.py": f'"""A zoo."""\nopen({str(tmp_path / "trace")!r}, "w").close()\n{bomb}',
            "zoo/bear.py": '"""Bears."""\ndef feed(bear):\n    """Give it \\d honey."""\n',
            "zoo/ant.py": '"""Ants."""\nadd_docstr(legs, r"""\nSix of them,\n""" + """and two feelers.\n""".format(a=1), "no")\nprint("""not\ntold""")\n',
            "zoo/tests/lion.py": '"""Lions are tests."""\n',
            "zoo/version.py": '"""Written by the build."""\n',
            "zoo/notes.txt": "No Python.\n",
            "keeper.py": '"""Not of the package."""\n',
        },
    )
    (tmp_path / "zoo" / "stray.py").write_text('"""Nobody installed this."""\n')
    found = read_packages({"zoo": "1.2"}, folders)
    assert list(found) == ["zoo", "zoo.ant", "zoo.bear"] and not (tmp_path / "trace").exists()
    assert found["zoo"] == "zoo\n\nA zoo."
    assert found["zoo.bear"] == "zoo.bear\n\nBears.\n\nfeed(bear)\n\nGive it \\d honey."
    assert "Six of them,\nand two feelers." in found["zoo.ant"]


def test_a_missing_or_other_package_is_refused_with_what_to_install(tmp_path):
    folders = install(tmp_path, "zoo", "1.2", {"zoo/__init__.py": '"""A zoo."""\n'})
    install(tmp_path, "ark", "1.0+cpu", {"ark/__init__.py": '"""An ark."""\n'})
    install(tmp_path, "bare", "1.0", {}, listed=False)
    for name, version, said in [
        ("zoo", "1.3", "is there as version 1.2"),
        ("gnu", "2.0", "is not installed"),
        ("bare", "1.0", "no list of its"),
    ]:
        with pytest.raises(ValueError, match=f"packagedocs: {name} .*{said}.*{name}=={version}; run make setup") as caught:
            read_packages({name: version}, folders)
        assert "\n" not in str(caught.value)
    assert read_packages({"ark": "1.0"}, folders) == {"ark": "ark\n\nAn ark."}, "the build for one device has the same sources"


def test_all_packages_are_pinned_and_a_lost_pin_is_named(tmp_path):
    assert tuple(pins(REQUIREMENTS)) == PACKAGES
    lines = "\n".join(path.read_text() for path in REQUIREMENTS)
    (tmp_path / "r.txt").write_text(re.sub(r"^sympy==", "sympy>=", lines, flags=re.MULTILINE))
    with pytest.raises(ValueError, match="NAME==VERSION for sympy, which"):
        pins([tmp_path / "r.txt"])


def made_up_modules(seed=7):
    """Modules of paragraphs of their own, of paragraphs that all share, and of shared ones changed a little."""
    generator = random.Random(seed)
    common = [paragraph(generator) for _ in range(20)]
    modules = {}
    for number in range(120):
        parts = [paragraph(generator) for _ in range(6)] + generator.sample(common, 2) + ["Examples\n--------", "-----"]
        changed = generator.choice(common).split()
        changed[9] = changed[12] = "other"  # twelve of its 23 runs are left
        # The same words in other clothes, and a small part of a large whole.
        parts += [
            " ".join(changed),
            generator.choice(common).upper().replace(" ", "\n  "),
            common[number % 20] + " " + paragraph(generator, 90),
        ]
        generator.shuffle(parts)
        modules[f"made.up{number}"] = "\n\n".join(parts)
    return modules


def validate_on_made_up(monkeypatch):
    """A quarter of the made-up modules is validation text."""
    monkeypatch.setattr(package_docs, "VALIDATION_PACKAGES", ("made",))
    monkeypatch.setattr(package_docs, "VALIDATION_SHARE", 0.25)


def test_only_packages_that_no_program_imports_are_validation_text(monkeypatch):
    monkeypatch.setattr(package_docs, "VALIDATION_SHARE", 0.5)
    modules = {
        name.replace("made", package): f"{name.replace('made', package)} says\n\n{text}"
        for seed, package in enumerate(("torch", "matplotlib"))
        for name, text in made_up_modules(seed).items()
    }
    parts = clean_split(modules)
    assert all("matplotlib.up" in text for text in parts["val"]) and len(parts["val"]) > 30
    assert sum("matplotlib.up" in text for text in parts["train"]) > 30
    assert "torch" not in package_docs.VALIDATION_PACKAGES and "numpy" not in package_docs.VALIDATION_PACKAGES


@pytest.mark.parametrize("seed", [1, 2])
def test_no_paragraph_stands_in_both_parts_or_twice(seed, monkeypatch):
    validate_on_made_up(monkeypatch)
    modules = made_up_modules(seed)
    parts = clean_split(modules)
    train, val = (paragraphs(parts[part]) for part in ("train", "val"))
    assert len(parts["val"]) > 15 and len(parts["train"]) > 60
    keys = [" ".join(re.findall(r"\w+", text.lower())) for text in train + val]
    assert len(set(keys)) == len(keys)
    for texts, others in ((train, val), (val, train)):
        there = set().union(*map(runs, others))
        assert max(len(runs(text) & there) / len(runs(text)) for text in texts) < 0.5
    # What only one module says stays, in its order.
    parts_of = [text for document in modules.values() for text in document.split("\n\n")]
    times = Counter(run for text in parts_of for run in runs(text))
    own = {text for text in parts_of if max(times[run] for run in runs(text)) == 1 and len(text.split()) == 30}
    assert len(own) == 6 * 120 and own <= set(train + val)
    place = {text: number for number, text in enumerate(parts_of)}
    for document in parts["train"] + parts["val"]:
        order = [place[text] for text in document.split("\n\n") if text in own]
        assert all(a < b for a, b in pairwise(order))


def test_the_split_is_by_name_and_does_not_depend_on_what_comes_first(monkeypatch):
    validate_on_made_up(monkeypatch)
    modules = made_up_modules()
    parts = clean_split(modules)
    assert clean_split(dict(reversed(modules.items()))) == parts
    modules["made.up7"] += "\n\nOne more sentence which nobody has said before."
    changed = clean_split(modules)
    assert sum(len(set(changed[part]) ^ set(parts[part])) for part in parts) == 2


@pytest.fixture
def small(monkeypatch):
    """`packagedocs` played by made-up modules."""
    validate_on_made_up(monkeypatch)
    parts = clean_split(made_up_modules())
    monkeypatch.setattr(corpus, "packagedocs", lambda: parts)
    return parts


def test_the_manifest_holds_the_hashes_of_the_parts(small, tmp_path):
    manifest = prepare({"train": "packagedocs", "val": "packagedocs"}, tmp_path / "set", find_spec("byte260"), say=lambda line: None)
    assert manifest["corpus"] == {"train": "packagedocs", "val": "packagedocs"} and manifest["dropped_documents"] == 0
    for part, documents in small.items():
        data = [document.encode() for document in documents]
        digest = hashlib.sha256(b"".join(len(text).to_bytes(8, "little") + text for text in data)).hexdigest()
        assert manifest["splits"][part]["text_sha256"] == digest and manifest["splits"][part]["documents"] == len(data)
    assert list(open_corpus("packagedocs")) == [*small["train"], *small["val"]]


def test_an_installed_package_gives_the_known_text():
    """networkx, the smallest of those in pure Python: its sources are the same on every platform, so its text has one hash."""
    modules = read_packages({"networkx": pins(REQUIREMENTS)["networkx"]})
    assert len(modules) > 250 and "dijkstra" in modules["networkx.algorithms.shortest_paths.weighted"]
    text = "\0".join(f"{name}\n{text}" for name, text in modules.items())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "011324a486fdfa89"
