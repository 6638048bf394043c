"""The speed benchmarks: FLOP and roofline against hand counts, tables, phases, a peer's script run beside ours, the trainer's profile."""

import gzip
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from model_fixtures import random_tokens, start, tiny_config

from benchmarks import speed_cpu, speed_gpu
from benchmarks.speed import SHAPES, build, flops_per_token, products, roofline, roofline_table, shape_settings
from benchmarks.speed_measure import Phases, sorted_phases
from benchmarks.speed_peer import adapted, alternate, fastest, ours, peer, write_tokens
from trit.train.log import Log
from trit.train.torch_profile import SUMMARY, TRACE, with_profile

ROOT = Path(__file__).resolve().parent.parent
ROUND = {"bfloat16": 1e12, "float8": 2e12, "float32": 5e11, "memory": 1e12, "link": 1e11, "host": 1e10}
# A trainer of nobody's, as a script: one step line every 20 ms.
SCRIPT = """import sys, time
if CUDA: sys.exit("CUDA is required")
for step in range(1, 9):
    time.sleep(DELAY)
    print(f"step:{step}/8 train_loss:1.0 train_time:{step * 20}ms step_avg:20.00ms", flush=True)
"""
EDITS = {"always": [("CUDA:", "False:", 1)], "slow": [("DELAY", "0.01", 1), ("* 20}", "* 40}", 1)], "fast": [("DELAY", "0.01", 1)]}


def test_flops_are_those_of_a_hand_count():
    config, _, specs = build(shape_settings("tiny", 64, 256))
    # 2 layers of 64 channels, keys of 2 heads of 16: qkv 64 x 128, output 64 x 64, MLP 64 x 128 twice; adapters 64 x 32 twice; head 256 x 32.
    matrices = 2 * (64 * 128 + 64 * 64 + 2 * 64 * 128) + 2 * 64 * 32 + 256 * 32
    assert sum(rows * columns for _, rows, columns in products(specs)) == matrices
    assert flops_per_token(config, specs) == 6 * matrices + 6 * 2 * 64 * 64


def test_roofline_is_that_of_a_hand_count():
    config, _, specs = build(shape_settings("tiny", 64, 256) + ["train.compute_dtype=bfloat16", "model.value_residual=false"])
    rows = {(row.phase, row.name): row for row in roofline(config, specs, machine=ROUND)}
    matrices = 2 * (64 * 128 + 64 * 64 + 2 * 64 * 128) + 2 * 64 * 32 + 256 * 32
    forward = rows["forward", "matrix products"]
    sides = 2 * (64 + 128 + 64 + 64 + 64 + 128 + 128 + 64) + 2 * (64 + 32) + (256 + 32)
    assert forward.flop == 2 * 256 * matrices and forward.bytes == 2 * (matrices + 256 * sides)
    assert rows["backward", "matrix products"].flop == 2 * forward.flop
    # Each token meets on average half of 64 others in two products of 64 channels.
    assert rows["forward", "attention"].flop == 2 * 256 * (2 * 2 * 64 * 64 // 2)
    # 11 widths of stream, heads (64 + 32) read and written, hidden 128 read and written.
    assert rows["forward", "elementwise"].bytes == 2 * 2 * 256 * (11 * 64 + 2 * 96 + 2 * 128)
    assert rows["forward", "elementwise"].ms == pytest.approx(1000 * rows["forward", "elementwise"].bytes / 1e12)
    assert rows["forward", "cross-entropy"].bytes == 2 * 256 * 256
    # Three products of 64 x 128 in each of three iterations: x x^T and its square times x cost 2 * 64 * 64 * 128, the square 2 * 64^3.
    wide, square = 3 * (4 * 64 * 64 * 128 + 2 * 64**3), 3 * 6 * 64**3
    adapters = 3 * (4 * 32 * 32 * 64 + 2 * 32**3)
    assert rows["optimiser", "Newton-Schulz"].flop == 2 * (3 * wide + square) + 2 * adapters
    assert ("communication", "gradients") not in rows
    total = sum(int(np.prod(spec.shape)) for spec in specs)
    many = {row.phase: row for row in roofline(config, specs, 4, ROUND)}
    assert many["communication"].bytes == 4 * total * 1.5 and many["communication"].ms == pytest.approx(many["communication"].bytes / 1e8)
    assert "MFU" in roofline_table(rows.values(), 256, flops_per_token(config, specs), 1e12)


def test_shapes_span_what_the_tables_promise():
    counts = {name: sum(int(np.prod(spec.shape)) for spec in build(shape_settings(name, 512, 512))[2]) for name in SHAPES}
    for name, millions in (("1m", 1), ("5m", 5), ("23m", 23), ("67m", 67), ("120m", 120)):
        assert abs(counts[name] / 1e6 / millions - 1) < 0.1, name
    for length in (512, 8192):
        build([*shape_settings("67m", length, length), "train.compile=true"])


def test_phases_follow_autograd_and_collectives():
    spans = [
        ("data", 1),
        ("forward", 2),
        ("backward", 4),
        ("after", 8),
        ("backward", 16),
        ("after", 32),
        ("communication", 64),
        ("after", 128),
    ]
    assert list(sorted_phases(spans).values()) == [1, 10, 20, 160, 64]
    phases = Phases("cpu")
    cfg = tiny_config(grad_accum_steps=2)
    backend, tokens = start(cfg), random_tokens(cfg, 4, 32)
    with phases.watching():
        for _ in range(2):
            phases.enter("forward")
            backend.step(tokens, tokens, 1.0, True, False)
            phases.enter(None)
    assert [mark for mark, _ in phases.marks].count("backward") == 4
    for step in phases.steps():
        assert step["forward"] > 0 and step["backward"] > 0 and step["optimiser"] > 0 and step["communication"] == 0
    # Waiting for a collective that was only begun is communication too.
    phases, begun = Phases("cpu"), SimpleNamespace(wait=lambda: time.sleep(0.3))
    phases.enter("forward")
    phases.within(lambda: begun, "communication")().wait()
    phases.enter(None)
    (step,) = phases.steps()
    assert step["communication"] > 290 > step["forward"]


def test_tables_and_json_come_out(tmp_path, capsys):
    speed_gpu.main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "gpu.json")])
    assert "roofline of 67m" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    (row,) = found["rows"]
    assert 0 < row["mfu"] < 1 and row["recompilations"] == 0 and row["peak_mib"] > 50
    assert sum(row[phase] for phase in ("data", "forward", "backward", "optimiser")) == pytest.approx(row["step_ms"], rel=0.5)
    assert sum(one["ms"] for one in found["roofline"]["float8"]) < sum(one["ms"] for one in found["roofline"]["bfloat16"])


def test_a_peer_runs_beside_ours_and_a_changed_script_is_refused(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with pytest.raises(ValueError, match="2 times"):
        adapted(SCRIPT + "CUDA:", EDITS, [])
    said = []
    slow, fast = (peer(name, script, EDITS, [name], {}, tmp_path) for name in ("slow", "fast"))
    broken = peer("broken", script, EDITS, [], {}, tmp_path)
    assert fastest([broken, slow, fast], 2, said.append) == fast and "failed" in said[0]
    rows = alternate([slow, fast], 2, 2, 100, said.append)
    assert [row["ratio"] for row in rows] == [1.0, 2.0] and rows[1]["tokens_per_second"] == 5000


def test_our_trainer_runs_as_a_contender(tmp_path):
    write_tokens(tmp_path, 256, 4096, 64)
    settings = [*shape_settings("tiny", 64, 256), "train.iterations=6", "train.log_every=1", f"data_path={tmp_path}"]
    (row,) = alternate([ours("ours", settings, tmp_path)], 1, 2, 256, print)
    assert row["step_ms"] > 0 and row["peak_mib"] > 50
    assert {*speed_cpu.ROWS} < {(name, length) for name in SHAPES for length in (512, 2048, 8192)}


KEEPING = """import sys; import numpy as np; from trit.launch import keep_freed_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4 // 1024
keep_freed_memory() if sys.argv[1] == "keep" else None
arrays = [np.ones(4 << 20) for _ in range(4)]
del arrays
print(resident())"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switches are glibc's")
def test_the_trainer_keeps_the_memory_that_a_step_frees():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", KEEPING, how], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for how in ("keep", "give")
    )
    assert kept - given_back > 100  # of 128 MiB


def test_profile_leaves_a_trace_and_a_summary(tmp_path):
    cfg = tiny_config()
    tokens, lines, log = random_tokens(cfg, 4, 32), [], Log()
    log.line = lines.append
    backend = with_profile(start(cfg), tmp_path, 1, log)
    for _ in range(6):
        assert len(backend.step(tokens, tokens, 1.0, True, False)()) == 2
    assert "traceEvents" in json.loads(gzip.open(tmp_path / TRACE).read())
    assert "aten::" in (tmp_path / SUMMARY).read_text() and len(lines) == 1
    command = [sys.executable, str(ROOT / "train_gpt_mlx.py"), "--profile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "--profile needs PyTorch" in done.stderr
