"""Another trainer's own script beside ours, on the same tokens: its text is read from where it lies, changed in memory and run from a
temporary folder. Nothing of it is kept here.

An edit is (old text, new text, how often the old one stands there); a script that differs from what the edits were written for is refused.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trit.data.shards import write_shard

ROOT = Path(__file__).resolve().parent.parent
OURS = """import sys; sys.path.insert(0, sys.argv[1])
import torch; from train_gpt import main
main(sys.argv[2:])
print(f"peak memory allocated: {torch.cuda.max_memory_allocated() // 1024 // 1024} MiB")"""
STEP_LINE = re.compile(r"^step:(\d+)/\d+ .*?(?:train_time|\bt):(\d+)ms", re.MULTILINE)

PEER_COLUMNS = {
    "contender": ("contender", "s"),
    "step_ms": ("ms a step", ".1f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "peak_mib": ("peak MiB", ".0f"),
    "ratio": ("speed against the peer", ".2f"),
}

# Where the script asks for a GPU: the same work without one.
NO_GPU = [
    ("if not torch.cuda.is_available():", "if False:", 1),
    ('torch.device("cuda", local_rank)', 'torch.device("cpu")', 1),
    ("torch.cuda.set_device(device)", "pass", 1),
    ("torch.cuda.manual_seed_all(args.seed)", "pass", 1),
    ('device_type="cuda"', 'device_type="cpu"', None),
    ("torch.cuda.synchronize()", "None", None),
    ("torch.cuda.max_memory_allocated()", "0", None),
]
# No tokenizer, no validation, nothing written: training alone.
TRAINING_ALONE = [
    ("sp = spm.SentencePieceProcessor(model_file=args.tokenizer_path)", "sp = None", 1),
    ("sp_vocab_size = int(sp.vocab_size())", "sp_vocab_size = 0", 1),
]
CONTEST = {
    "always": TRAINING_ALONE
    + [
        ("if int(sp.vocab_size()) != args.vocab_size:", "if False:", 1),
        ("should_validate = last_step or (", "should_validate = False and (", 1),
        ("    # SERIALIZATION + ROUNDTRIP VALIDATION\n", "    return\n", 1),
    ],
    # The CPU kernel of fused attention is what torch chooses there; the plain one may stand in for it.
    "cpu": NO_GPU
    + [
        ("torch.cuda.max_memory_reserved()", "0", 1),
        ("enable_math_sdp(False)", "enable_math_sdp(True)", 1),
        ('["nvidia-smi"]', '["true"]', 1),
    ],
    "float32": [
        ("enabled=True", "enabled=False", 3),
        (".to(device).bfloat16()", ".to(device)", 1),
        ("X = G.bfloat16()", "X = G.float()", 1),
        ("dtype=torch.bfloat16)\n\n            curr", "dtype=torch.float32)\n\n            curr", 1),
    ],
    "eager": [
        ("torch.compile(zeropower_via_newtonschulz5)", "zeropower_via_newtonschulz5", 1),
        ("torch.compile(base_model, dynamic=False, fullgraph=True)", "base_model", 1),
    ],
    # It sums eight micro-batches whatever the machine: eight GPUs take one each.
    "one_part": [("grad_accum_steps = 8 // world_size", "grad_accum_steps = 1", 1)],
}
TERNARY = {
    "always": TRAINING_ALONE
    + [
        ("if last_step or (args.val_loss_every > 0 and step % args.val_loss_every == 0):", "if False:", 1),
        (
            "    # --- Serialization ---\n",
            '    log0(f"peak memory allocated: {torch.cuda.max_memory_allocated() // 1024 // 1024} MiB")\n    return\n',
            1,
        ),
    ],
    "cpu": NO_GPU + [(".pin_memory()", "", 1)],
    "eager": [
        ("ns_orth = torch.compile(ns_orth)", "pass", 1),
        ('torch.compile(base_model, mode=args.compile_mode if args.compile_mode != "default" else None)', "base_model", 1),
    ],
    "one_part": [("grad_accum_steps = max(1, 8 // world_size)", "grad_accum_steps = 1", 1)],
    # Where the library of its attention kernel is not installed: torch's own, on the same arguments.
    "torch_attention": [
        (
            "from flash_attn_interface import flash_attn_func\n",
            "def flash_attn_func(q, k, v, causal):\n"
            "    q, k, v = (x.transpose(1, 2) for x in (q, k, v))\n"
            "    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)\n",
            1,
        )
    ],
}


def adapted(text, edits, chosen):
    """`text` of a script after the lists of `edits` named in `chosen`; ValueError where one does not fit."""
    for name in ("always", *chosen):
        for old, new, count in edits[name]:
            found = text.count(old)
            if found != count if count else not found:
                raise ValueError(
                    f"the peer's script has {found} times {old!r}, not {count or 'at least 1'}: adapt the edits {name!r} to it"
                )
            text = text.replace(old, new)
    return text


class Contender(NamedTuple):
    """One trainer with one choice of settings: the command that runs it in its own folder, and environment variables for it. Both
    print the contest's step lines, with milliseconds since the start."""

    name: str
    command: tuple
    environment: tuple
    folder: Path


class Timing(NamedTuple):
    """Median milliseconds a step, and the largest resident memory of the process (and on a GPU what the log says) in MiB."""

    step_ms: float
    peak_mib: float


def write_tokens(folder, vocab_size, count, longest):
    """Shards of uniformly random tokens that both trainers read: `count` to train on, and a short validation split."""
    generator = np.random.default_rng(0)
    for split, size in (("train", count), ("val", 2 * longest)):
        write_shard(Path(folder) / f"fineweb_{split}_000000.bin", generator.integers(0, vocab_size, size))


def peer(name, path, edits, chosen, environment, folder):
    """`Contender` of the script at `path` with the edits `chosen`, written to its own part of the temporary `folder`."""
    place = Path(folder) / name.replace(" ", "_")
    place.mkdir()
    (place / "train.py").write_text(adapted(Path(path).read_text(), edits, chosen))
    return Contender(name, (sys.executable, "train.py"), tuple(environment.items()), place)


def ours(name, settings, folder, program=OURS):
    """`Contender` of this trainer with `key=value` strings; `program` runs a training entry and prints the line on memory that the peers do."""
    place = Path(folder) / name.replace(" ", "_")
    place.mkdir()
    command = sys.executable, "-c", program, str(ROOT), *settings, f"out_path={place}/run"
    return Contender(name, command, (), place)


def run(contender, first, seconds=1800):
    """Run a contender -> `Timing` of the intervals between its log lines from step `first` on. RuntimeError where it fails."""
    kept = ("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # no setting of either trainer
    environment = {name: os.environ[name] for name in kept if name in os.environ} | dict(contender.environment)
    with open(contender.folder / "output.txt", "w+") as output:
        process = subprocess.Popen(contender.command, cwd=contender.folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        end, found = time.monotonic() + seconds, 0
        try:
            while not found and time.monotonic() < end:
                time.sleep(0.2)
                found, status, usage = os.wait4(process.pid, os.WNOHANG)
        finally:
            if not found:
                process.kill()
                found, status, usage = os.wait4(process.pid, 0)
            process.returncode = status  # it is waited for: Popen need not
        output.seek(0)
        text = output.read()
    marks = [(int(step), float(ms)) for step, ms in STEP_LINE.findall(text) if int(step) >= first]
    if status or len(marks) < 2:
        raise RuntimeError(f"{contender.name} ended with status {status}:\n{text[-3000:]}")
    paces = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in zip(marks, marks[1:]) if after[0] > before[0]]
    on_gpu = re.search(r"peak memory allocated: (\d+) MiB", text)
    gpu_mib = float(on_gpu.group(1)) if on_gpu else 0.0
    return Timing(statistics.median(paces), gpu_mib or usage.ru_maxrss / 1024)


def fastest(contenders, first, say):
    """The contender with the shortest step, of one run each; one that fails is left out, said aloud."""
    times = {}
    for contender in contenders:
        try:
            times[contender] = run(contender, first).step_ms
            say(f"  {contender.name:<40}{times[contender]:9.1f} ms a step")
        except RuntimeError as fault:
            say(f"  {contender.name:<40}failed: {str(fault).splitlines()[-1][:100]}")
    return min(times, key=times.get)


def alternate(contenders, rounds, first, tokens, say):
    """Run the contenders in turn, `rounds` times -> rows of `PEER_COLUMNS`. Ratios of speed are to the first one, in the same round."""
    found = {contender.name: [] for contender in contenders}
    for index in range(rounds):
        for contender in contenders:
            found[contender.name].append(run(contender, first))
        say(f"  round {index + 1}: " + "  ".join(f"{name} {timings[-1].step_ms:.1f} ms" for name, timings in found.items()))
    rows, base = [], found[contenders[0].name]
    for name, timings in found.items():
        middle = statistics.median(timing.step_ms for timing in timings)
        ratios = [one.step_ms / timing.step_ms for one, timing in zip(base, timings)]
        peak = max(timing.peak_mib for timing in timings)
        row = {"contender": name, "step_ms": middle, "tokens_per_second": tokens / middle * 1000, "peak_mib": peak}
        rows.append(row | {"ratio": statistics.median(ratios), "ratios": ratios})
    return rows
