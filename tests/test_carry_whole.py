"""Whole runs with carried state: two ranks train like one, from one's checkpoint too, and the counted file trains like the package."""

import os
import time

import numpy as np
from model_fixtures import load_arch, tiny_config
from record_fixtures import counted_and_package
from test_sharded import by_rank, spawn, torch_backend_ops  # noqa: F401 (spawn is a fixture)

from trit.bundle.bundle import shaken_text
from trit.params import init_params
from trit.train import torch_backend
from trit.train.log import Log
from trit.train.run import run_training

CARRIED = {"carry": "true", "carry_reset": 0.1, "isolate_documents": "true", "train_batch_tokens": 256, "iterations": 8, "drop_path": 0.2}


def carried_rank(rank, world, port, results, folder, resumed):
    """One rank of a whole run, or of its second half; puts (rank, [states saved]) into `results`."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    cfg, arch, saved = (
        tiny_config("koopman_ssm", grad_accum_steps=2, checkpoint_every=4, full_precision_fraction=0.99, **CARRIED),
        load_arch("koopman_ssm"),
        [],
    )
    specs = arch.param_specs(cfg)
    backend = torch_backend.make_backend(torch_backend_ops(), arch, cfg, specs, init_params(specs, 1), torch_backend.start_process())
    run_training(cfg, specs, backend, folder, 1, Log(1), resumed, lambda *state: saved.append(state))
    results.put((rank, saved))
    time.sleep(0.5)  # the queue's thread sends before the process ends


def test_two_ranks_carry_like_one(spawn, shard_folder):  # noqa: F811
    """All rows' states are in every rank's checkpoint, so that a run also goes on with another number of ranks."""
    [(saved,)] = by_rank(spawn(carried_rank, 1, 1, shard_folder, None))
    half, whole = saved[0], saved[-1][0]
    assert half[1] == 4
    for (saved,) in by_rank(spawn(carried_rank, 2, 2, shard_folder, None)) + by_rank(spawn(carried_rank, 2, 2, shard_folder, half)):
        state = saved[-1][0]
        assert state["carry/0"].shape == (8, 4, 32) and len({row.tobytes() for row in state["carry/1"]}) == 8
        for name, array in whole.items():
            if name.startswith(("p/", "carry/")):
                assert np.abs(state[name] - array).max() < 2e-3, name


def test_the_counted_file_carries_like_the_package(shard_folder, tmp_path):
    cfg = tiny_config("koopman_ssm", vocab_size=260, **CARRIED)
    counted, package, steps = counted_and_package(cfg, shard_folder, tmp_path)
    assert steps == 8 and np.array_equal(counted, package)


def test_without_carry_none_of_it_is_counted():
    source = shaken_text(tiny_config("koopman_ssm"))
    carried = shaken_text(tiny_config("koopman_ssm", carry="true"))
    for name in ("kept_streams", "own_states", "carried_conv", "StreamLoader", "carry_shapes", "joined"):
        assert name not in source and name in carried, name
