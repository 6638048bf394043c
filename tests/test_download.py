"""Downloading from a folder that stands in for the hub: resume, corruption, foreign repositories, nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import small_tokenizer

from trit.data.download import download
from trit.data.manifest import file_sha256, resolve_tokenizer
from trit.data.shards import read_shard, write_shard

SHARD = 50


class Hub:
    """A published repository on disk: one dataset with a tokenizer; `fetch` counts what it hands out."""

    def __init__(self, root, variant="sp1024", hashes=False, start=4):
        self.root, self.fetched, self.name = Path(root), [], f"fineweb10B_{variant}"
        folder = self.root / "datasets" / "datasets" / self.name
        folder.mkdir(parents=True)
        tokenizer = small_tokenizer("contest_bpe_1024")
        lengths = {"val_000000": SHARD, "val_000001": 20, "train_000000": SHARD, "train_000001": SHARD, "train_000002": 30}
        for name, length in lengths.items():
            write_shard(folder / f"fineweb_{name}.bin", np.arange(start, start + length))
        (self.root / "datasets" / "tokenizers").mkdir()
        shutil.copy(tokenizer.path, self.root / "datasets" / "tokenizers" / "fineweb_1024_bpe.model")
        dataset = {
            "name": self.name,
            "tokenizer_name": "sp",
            "vocab_size": tokenizer.vocab_size,
            "stats": {"files_train": 3, "files_val": 2, "tokens_train": 2 * SHARD + 30, "tokens_val": SHARD + 20},
        }
        if hashes:
            dataset["files"] = [{"name": path.name, "sha256": file_sha256(path)} for path in folder.iterdir()]
        entry = {"name": "sp", "kind": "sentencepiece_bpe", "model_path": "tokenizers/fineweb_1024_bpe.model"}
        if variant == "byte260":
            entry, dataset["vocab_size"] = {"name": "sp", "kind": "byte"}, 260
        self.manifest = {"version": 1, "shard_size": SHARD, "append_eos": False, "tokenizers": [entry], "datasets": [dataset]}
        self.publish()

    def publish(self):
        (self.root / "datasets" / "manifest.json").write_text(json.dumps(self.manifest))

    def fetch(self, remote, folder):
        self.fetched.append(Path(remote).name)
        target = Path(folder) / remote
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.root / remote, target)
        return str(target)


def get(hub, out, shards=3, variant="sp1024", repository="someone/data"):
    return download(variant, shards, out, repository, "datasets", hub.fetch, say=lambda line: None)


def test_everything_arrives_and_the_tokenizer_belongs(tmp_path):
    hub = Hub(tmp_path / "hub")
    folder = get(hub, tmp_path / "out", shards=2)
    assert sorted(path.name for path in folder.glob("*.bin")) == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
        "fineweb_val_000000.bin",
        "fineweb_val_000001.bin",
    ]
    assert Path(resolve_tokenizer(folder)).name == "fineweb_1024_bpe.model"
    assert read_shard(folder / "fineweb_val_000001.bin", 400)[:2].tolist() == [4, 5]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["datasets", "tokenizers"], "no staging folder stays"


def test_byte_variant_needs_no_model(tmp_path):
    folder = get(Hub(tmp_path / "hub", "byte260"), tmp_path / "out", variant="byte260")
    assert resolve_tokenizer(folder) == "byte260"


def test_broken_download_goes_on_where_it_stopped(tmp_path):
    hub = Hub(tmp_path / "hub")

    def break_down(remote, folder):
        if remote.endswith("train_000001.bin"):
            raise OSError("connection lost")
        return hub.fetch(remote, folder)

    out = tmp_path / "out"
    with pytest.raises(OSError, match="connection lost"):
        download("sp1024", 3, out, "someone/data", "datasets", break_down)
    assert not (out / "datasets" / hub.name / "manifest.json").exists(), "an unfinished folder has no manifest"
    hub.fetched.clear()
    folder = get(hub, out)
    shards = [name for name in hub.fetched if name.endswith(".bin")]
    assert shards == ["fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    assert (folder / "manifest.json").exists()
    hub.fetched.clear()
    get(hub, out)
    assert not [name for name in hub.fetched if name.endswith(".bin")] and hub.fetched[0] == "manifest.json"


@pytest.mark.parametrize("damage", ["truncated", "flipped", "header"])
def test_corrupt_file_here_is_fetched_again(tmp_path, damage):
    hub = Hub(tmp_path / "hub", hashes=True)
    folder = get(hub, tmp_path / "out")
    victim = folder / "fineweb_val_000000.bin"
    data = bytearray(victim.read_bytes())
    if damage == "truncated":
        data = data[:-3]
    else:
        data[-1 if damage == "flipped" else 0] ^= 1
    victim.write_bytes(data)
    hub.fetched.clear()
    get(hub, tmp_path / "out")
    assert [name for name in hub.fetched if name.endswith(".bin")] == [victim.name]
    assert read_shard(victim, 400)[-1] == SHARD + 3


@pytest.mark.parametrize("damage", ["truncated", "other length", "foreign", "flipped"])
def test_corrupt_file_there_is_refused_and_leaves_nothing(tmp_path, damage):
    hub = Hub(tmp_path / "hub", hashes=damage == "flipped")
    victim = hub.root / "datasets" / "datasets" / hub.name / "fineweb_train_000002.bin"
    if damage == "other length":
        write_shard(victim, np.arange(4, 20))
    else:
        data = bytearray(victim.read_bytes())
        data = {"truncated": data[:-3], "foreign": b"<html>not found</html>", "flipped": data[:-2] + b"\1\0"}[damage]
        victim.write_bytes(data)
    with pytest.raises(ValueError, match=r"fineweb_train_000002.bin: what arrived"):
        get(hub, tmp_path / "out")
    folder = tmp_path / "out" / "datasets" / hub.name
    assert not (folder / victim.name).exists() and not (folder / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob(victim.name))


def test_manifest_and_shards_of_another_repository_are_not_mixed(tmp_path):
    first, second = Hub(tmp_path / "one"), Hub(tmp_path / "two", start=5)
    second.manifest["datasets"][0]["stats"]["files_val"] = 1
    second.manifest["datasets"][0]["stats"]["tokens_val"] = SHARD
    second.publish()
    get(first, tmp_path / "out")
    with pytest.raises(ValueError, match="holds shards of someone/data"):
        get(second, tmp_path / "out", repository="other/data")
    folder = get(second, tmp_path / "out2", repository="other/data")
    assert len(list(folder.glob("*val*"))) == 1


def test_stray_shards_are_refused(tmp_path):
    hub = Hub(tmp_path / "hub")
    folder = tmp_path / "out" / "datasets" / hub.name
    folder.mkdir(parents=True)
    write_shard(folder / "fineweb_train_000000.bin", np.arange(SHARD))
    with pytest.raises(ValueError, match="unknown origin"):
        get(hub, tmp_path / "out")


def test_wrong_requests_say_what_there_is(tmp_path):
    hub = Hub(tmp_path / "hub")
    with pytest.raises(ValueError, match="possible: fineweb10B_sp1024"):
        get(hub, tmp_path / "out", variant="sp4096")
    with pytest.raises(ValueError, match="has 3 training shards"):
        get(hub, tmp_path / "out", shards=4)
    hub.manifest["datasets"][0]["vocab_size"] = 8192
    hub.publish()
    with pytest.raises(ValueError, match="vocab_size 8192"):
        get(hub, tmp_path / "out")
    (hub.root / "datasets" / "manifest.json").write_text("<html>")
    with pytest.raises(ValueError, match="not JSON"):
        get(hub, tmp_path / "out")
