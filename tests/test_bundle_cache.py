"""A counted file that is read back is the one that would be built: every input enters its fingerprint, and no fault of a disk matters."""

import dataclasses
import json

import pytest
from bundle_fixtures import BUILD, FlagSection, ToyConfig, edited, write_package

from trit.bundle import bundle as bundler
from trit.bundle import cache
from trit.bundle.cache import Memory

TOY = ToyConfig()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """(root of a toy package, builds of it that were really made, and a way to forget what memory holds)."""
    monkeypatch.setenv("TRIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundler, "MEMORY", Memory(bundler.Bundle))
    made, real = [], bundler.built
    monkeypatch.setattr(bundler, "built", lambda *given: made.append(given) or real(*given))
    return write_package(tmp_path / "package"), made


def build(root, config=TOY, **changed):
    return bundler.bundle(config, root=root, **{**BUILD, **changed})


def forget():
    bundler.MEMORY.values.clear()


def test_the_same_thing_is_built_once_and_read_back_whole(toy):
    root, made = toy
    first = build(root)
    assert build(root) is first and len(made) == 1
    forget()
    assert build(root) == first and len(made) == 1  # from the disk
    assert build(root, remember=False) == first and len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"config": dataclasses.replace(TOY, flags=FlagSection(exp=True))},
        {"config": dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, factor=-0.0))},
        {"config": dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, shape=(1.0, 2.5, None)))},
        {"codecs": ("zlib",)},
        {"shake": False},
        {"needs_source": True},
        {"arch_module": "toy.models.other"},
    ],
    ids=str,
)
def test_every_input_makes_another_build(toy, change):
    root, made = toy
    zero = dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, factor=0.0))
    build(root, zero), build(root)
    build(root, **change)
    assert len(made) == 3


def test_a_changed_source_is_built_anew(toy):
    root, made = toy
    first = build(root)
    write_package(root, **edited("toy/layers.py", "value + EPSILON", "value - EPSILON"))
    tanh = dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, activation="tanh"))
    changed = build(root, tanh)
    write_package(root)
    assert build(root) is first and build(root, tanh).source != changed.source and len(made) == 3


def test_another_tool_or_bundler_makes_another_fingerprint(toy, monkeypatch):
    root, made = toy
    build(root)
    monkeypatch.setattr(cache, "tools", lambda: ("another python",))
    build(root)
    monkeypatch.undo()
    assert len(made) == 2
    assert cache.fingerprint(root, "toy", 1) != cache.fingerprint(root, "toy", 1.0) != cache.fingerprint(root, "toy", True)


def test_a_damaged_entry_is_built_anew_and_a_full_disk_is_no_fault(toy, tmp_path, monkeypatch):
    root, made = toy
    first = build(root)
    (entry,) = (tmp_path / "cache" / "bundles").iterdir()
    checksum, _, text = entry.read_bytes().partition(b"\n")
    fields = json.loads(text) | {"sha256": "0"}
    for damaged in (b"", checksum, checksum + b"\n" + json.dumps(fields).encode(), entry.read_bytes()[:-1], b"{}\n{}"):
        entry.write_bytes(damaged)
        forget()
        assert build(root) == first
    assert len(made) == 6
    forget()
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TRIT_CACHE", str(tmp_path / "file"))
    assert build(root) == first
    monkeypatch.setenv("TRIT_CACHE", "")
    assert cache.folder() is None and build(root) == first


def test_old_entries_go(toy, tmp_path, monkeypatch):
    root, _ = toy
    monkeypatch.setattr(cache, "KEPT_ON_DISK", 2)
    monkeypatch.setattr(cache, "KEPT_IN_MEMORY", 2)
    for codec in (("zlib",), ("lzma",), ("zlib", "lzma")):
        build(root, codecs=codec)
    assert len(list((tmp_path / "cache" / "bundles").iterdir())) == len(bundler.MEMORY.values) == 2
