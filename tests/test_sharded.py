"""Muon's matrices are shared out over ranks: 1, 4 and 8 gloo ranks train alike, each with its part of the momentum, and a rank that
fails or hangs ends the others with a message."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from model_fixtures import TINY, largest_difference, load_arch, random_tokens, tiny_config
from test_distributed import free_ports

from trit.params import init_params
from trit.train import torch_backend
from trit.train.checkpoint import load_checkpoint
from trit.train.optimizer import stacks

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = {"num_layers": 3, "engram_buckets": 64, "train_batch_tokens": 256, "ema_decay": 0.5, "ema_start_fraction": 0.0}


def config():
    return tiny_config(**SETTINGS)


def batches():
    """Three global batches of eight rows."""
    return [random_tokens(config(), 8, 33, seed) for seed in range(3)]


def train_rank(rank, world, port, results):
    """One rank: three steps on its rows; puts (rank, state, [(loss, norm)], numbers of momentum) into `results`."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    import torch

    torch.set_num_threads(1)
    cfg, arch, sizes = config(), load_arch("unet"), []
    made = torch_backend.optimizer_state

    def counting(ops, specs, held):
        state = made(ops, specs, held)
        sizes.append(sum(state[key][0].numel() for key, group in stacks(specs).items() if group[0].group == "matrix"))
        return state

    torch_backend.optimizer_state = counting
    specs = arch.param_specs(cfg)
    backend = torch_backend.make_backend(torch_backend_ops(), arch, cfg, specs, init_params(specs, 1), torch_backend.start_process())
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    seen = [backend.step(rows[mine, :-1], rows[mine, 1:], 1.0, True, True)() for rows in batches()]
    half = backend.state()
    backend.restore(half)
    assert all(np.array_equal(array, half[name]) for name, array in backend.state().items())
    results.put((rank, half, seen, sizes[0]))
    time.sleep(0.5)  # the queue's thread sends before the process ends


def torch_backend_ops():
    from trit.ops import torch_ops

    return torch_ops


def failing_rank(rank, world, port, results, patience, fault):
    """Rank 1 leaves after the first step, or sleeps; rank 0 reports how long it waited and what it was told."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch_backend.timedelta = lambda minutes: timedelta(seconds=patience)
    cfg, arch = config(), load_arch("unet")
    specs = arch.param_specs(cfg)
    backend = torch_backend.make_backend(torch_backend_ops(), arch, cfg, specs, init_params(specs, 1), torch_backend.start_process())
    rows = batches()[0][rank * 4 : (rank + 1) * 4]
    backend.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)()
    if rank == 1:
        if fault == "hangs":
            time.sleep(60)
        os._exit(1)
    begin = time.perf_counter()
    try:
        backend.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)()
    except RuntimeError as error:
        results.put((time.perf_counter() - begin, str(error)))
        time.sleep(0.5)


@pytest.fixture(scope="module")
def spawn():
    """A function (target, world, *arguments) -> results of all ranks that put one; ranks are forked from a server that has torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "trit.train.torch_backend", "model_fixtures", "test_sharded"])

    def run(target, world, answers, *arguments):
        results, port = context.Queue(), free_ports(1)[0]
        ranks = [context.Process(target=target, args=(rank, world, port, results, *arguments)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        try:
            return [results.get(timeout=120) for _ in range(answers)]
        finally:
            for rank in ranks:
                rank.kill()

    return run


def by_rank(found):
    return [answer[1:] for answer in sorted(found, key=lambda answer: answer[0])]


def test_four_and_eight_ranks_equal_one(spawn):
    """Three layers: no number of matrices of one shape divides by four or eight."""
    whole = by_rank(spawn(train_rank, 1, 1))[0]
    matrices = [spec for spec in load_arch("unet").param_specs(config()) if spec.group == "matrix"]
    assert whole[2] == sum(np.prod(spec.shape) for spec in matrices)
    for world in (4, 8):
        seen = by_rank(spawn(train_rank, world, world))
        for state, results, count in seen:
            assert np.allclose(results, whole[1], atol=1e-5)
            assert (
                largest_difference({n: x for n, x in state.items() if n != "step"}, {n: x for n, x in whole[0].items() if n != "step"})
                <= 1e-5
            )
            assert all(np.array_equal(array, seen[0][0][name]) for name, array in state.items())
            padded = sum(-(-len(group) // world) * np.prod(group[0].shape) for group in stacks(matrices).values())
            assert count == padded < whole[2]


@pytest.mark.parametrize("fault", ["leaves", "hangs"])
def test_a_lost_rank_ends_the_others_in_time(spawn, fault):
    [(seconds, message)] = spawn(failing_rank, 2, 1, 8, fault)
    assert seconds < 40 and any(word in message.lower() for word in ("closed", "closure", "timed out", "timeout", "reset")), message


def test_ctrl_c_on_one_rank_saves_all_of_them(tmp_path, shard_folder):
    """Only rank 1 is told to stop; both end after the same step and rank 0 saves it."""
    settings = TINY | {"iterations": 100000, "log_every": 1, "data_path": shard_folder, "tokenizer_path": "byte260"}
    settings |= {"out_path": tmp_path / "run"}
    command = [sys.executable, str(ROOT / "train_gpt.py")] + [f"{key}={value}" for key, value in settings.items()]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(command, env=common | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        for rank in range(2)
    ]
    try:
        for line in ranks[0].stdout:
            if line.startswith("step:3/"):
                break
        ranks[1].send_signal(signal.SIGINT)
        told = [rank.communicate(timeout=60)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all("stopped; the state is saved" in text for text in told), told
    assert load_checkpoint(tmp_path / "run" / "checkpoint.npz")[2] >= 3
