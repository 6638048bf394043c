"""One training of a study in a process of its own: python -m trit.study.job FOLDER, which holds job.json and gets record.json.

The file `lock` is locked as long as the process lives, so that no two of them do the same work; exit code BUSY says that one does.
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
from trit.study.files import BUSY, write_json
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


def run_job(folder):
    """Train, calibrate, pack, reload and score the settings of `folder`/job.json -> record."""
    job = json.loads((folder / "job.json").read_text())
    if job["clock"] == "cpu":
        trit.train.run.wall_clock = lambda: time.process_time() / job["threads"]
    config, run, _ = load(job["preset"], environ={}, overrides=job["settings"])
    arch, process, log = load_arch(config.model.name), torch_backend.start_process(), RunLog(0, folder)
    specs = arch.param_specs(config)
    backend, taken = counting(torch_backend.make_backend(torch_ops, arch, config, specs, init_params(specs, job["seed"]), process))
    result = trit.train.run.run_training(config, specs, backend, run.data_path, job["seed"], log, None, lambda *state: None)
    arrays, tokens = backend.export(), sum(taken[-result.steps :])  # steps of the warm-up stand first
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
    if not job["score"]:
        np.savez(folder / "weights.npz", **arrays)
        return record
    calibration = find_calibration(torch_ops, torch_backend, arch, config, process, arrays, run.data_path, log)
    _, data = compressed(torch_ops, torch_backend, arch, config, process, arrays, calibration, run.data_path, log)
    loaded, begin = load_artifact(torch_ops, arch, config, data), time.perf_counter()
    score, _ = score_arrays(torch_ops, torch_backend, arch, config, process, loaded, run.data_path, run.tokenizer_path, log)
    return record | {
        "bpb": score.bpb,
        "bytes_code": job["bytes_code"],
        "bytes_model": len(data),
        "bytes_total": job["bytes_code"] + len(data),
        "cap_bytes": config.track.cap_bytes,
        "eval_seconds": round(time.perf_counter() - begin, 1),
    }


def main():
    """Run the training of a folder unless it has its record; exit BUSY where another process is at it."""
    folder = Path(sys.argv[1])
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(BUSY)
        if not (folder / "record.json").exists():
            write_json(folder / "record.json", run_job(folder))


if __name__ == "__main__":
    main()
