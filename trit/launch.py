"""The command line that both training entries share: settings -> plan -> training -> checkpoint. Errors are one line with the mend."""

import contextlib
import ctypes
import dataclasses
import json
import math
import os
import signal
import sys
import traceback
import warnings
from types import SimpleNamespace

from trit.bars import training
from trit.compress.live import with_prediction
from trit.compress.plan import budget_table, check_plan, plan
from trit.config_load import describe, load, run_folder, save, with_overrides
from trit.console import INTERRUPTED, Parser, above_bars, command
from trit.data.firewall import Firewall, validation_files
from trit.data.manifest import check_vocabulary
from trit.library import load_library
from trit.models import load_arch
from trit.params import init_params
from trit.train.checkpoint import load_checkpoint, save_checkpoint
from trit.train.log import RunLog
from trit.train.monitor import KINDS, monitored, monitored_kinds
from trit.train.probe import with_probe
from trit.train.run import run_training
from trit.watchdog import Watchdog, watched


def prepare_run(options, overrides, world):
    """(config, run, text of the resolved settings, run folder, resumed state or None), all checked before any device work."""
    config, run, origins = load(options.config, os.environ, overrides, world)
    folder = run_folder(run)
    resumed = None
    if run.resume:
        before, *resumed = load_checkpoint(folder / "checkpoint.npz")
        if run.fit_clock:
            config = with_overrides(config, [f"train.max_wallclock_seconds={before.train.max_wallclock_seconds}"])
        if before != config:
            raise ValueError(f"{folder}/checkpoint.npz has other settings than this command; resume with those of {folder}/config.json")
    check_vocabulary(run.data_path, config.model.vocab_size)
    return config, run, describe(config, run, origins), folder, resumed


def stoppable(backend):
    """`backend` that answers a Ctrl-C or SIGTERM to any of several ranks by stopping all of them after the same step: the clock they
    share becomes infinite. A rank alone is interrupted where it is."""
    if backend.world == 1:
        return backend
    asked = []

    def ask(*_):
        if asked:
            raise KeyboardInterrupt  # asked twice: now, wherever this rank is
        asked.append(True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return backend._replace(slowest=lambda seconds: backend.slowest(math.inf if asked else seconds))


def keep_freed_memory():
    """Let the C library keep what a step frees for the next step: pages given back to the system and faulted in again cost a
    CPU's step more than some of its arithmetic (docs/LOG.md). True where the library is glibc, which alone has the two switches."""
    trim_threshold, mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))
    return False


def launch(arguments, text, library, with_profile=None, with_compile_report=None):
    """Train with the array library of that name. `text` is the help of the command; exits non-zero on a user's mistake.

    `with_profile(backend, folder, first, log)` gives the backend that records steps for --profile, and `with_compile_report(backend, cfg,
    log)` the one that reports on its compiler, where the array library has one.
    """
    parser = Parser(description=text, answers=True)
    parser.add_argument("--config", help="preset, for example configs/demo.toml")
    parser.add_argument("--profile", action="store_true", help="record a few steps after the start in the run folder: trace and summary")
    parser.add_argument("--stall-seconds", type=float, default=600.0, help="end the run where no step ends for so long; 0 never does")
    parser.add_argument(
        "--monitor",
        default=",".join(KINDS),
        metavar="KINDS",
        help="records of metrics.jsonl beside the steps', of these kinds (default: all), or none",
    )
    options, overrides = parser.parse_known_args(arguments)
    keep_freed_memory()
    # Schedulers and pods end a run with SIGTERM: it saves like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with command(options.json) as answer:
        answer |= trained(options, overrides, load_library(library), with_profile, with_compile_report)


def trained(options, overrides, library, with_profile, with_compile_report):
    """Train what the command line says -> what --json prints of it, nothing on other ranks than the first."""
    process, saved, ops = SimpleNamespace(rank=0, world=1), [], library.ops
    # Nothing opens it again: a run that reads validation text, at any point, ends with the place that asked.
    firewall = Firewall().close()
    try:
        if options.profile and not with_profile:
            raise ValueError("--profile needs PyTorch: python train_gpt.py --profile; for MLX see mx.metal.start_capture and Xcode")
        kinds = monitored_kinds(options.monitor)
        process = library.backend.start_process()
        config, run, settings, folder, resumed = prepare_run(options, overrides, process.world)
        firewall.protect(*validation_files(run.data_path))
        arch = load_arch(config.model.name)
        specs = arch.param_specs(config)
        made = plan(config, specs, config.compress.code_bytes_reserve)
        with warnings.catch_warnings(record=True) as doubts:
            check_plan(made, config.track.cap_bytes)
        folder.mkdir(parents=True, exist_ok=True)
        log = above_bars(RunLog(process.rank, folder, keep=run.resume))
        arrays = init_params(specs, run.seed)
        if run.fit_clock and not resumed:
            from trit.fit_clock import with_room  # the build takes half a second to import

            config = with_room(library, config, process, arrays, run.data_path, log)
        if process.rank == 0:
            save(config, folder / "config.json")
            (folder / "run.json").write_text(json.dumps(dataclasses.asdict(run)) + "\n")
        log.line("\n".join([settings, budget_table(made, config.track.cap_bytes), *(f"note: {doubt.message}" for doubt in doubts)]))

        def save_state(*state):
            if process.rank == 0:
                save_checkpoint(folder / "checkpoint.npz", config, *state)
            saved.append(folder)

        backend = library.backend.make_backend(ops, arch, config, specs, arrays, process)
        if with_compile_report and "compile" in kinds:
            backend = with_compile_report(backend, config, log)
        if options.profile:
            # After compilation and the first steps on the clock.
            backend = with_profile(backend, folder, config.train.warmup_steps + 5, log)
        backend = with_probe(backend, ops, arch, config, specs, log)
        backend = with_prediction(stoppable(backend), ops, config, specs, log)
        say_stalled = log.line if process.rank == 0 else print
        begun = resumed[1] if resumed else 0
        with (
            monitored(backend, config, log, kinds, begun, process.device) as backend,
            training(backend, config, begun) as backend,
            Watchdog(options.stall_seconds, say_stalled) as watchdog,
        ):
            result = run_training(config, specs, watched(backend, watchdog), run.data_path, run.seed, log, resumed, save_state)
        firewall.ensure_unread()
    except KeyboardInterrupt:
        where = (
            f"the state is saved in {saved[-1]}. Continue with the same command and resume=true"
            if saved
            else "there was nothing to save yet"
        )
        print(f"\nstopped; {where}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except RuntimeError as fault:
        if process.world == 1:
            raise
        traceback.print_exc()
        sys.exit(
            f"error: rank {process.rank} of {process.world} cannot go on ({type(fault).__name__}). Where it says that a connection was "
            "closed or timed out, another rank failed or hangs: its own message comes earlier, or its process is gone"
        )
    log.line(f"validation_firewall:closed files:{len(validation_files(run.data_path))} accesses:0")
    log.line(f"checkpoint: {folder}/checkpoint.npz; next: python build_submission.py --run {folder} --dce")
    if process.rank:
        return {}
    return {"folder": folder, "checkpoint": folder / "checkpoint.npz"} | result._asdict()
