"""Two ranks are one, on gloo with torch and on a ring with MLX: same loss and parameters as one process on the same global batch,
one stream in two parts, one verdict on a step.

Run as a script, this file is one rank: it trains and writes what it saw to the folder it is given.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from model_fixtures import BACKENDS, evaluating, largest_difference, load_arch, random_arrays, random_tokens, tiny_config

from trit.data.shards import write_shard
from trit.eval.score import score_tokens
from trit.eval.temperature import artifact_specs
from trit.params import init_params
from trit.train.log import Log
from trit.train.run import run_training

SETTINGS = {"iterations": 6, "engram_buckets": 64, "ema_decay": 0.9, "ema_start_fraction": 0.3, "grad_accum_steps": 2, "log_every": 2}
POISONED_STEP = 4
EVALUATED = ("plain", "ngram", "scales", "all", "one_pass")


def train_here(side, cfg, process, data_path):
    """Train with step POISONED_STEP spoilt on the last rank -> (final state, [(loss, norm)], [inputs], seconds agreed on)."""
    arch, calls, seen, results = load_arch("unet"), [], [], []

    def forward(ops, p, cfg, tokens):
        stream, auxiliary = arch.forward(ops, p, cfg, tokens)
        spoilt = len(calls) == POISONED_STEP and process.rank == process.world - 1
        return stream * float("nan") if spoilt else stream, auxiliary

    specs = arch.param_specs(cfg)
    backend = side.module.make_backend(
        side.ops, SimpleNamespace(forward=forward, readout=arch.readout), cfg, specs, init_params(specs, 1), process
    )

    def step(inputs, targets, *rest):
        calls.append(1)
        seen.append(inputs)
        wait = backend.step(inputs, targets, *rest)
        results.append(wait())
        return wait

    run_training(cfg, specs, backend._replace(step=step), data_path, 1, Log(1), None, lambda *state: None)
    return backend.state(), results, np.array(seen), backend.slowest(float(process.rank + 1))


def score_here(side, cfg, process, state):
    """Losses of a text summed over ranks, each of which scores its own rows."""
    arrays = {name.removeprefix("p/"): array for name, array in state.items() if name.startswith("p/")}
    rows = random_tokens(cfg, 4, 33)
    losses = np.zeros((4, 32))
    mine = slice(process.rank * 4 // process.world, (process.rank + 1) * 4 // process.world)
    losses[mine] = side.module.evaluator(side.ops, load_arch("unet"), cfg, arrays, process).losses(rows[mine, :-1], rows[mine, 1:])
    return side.module.total_over_ranks(losses, process)


def evaluate_here(side, part, process):
    """Losses of a text under the evaluator part EVAL_SETS[part], every rank taking its share."""
    cfg, arch = evaluating("unet", part), load_arch("unet")
    model = side.module.evaluator(side.ops, arch, cfg, random_arrays(artifact_specs(arch, cfg)), process)
    return score_tokens(side.ops, arch, cfg, model, random_tokens(cfg, 1, 401)[0] % 9, None, (5, 300))


def main(backend, folder):
    """One rank."""
    side = BACKENDS[backend]
    process = side.module.start_process()
    cfg = tiny_config(warmup_steps=0, **SETTINGS)
    state, results, seen, slowest = train_here(side, cfg, process, folder)
    found = {"seen": seen, "results": np.array(results), "slowest": slowest, "scores": score_here(side, cfg, process, state)}
    for part in EVALUATED:
        losses, counts, rows = evaluate_here(side, part, process)
        found |= {f"losses/{part}": losses, f"counts/{part}": counts, f"rows/{part}": rows}
    np.savez(Path(folder) / f"rank{process.rank}.npz", **state, **found)


def free_ports(count):
    """Ports nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def meeting_point(backend, folder, rank, ports):
    """Environment in which a rank finds its peers: what torchrun and mlx.launch set."""
    if backend == "torch":
        return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    (folder / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    return {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(folder / "hosts.json")}


@pytest.fixture(scope="module", params=list(BACKENDS))
def ranks(request, tmp_path_factory):
    """(backend, data folder, [what rank 0 saw, what rank 1 saw])."""
    folder, ports = tmp_path_factory.mktemp(request.param), free_ports(2)
    write_shard(folder / "tiny_train_000000.bin", np.random.default_rng(0).integers(0, 64, 4000))
    root = Path(__file__).resolve().parents[1]
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, request.param, str(folder)]
    environments = [common | meeting_point(request.param, folder, rank, ports) for rank in range(2)]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for environment in environments]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    return BACKENDS[request.param], str(folder), [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]


def weights(saw):
    return {name: array for name, array in saw.items() if name.startswith(("p/", "ema/", "optimizer/"))}


def test_both_ranks_hold_the_same_state_bit_for_bit(ranks):
    left, right = ranks[2]
    assert all(np.array_equal(left[name], right[name]) for name in weights(left))
    assert np.array_equal(left["results"], right["results"], equal_nan=True)


def test_two_ranks_equal_one(ranks):
    side, data_path, (saw, _) = ranks
    cfg = tiny_config(warmup_steps=0, **SETTINGS)
    process = side.module.Process(0, 1, "cpu")
    state, results, _, _ = train_here(side, cfg, process, data_path)
    assert np.allclose(results, saw["results"], atol=1e-5, equal_nan=True)
    # A rounding threshold may fall either way where a sum is taken in another order; everything before that agrees to 1e-5.
    assert largest_difference({n: x for n, x in state.items() if n != "step"}, weights(saw)) <= 1e-5
    assert np.allclose(score_here(side, cfg, process, state), saw["scores"], atol=1e-5)


def test_ranks_partition_the_stream(ranks):
    side, data_path, (left, right) = ranks
    _, _, whole, _ = train_here(side, tiny_config(warmup_steps=0, **SETTINGS), side.module.Process(0, 1, "cpu"), data_path)
    assert np.array_equal(np.concatenate([left["seen"], right["seen"]], 1), whole)


def test_a_step_spoilt_on_one_rank_is_skipped_by_both(ranks):
    for saw in ranks[2]:
        finite = np.isfinite(saw["results"][:, 1])
        assert finite.tolist() == [i != POISONED_STEP - 1 for i in range(6)]
        assert saw["step"] == 5


def test_ranks_agree_on_the_slowest_clock(ranks):
    assert [float(saw["slowest"]) for saw in ranks[2]] == [2.0, 2.0]
    assert all(np.array_equal(saw["scores"] > 0, np.ones((4, 32), bool)) for saw in ranks[2])


@pytest.mark.parametrize("part", EVALUATED)
def test_one_and_two_ranks_score_alike_bit_for_bit(ranks, part):
    """There is no segment start: every rank's memories and adapted weights have learned from all that was scored before."""
    side, _, seen = ranks
    losses, counts, rows = evaluate_here(side, part, side.module.Process(0, 1, "cpu"))
    assert (counts == 1).all()
    for saw in seen:
        assert (saw[f"counts/{part}"] == 1).all() and (saw[f"losses/{part}"] == losses).all() and (saw[f"rows/{part}"] == rows).all()


if __name__ == "__main__":
    main(*sys.argv[1:])
