"""One training of a study in a process of its own: python -m trit.study.job FOLDER, which holds job.json and gets record.json.

The file `lock` is locked as long as the process lives, so that no two of them do the same work; exit code BUSY says that one does.
A training on several GPUs goes on under torchrun, each of whose ranks runs this with --rank.
"""

import fcntl
import json
import sys
import time
from pathlib import Path

import numpy as np

import trit.train.run
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params, parameter_count
from trit.study.files import BUSY, become_ranks, write_json
from trit.submission import compressed, find_calibration, load_artifact, score_arrays
from trit.train import torch_backend
from trit.train.log import RunLog


def counting(backend):
    """(`backend`, the list that gets the number of tokens of every step it takes on this rank)."""
    taken = []

    def step(inputs, *others):
        taken.append(inputs.size)
        return backend.step(inputs, *others)

    return backend._replace(step=step), taken


def check_devices(job, process):
    """Exits where a training that asks for GPUs found none: on a CPU it would take days, and be compared with others that do not."""
    if job.get("gpus") and process.device == "cpu":
        sys.exit(f"error: the study says gpus = {job['gpus']} and PyTorch sees no GPU here; see nvidia-smi and torch.cuda.is_available()")


def run_job(folder):
    """Train, calibrate, pack, reload and score the settings of `folder`/job.json -> (record, this process's rank)."""
    job = json.loads((folder / "job.json").read_text())
    if job["clock"] == "cpu":
        trit.train.run.wall_clock = lambda: time.process_time() / job["threads"]
    process = torch_backend.start_process()
    check_devices(job, process)
    config, run, _ = load(job["preset"], environ={}, overrides=job["settings"], world_size=process.world)
    arch, log = load_arch(config.model.name), RunLog(process.rank, folder)
    specs = arch.param_specs(config)
    backend, taken = counting(torch_backend.make_backend(torch_ops, arch, config, specs, init_params(specs, job["seed"]), process))
    result = trit.train.run.run_training(config, specs, backend, run.data_path, job["seed"], log, None, lambda *state: None)
    arrays, tokens = backend.export(), process.world * sum(taken[-result.steps :])  # steps of the warm-up stand first
    record = {
        "name": job["name"],
        "seed": job["seed"],
        "steps": result.steps,
        "seconds": round(result.seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / result.seconds),
        "skipped": result.skipped,
        "parameters": parameter_count(specs),
        "settings": job["settings"],
    }
    if process.rank == 0:
        write_json(folder / "trained.json", {"steps": result.steps, "seconds": result.seconds, "loss": result.loss})
    if not job["score"]:
        if process.rank == 0:
            np.savez(folder / "weights.npz", **arrays)
        return record, process.rank
    calibration = find_calibration(torch_ops, torch_backend, arch, config, process, arrays, run.data_path, log)
    _, data = compressed(torch_ops, torch_backend, arch, config, process, arrays, calibration, run.data_path, log)
    loaded, begin = load_artifact(torch_ops, arch, config, data), time.perf_counter()
    score, _ = score_arrays(torch_ops, torch_backend, arch, config, process, loaded, run.data_path, run.tokenizer_path, log)
    record |= {
        "bpb": score.bpb,
        "bytes_code": job["bytes_code"],
        "bytes_model": len(data),
        "bytes_total": job["bytes_code"] + len(data),
        "cap_bytes": config.track.cap_bytes,
        "eval_seconds": round(time.perf_counter() - begin, 1),
    }
    return record, process.rank


def train_here(folder):
    """`run_job`, whose record the first rank writes."""
    record, rank = run_job(folder)
    if rank == 0:
        write_json(folder / "record.json", record)


def main():
    """Run the training of a folder unless it has its record; exit BUSY where another process is at it."""
    folder = Path(sys.argv[-1])
    if "--rank" in sys.argv:
        return train_here(folder)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(BUSY)
        if not (folder / "record.json").exists():
            gpus = json.loads((folder / "job.json").read_text()).get("gpus", 0)
            for name in ("trained.json", "metrics.jsonl"):
                (folder / name).unlink(missing_ok=True)  # of a training that was killed
            if gpus > 1:
                become_ranks("trit.study.job", folder, gpus, [lock])
            train_here(folder)


if __name__ == "__main__":
    main()
