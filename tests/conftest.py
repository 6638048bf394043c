"""Fixtures for all tests. One thread: the suite must not depend on how many cores a machine has."""

import os

import mlx.core as mx
import pytest
import store
import torch
from data_fixtures import write_shards
from record_fixtures import session_text

torch.set_num_threads(1)
# On a Mac too, MLX computes on the processor, where arithmetic repeats bit for bit; TRIT_TEST_GPU=1 leaves it to the GPU.
if not os.environ.get("TRIT_TEST_GPU"):
    mx.set_default_device(mx.cpu)

# Files that take minutes begin first: whichever worker gets one, the others have all the rest to do meanwhile.
LONG = ("test_submission.py", "test_cheats.py", "test_bundle_package.py", "test_whole_family.py", "test_study.py", "test_certify.py")


MADE_THE_STORE = store.begin()


def pytest_sessionfinish(session):
    """A stored thing that a test changed would make another test's result depend on the order."""
    if MADE_THE_STORE and (found := store.end()):
        print(f"\nchanged in the store of the session: {', '.join(found)}; a test must copy what it changes")
        session.exitstatus = 1


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def shard_folder(tmp_path):
    """A data folder of byte260: a repetitive text of 6,000 training and 700 validation tokens with ids below 64."""
    return write_shards(tmp_path / "data")


@pytest.fixture(scope="session")
def data():
    """A data folder of byte260 that a record can be built on."""
    return session_text()
