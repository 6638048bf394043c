"""Room on the clock for what comes after training: run.fit_clock times one compression of untrained weights before the clock starts and ends
training earlier by it. A constant would be too much on a fast machine and too little on a slow or busy one."""

import numpy as np

from trit.build import compress_run
from trit.config_load import with_overrides
from trit.train.log import Log

SAFETY = 2.0  # trained weights take longer to pack than untrained ones, and a machine may get busier
SPARE_SECONDS = 2.0  # a step that is under way when the time is up


def with_room(library, config, process, arrays, data_path, log):
    """`config` whose train.max_wallclock_seconds, the preset's at most, leaves compression of the untrained `arrays` its time of
    track.train_seconds here; the same on all ranks. ValueError where nothing would be left."""
    if not config.track.train_seconds:
        raise ValueError("run.fit_clock=true needs a limit to fit to: set track.train_seconds, or leave run.fit_clock off")
    _, _, seconds = compress_run(library, config, dict(arrays), data_path, Log(rank=1))  # which adds what it fits
    taken = float(library.backend.total_over_ranks(np.array([seconds]), process)[0]) / process.world
    left = round(config.track.train_seconds - SAFETY * taken - SPARE_SECONDS, 1)
    if left <= 0:
        raise ValueError(
            f"run.fit_clock: one compression took {taken:.1f}s here, of track.train_seconds={config.track.train_seconds:g}; nothing is left "
            "to train in: lower compress.calibration_evals or compress.calibration_seconds, or take a faster machine"
        )
    clock = min(left, config.train.max_wallclock_seconds)
    log.line(f"fit_clock: compression takes {taken:.1f}s here; training may take {clock:g}s of {config.track.train_seconds:g}s")
    return with_overrides(config, [f"train.max_wallclock_seconds={clock}"])
