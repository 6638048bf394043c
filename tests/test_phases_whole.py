"""Everything that changes with the clock at once: two ranks train like one, and the counted file trains like the package."""

import os
import time

import numpy as np
from model_fixtures import largest_difference, load_arch, tiny_config
from record_fixtures import counted_and_package
from test_sharded import by_rank, spawn, torch_backend_ops  # noqa: F401 (spawn is a fixture)

from trit.params import init_params
from trit.train import torch_backend
from trit.train.log import Log
from trit.train.run import run_training

MOVING = {"seq_schedule": "8:0.2,16:0.5", "batch_schedule": "128:0.3", "recurrent_layers": "1", "recurrence_start": 0.7}
MOVING |= {"noise": 0.1, "drop_path": 0.2, "shared_blocks": 2, "num_layers": 4, "train_batch_tokens": 256, "iterations": 10}


def moving_rank(rank, world, port, results, folder):
    """One rank of a whole run; puts (rank, state, loader position) into `results`."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    cfg, arch, saved = tiny_config(**MOVING), load_arch("unet"), []
    specs = arch.param_specs(cfg)
    backend = torch_backend.make_backend(torch_backend_ops(), arch, cfg, specs, init_params(specs, 1), torch_backend.start_process())
    run_training(cfg, specs, backend, folder, 1, Log(1), None, lambda *state: saved.append(state))
    results.put((rank, backend.state(), saved[-1][3]))
    time.sleep(0.5)  # the queue's thread sends before the process ends


def test_two_ranks_train_like_one(spawn, shard_folder):  # noqa: F811
    [(whole, position)] = by_rank(spawn(moving_rank, 1, 1, shard_folder))
    for state, place in by_rank(spawn(moving_rank, 2, 2, shard_folder)):
        assert place == position == 3 * 4 + 7 * 8
        for name, array in whole.items():
            if name.startswith("p/"):
                assert np.abs(state[name] - array).max() < 2e-3, name
        assert largest_difference({"step": state["step"]}, {"step": whole["step"]}) == 0


def test_the_counted_file_trains_like_the_package(shard_folder, tmp_path):
    cfg = tiny_config(vocab_size=260, **MOVING)
    counted, package, steps = counted_and_package(cfg, shard_folder, tmp_path)
    assert steps == 10 and np.array_equal(counted, package)
