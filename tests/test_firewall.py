"""Validation text stays unread until the artifact is hashed, however its path is spelt, and everything else works as before."""

import contextlib
import hashlib
import io
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import train_gpt
from trit.data.firewall import ACTIVE, INSTALLED, Firewall, ValidationReadError, validation_files
from trit.data.shards import read_shard, shard_files, write_shard

VALIDATION = "x_val_000000.bin"


def map_descriptor(path):
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


READERS = {
    "open": lambda path: open(path, "rb").read(),
    "text": lambda path: open(path, encoding="latin-1").read(),
    "bytes path": lambda path: open(os.fsencode(path), "rb").read(),
    "read and write": lambda path: open(path, "r+b").read(),
    "os.open": lambda path: os.close(os.open(path, os.O_RDONLY)),
    "FileIO": lambda path: io.FileIO(str(path)).read(),
    "open_code": lambda path: io.open_code(str(path)).read(),
    "np.memmap": lambda path: np.memmap(path, "u1", "r"),
    "np.fromfile": lambda path: np.fromfile(path, "u1"),
    "mmap": map_descriptor,
    "pathlib": lambda path: Path(path).read_bytes(),
    "copy": lambda path: shutil.copyfile(path, f"{path}.copy"),
    "hard link": lambda path: os.link(path, f"{path}.link"),
    "rename": lambda path: os.rename(path, f"{path}.other") or os.rename(f"{path}.other", path),
    "subprocess": lambda path: subprocess.run(["cat", path], capture_output=True, check=True),
    "shell": lambda path: subprocess.run(f"cat<'{path}'", shell=True, capture_output=True, check=True),
    "os.system": lambda path: os.system(f'cat "{path}" > /dev/null'),
    "child": lambda path: subprocess.run([sys.executable, "-I", "-S", "-c", f"open({str(path)!r},'rb').read()"], check=True),
    "read_shard": lambda path: read_shard(path, 100),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with one shard of each split, which is also the working directory."""
    for split in ("train", "val"):
        write_shard(tmp_path / f"x_{split}_000000.bin", np.arange(50))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nothing_left():
    """Firewalls that a test leaves closed, as a training process does, are taken away."""
    yield
    for firewall in tuple(ACTIVE):
        firewall.lift()


@pytest.mark.parametrize("reader", READERS)
def test_refused_when_closed_and_allowed_after_release(reader, folder):
    with Firewall() as firewall:
        with pytest.raises(ValidationReadError, match="x_val_000000.bin is validation text, closed until .* score after"):
            READERS[reader](folder / VALIDATION)
        assert not list(folder.glob("*.copy")) + list(folder.glob("*.link"))
        (attempt,) = firewall.attempts
        assert attempt.name.endswith(VALIDATION) and "test_firewall.py:" in attempt.where and attempt.seconds >= 0
        READERS[reader](folder / "x_train_000000.bin")
        firewall.release(b"artifact")
        READERS[reader](folder / VALIDATION)
        assert len(firewall.attempts) == 1
    assert len(INSTALLED) == 1 and not ACTIVE


SPELLINGS = {
    "relative": "x_val_000000.bin",
    "detour": "sub/../x_val_000000.bin",
    "doubled": ".//./sub//..///x_val_000000.bin",
    "absolute": "{folder}/sub/../../{folder.name}/x_val_000000.bin",
    "symbolic link": "sub/innocent",
    "link to a link": "sub/second",
    "linked folder": "sub/back/x_val_000000.bin",
    "named like a shard": "sub/y_val_000001.bin",
    "other case": "X_VAL_000000.BIN",
    "sidecar": "fineweb_val_bytes_000000.bin",
    "descriptor path": "/proc/self/cwd/x_val_000000.bin",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_gets_through(spelling, folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "innocent").symlink_to("../x_val_000000.bin")
    (folder / "sub" / "second").symlink_to("innocent")
    (folder / "sub" / "back").symlink_to("..")
    (folder / "blob").write_bytes(b"shard")
    (folder / "sub" / "y_val_000001.bin").symlink_to("../blob")
    (folder / "X_VAL_000000.BIN").write_bytes(b"shard")
    (folder / "fineweb_val_bytes_000000.bin").write_bytes(b"sizes")
    with Firewall() as firewall:
        with pytest.raises(ValidationReadError):
            open(SPELLINGS[spelling].format(folder=folder), "rb")
        firewall.release(b"artifact")
        open(SPELLINGS[spelling].format(folder=folder), "rb").close()


@pytest.mark.parametrize(
    "mode, reads", [("r", True), ("rb", True), ("r+b", True), ("a+b", True), ("w+b", True), ("ab", False), ("wb", False)]
)
def test_every_mode_that_can_read_is_refused(mode, reads, folder):
    with Firewall() as firewall:
        for name in ("x_train_000000.bin", VALIDATION):
            with pytest.raises(ValidationReadError) if reads and name == VALIDATION else contextlib.nullcontext():
                open(folder / name, mode).close()
        assert len(firewall.attempts) == reads


def test_named_paths_are_found_under_other_names(folder):
    (folder / "val.jsonl").write_text("{}")
    (folder / "texts").mkdir()
    (folder / "texts" / "one.txt").write_text("held out")
    os.link(folder / "val.jsonl", folder / "hard")
    os.link(folder / VALIDATION, folder / "blob")
    with Firewall([folder / "val.jsonl", "texts", "not yet", *validation_files(folder)]) as firewall:
        (folder / "not yet").write_text("written later; writing alone is no reading")
        for name in ("val.jsonl", "hard", "blob", "texts/one.txt", "not yet", "texts/../val.jsonl"):
            with pytest.raises(ValidationReadError):
                open(name)
        with pytest.raises(ValidationReadError):
            subprocess.run(["cat", "texts/one.txt"], check=True)
        assert os.listdir("texts") == ["one.txt"] and len(firewall.attempts) == 7


def test_everything_else_works(folder):
    with Firewall(validation_files(folder)) as firewall:
        assert [Path(path).name for path in shard_files(folder, "val")] == [VALIDATION], "listing is not reading"
        assert os.path.getsize(VALIDATION) == 1124 and Path(VALIDATION).exists() and os.stat(VALIDATION).st_size == 1124
        assert len(read_shard("x_train_000000.bin", 100)) == 50
        np.savez("checkpoint.npz", a=np.arange(3))
        with np.load("checkpoint.npz") as file:
            assert file["a"].tolist() == [0, 1, 2]
        assert subprocess.run(["echo", "train text"], capture_output=True, text=True, check=True).stdout == "train text\n"
        assert len(mmap.mmap(-1, 4096)) == 4096 and open(os.open("checkpoint.npz", os.O_RDONLY), "rb").read(2) == b"PK"
        with pytest.raises(FileNotFoundError):
            open("missing.txt")
        shutil.copyfile("x_train_000000.bin", "copy")
        os.replace("copy", "copied")
        firewall.ensure_unread()
        assert not firewall.attempts and firewall.evidence()["artifact_sha256"] is None
    assert read_shard(VALIDATION, 100)[0] == 0


def test_a_read_in_another_thread_or_swallowed_is_still_told(folder):
    def look():
        try:
            Path(VALIDATION).read_bytes()
        except OSError as error:
            assert isinstance(error, PermissionError)

    with Firewall() as firewall:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        look()
        with pytest.raises(ValidationReadError, match=r"asked for before the artifact: 2 times, first x_val_000000\.bin at test_firewall"):
            firewall.ensure_unread()
        firewall.release(b"artifact")
        good, sentence = firewall.summary()
        assert not good and "2 refused accesses" in sentence and "test_firewall.py:" in sentence


def test_release_hashes_once_and_tells_the_order(folder):
    artifact = bytes(range(100))
    with Firewall([folder / VALIDATION]) as firewall:
        assert firewall.summary() == (False, "no artifact was hashed")
        for nothing, error in ((b"", ValueError), ("text", TypeError), (None, TypeError)):
            with pytest.raises(error, match="artifact's bytes"):
                firewall.release(nothing)
        with pytest.raises(ValidationReadError):
            open(VALIDATION)
        firewall.attempts.clear()
        digest = firewall.release(artifact)
        assert digest == hashlib.sha256(artifact).hexdigest() == firewall.release(bytearray(artifact))
        assert "never read" in firewall.summary()[1]
        read_shard(VALIDATION, 100)
        first = firewall.evidence()
        read_shard(VALIDATION, 100)
        assert firewall.evidence() == first and 0 <= first["released_seconds"] <= first["first_read_seconds"]
        assert first["artifact_sha256"] == digest and first["artifact_bytes"] == 100 and first["protected"] == [VALIDATION]
        with pytest.raises(RuntimeError, match="already; .* could know validation text"):
            firewall.release(artifact + b"!")
        good, sentence = firewall.summary()
        assert good and digest[:12] in sentence and "0 refused" in sentence
    with pytest.raises(RuntimeError, match="closed before"):
        firewall.close()
    with pytest.raises(RuntimeError, match="not closed"):
        Firewall().release(artifact)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list open files")
def test_what_is_open_before_or_behind_our_back_is_found(folder):
    with open(VALIDATION, "rb"), pytest.raises(RuntimeError, match="x_val_000000.bin is open already"):
        Firewall().close()
    early = np.memmap(VALIDATION, "u1", "r")
    with pytest.raises(RuntimeError, match="open already"):
        Firewall().close()
    del early
    descriptor = os.open(".", os.O_RDONLY)
    os.symlink(VALIDATION, "sly")
    with Firewall() as firewall:
        os.mkdir("elsewhere")
        os.chdir("elsewhere")  # the event carries no folder descriptor, so this link cannot be followed when it is opened
        hidden = os.open("sly", os.O_RDONLY, dir_fd=descriptor)
        with pytest.raises(ValidationReadError):
            mmap.mmap(hidden, 0, access=mmap.ACCESS_READ)
        firewall.attempts.clear()
        firewall.release(b"artifact")
        assert [attempt.event for attempt in firewall.attempts] == ["found open"] and not firewall.summary()[0]
        os.close(hidden)
    os.close(descriptor)


# Training

TINY = [
    "model.vocab_size=260", "model.num_layers=3", "model.model_dim=16", "model.num_heads=2", "model.num_kv_heads=1", "model.embed_dim=8",
    "engram.engram_buckets=16", "engram.engram_row_dim=4", "model.partial_rope_dims=4", "train.train_seq_len=16",
    "train.train_batch_tokens=32", "train.iterations=2", "train.warmup_steps=1", "compress.calibration_tokens=64", "eval.eval_seq_len=16",
    "eval.eval_stride=8", "quant.bitnet_group_size=8",
]  # fmt: skip


@pytest.fixture
def train(shard_folder, tmp_path, nothing_left):
    """Run `train_gpt.py` in this process with the firewall closed; gives what it exits with."""
    handler = signal.getsignal(signal.SIGTERM)

    def run():
        try:
            train_gpt.main([*TINY, f"data_path={shard_folder}", f"out_path={tmp_path}/run"])
        except SystemExit as ended:
            return str(ended.code)
        return ""

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_training_runs_with_validation_closed(train, shard_folder, tmp_path, capsys):
    assert train() == ""
    assert "validation_firewall:closed files:1 accesses:0" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoint.npz").exists()
    with pytest.raises(ValidationReadError):
        shard = shard_files(shard_folder, "val")[0]
        open(shard, "rb")


@pytest.mark.parametrize("swallow", [False, True])
def test_training_that_looks_at_validation_text_fails_and_says_where(swallow, train, shard_folder, monkeypatch):
    from trit.train import run

    def peeking(*arguments, position=run.warm_up):
        try:
            read_shard(shard_files(shard_folder, "val")[0], 260)
        except OSError:
            if not swallow:
                raise
        return position(*arguments)

    monkeypatch.setattr(run, "warm_up", peeking)
    message = train()
    assert message.startswith("error: ") and "tiny_val_000000.bin" in message and "shards.py" in message
    assert ("asked for before the artifact" in message) == swallow
