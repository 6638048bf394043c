"""Coverage-guided fuzzing of the artifact reader: pip install atheris, then python -m benchmarks.fuzz_artifact --seconds 3600

Every input is read as an artifact of one of four configurations (entropy coder alone, storable scales, other coders, storages in the
file): as it is, or after its header and checksum were made right, as a hostile writer would. A refusal must be a PackError; whatever is
accepted must be storable again. libFuzzer stops at a crash, at an input that takes a second, or at 512 MB. Its process is renewed every
30,000 executions, because atheris keeps some 6 kB of each (the reader alone keeps none). The corpus stays in --corpus (default runs/fuzz),
so that a later run goes on; further arguments go to libFuzzer.
"""

import argparse
import hashlib
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import atheris

with atheris.instrument_imports(include=["trit"]):
    from trit.compress.layouts import PackError
    from trit.compress.pack import PACK_VERSION, check_tensor, pack, spec_fingerprint, stored_specs, unpack
    from trit.compress.quantize import QuantTensor, group_layout, scale_table
    from trit.console import move, say, shares
    from trit.params import ParamSpec

import numpy as np

SPECS = (
    ParamSpec("w", (6, 50), group="matrix", scheme="ternary", bits=2, group_size=16),
    ParamSpec("e", (24, 8), group="embed", scheme="int", bits=2, group_size=24),
    ParamSpec("g", (20,), "constant", 1.0, "scalar", "int", 6, 20),
    ParamSpec("s", (12,), group="scalar", group_size=12),
)
SETTINGS = tuple(
    SimpleNamespace(
        quant=SimpleNamespace(scale_steps=steps, scalar_bits=16, embed_bits=4, engram_bits=4, matrix_scheme="ternary"),
        compress=SimpleNamespace(coders=coders, allocate=allocate),
    )
    for steps, coders, allocate in ((0, "entropy", False), (8, "entropy", False), (8, "all", False), (0, "all", True))
)
RUNS = 30_000


def valid_artifact(cfg, seed):
    """An honest artifact of SPECS."""
    generator, tensors = np.random.default_rng(seed), {}
    for spec in SPECS:
        if spec.scheme == "fp16":
            tensors[spec.name] = QuantTensor(generator.standard_normal(spec.shape).astype(np.float16), None)
            continue
        groups, size, padding = group_layout(spec)
        codes = generator.integers(-1, 2, (groups, size)).astype(np.int8)
        if padding:
            codes[3::4, 2:] = 0
        tensors[spec.name] = QuantTensor(codes, scale_table(8)[generator.integers(60, 90, (groups, 1))])
    return pack(cfg, SPECS, tensors)


def read(data):
    """One execution: byte 0 says which configuration; where the file then begins with S its header is made right."""
    if not data:
        return
    cfg, data = SETTINGS[data[0] % len(SETTINGS)], data[1:]
    try:
        if data[:1] == b"S" and len(data) > 21:
            body = data[21:]
            specs = stored_specs(cfg, SPECS, data)
            head = struct.pack("<4sB8s", b"TRIT", PACK_VERSION, spec_fingerprint(cfg, specs))
            data = head + hashlib.sha256(head + body).digest()[:8] + body
        specs = stored_specs(cfg, SPECS, data)
        tensors = unpack(cfg, specs, data)
    except PackError:
        return
    for spec in specs:
        check_tensor(spec, tensors[spec.name])


def fuzz(options, rest):
    """libFuzzer in this process, until its runs or seconds are spent; it never returns."""
    limits = [
        f"-max_total_time={options.seconds}",
        f"-runs={RUNS}",
        "-timeout=1",
        "-rss_limit_mb=512",
        "-max_len=2048",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], options.corpus, *limits, *rest], read)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--corpus", default="runs/fuzz")
    parser.add_argument("--one", action="store_true", help="one process only (what the command starts again and again)")
    options, rest = parser.parse_known_args()
    if options.one:
        fuzz(options, rest)
    corpus, total, begin = Path(options.corpus), 0, time.monotonic()
    corpus.mkdir(parents=True, exist_ok=True)
    for number, cfg in enumerate(SETTINGS):
        for seed in range(3):
            data = valid_artifact(cfg, seed)
            for name, start in (("raw", data[:21]), ("sealed", b"S" + bytes(20))):
                (corpus / f"seed_{number}_{seed}_{name}").write_bytes(bytes([number]) + start + data[21:])
    with shares("fuzzing") as bar:
        while (left := options.seconds - (time.monotonic() - begin)) > 1:
            command = [
                sys.executable,
                "-m",
                "benchmarks.fuzz_artifact",
                "--one",
                "--seconds",
                str(int(left)),
                "--corpus",
                options.corpus,
                *rest,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            found = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", done.stderr)}
            if done.returncode or not found:
                sys.exit(
                    f"{done.stderr[-3000:]}\nfound after {total:,} executions: the input lies in this folder as crash-*, timeout-* or oom-*"
                )
            total += found["number_of_executed_units"]
            coverage = re.findall(r"cov: (\d+)", done.stderr)[-1]
            say(
                f"{total:,} executions in {time.monotonic() - begin:.0f} s, coverage {coverage}, slowest {found['slowest_unit_time_sec']} s, "
                f"peak memory {found['peak_rss_mb']} MB",
            )
            move(bar, (time.monotonic() - begin) / options.seconds)
    print(f"no crash, no input over a second, none over 512 MB in {total:,} executions and {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
