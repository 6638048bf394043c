"""How long a variant's training takes beside the first variant's: python -m trit.study.pace FOLDER, whose pace.json holds preset, first
and other settings, and which gets ratio.json.

Both train in turn, a few steps each time and through all phases of their schedules, so that a machine's other work slows both alike.
On a shared machine this ratio and a fixed number of steps compare variants at equal time where no clock could.
"""

import json
import statistics
import sys
from pathlib import Path

from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.study.files import become_ranks, write_json
from trit.train.log import Log
from trit.train.run import run_training
from trit.train.torch_backend import make_backend, start_process

STEPS, ROUNDS = 20, 7


def trainer(preset, settings, seed, process):
    """Function that trains a few steps anew, compiled once -> seconds."""
    fixed = [f"train.iterations={STEPS}", "train.max_wallclock_seconds=0", "track.train_seconds=0"]
    config, run, _ = load(preset, environ={}, overrides=[*settings, *fixed], world_size=process.world)
    arch = load_arch(config.model.name)
    specs = arch.param_specs(config)
    backend = make_backend(torch_ops, arch, config, specs, init_params(specs, seed), process)
    return lambda: run_training(config, specs, backend, run.data_path, seed, Log(rank=1), None, lambda *state: None).seconds


def main():
    """Print {ratio, rounds}: seconds of the other settings over seconds of the first, the median and every round."""
    folder = Path(sys.argv[-1])
    said = json.loads((folder / "pace.json").read_text())
    if said.get("gpus", 0) > 1 and "--rank" not in sys.argv:
        become_ranks("trit.study.pace", folder, said["gpus"])
    process = start_process()
    both = [trainer(said["preset"], said[name], 1, process) for name in ("first", "other")]
    for train in both:
        train()
    ratios = []
    for turn in range(ROUNDS):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        seconds = {place: both[place]() for place in order}
        ratios.append(seconds[1] / seconds[0])
    if process.rank == 0:
        write_json(folder / "ratio.json", {"ratio": statistics.median(ratios), "rounds": [round(ratio, 4) for ratio in ratios]})


if __name__ == "__main__":
    main()
