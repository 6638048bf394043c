"""Fixtures for all tests. One thread: the suite must not depend on how many cores a machine has."""

import os

import mlx.core as mx
import numpy as np
import pytest
import torch
from record_fixtures import text_shards

from trit.data.shards import write_shard

torch.set_num_threads(1)
# On a Mac too, MLX computes on the processor, where arithmetic repeats bit for bit; TRIT_TEST_GPU=1 leaves it to the GPU.
if not os.environ.get("TRIT_TEST_GPU"):
    mx.set_default_device(mx.cpu)

# Files that take minutes begin first: whichever worker gets one, the others have all the rest to do meanwhile.
LONG = ("test_submission.py", "test_cheats.py", "test_bundle_package.py", "test_whole_family.py", "test_study.py", "test_certify.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def shard_folder(tmp_path):
    """A data folder of byte260: a repetitive text of 6,000 training and 700 validation tokens with ids below 64."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    words = [generator.integers(4, 64, 5) for _ in range(12)]
    for split, count in (("train", 1200), ("val", 140)):
        write_shard(folder / f"tiny_{split}_000000.bin", np.concatenate([words[i] for i in generator.integers(0, 12, count)]))
    return str(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder of byte260 that a record can be built on."""
    return text_shards(tmp_path_factory.mktemp("text"))
