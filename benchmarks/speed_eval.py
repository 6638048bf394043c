"""Time of evaluation forms in alternating rounds: python -m benchmarks.speed_eval [--config FILE] [--peer FILE] [--json FILE] key=value ...

Random weights of a preset's shape and random tokens: no trained run is needed. Every round runs overlapping windows (`strided`), one
pass over a segment (`one_pass`), and the loop of published records (`contest_loop`), which reads out all positions of the same windows
in the same batches. With --peer, a contest training script whose class `GPT` runs in that loop at the same layers, width, heads and
vocabulary. A first round does not count; with eval.eval_compile=true all forms over windows are compiled in it.

Times are divided by the tokens that the windows or segments score in the middle of a long stream: their number times their stride.
On a busy machine believe the seconds of CPU time.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from trit.config_load import load
from trit.eval.score import score_tokens, score_windows
from trit.eval.temperature import model_logits
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.report.record import hardware
from trit.train.torch_backend import evaluator, start_process

# Windows of 1,024 that score 64 tokens each, 16 in a batch; nothing learns beside the model.
SHAPE = [
    "model.yarn_max_len=1024", "train.train_seq_len=1024", "train.train_batch_tokens=1024", "train.max_wallclock_seconds=0",
    "track.track=non_record_16mb", "eval.eval_seq_len=1024", "eval.eval_stride=64", "eval.eval_batch_seqs=16", "eval.ngram_order=0",
    "eval.eval_chunk_tokens=1024", "eval.eval_engram_buckets=0", "eval.ttt_scope=none", "eval.fit_temperature=false",
]  # fmt: skip


def our_form(config, arrays, tokens):
    """A function that scores all of `tokens` by the package's evaluator -> losses (n - 1,)."""
    arch = load_arch(config.model.name)
    model = evaluator(torch_ops, arch, config, arrays, start_process())
    return lambda: score_tokens(torch_ops, arch, config, model, tokens)[0]


def contest_loop(config, tokens, nats):
    """A function that scores all of `tokens` by sliding windows, batch after batch, `nats(inputs, targets)` giving the losses of all
    positions of int64 (B, T) -> losses (n - 1,)."""
    windows = score_windows(config, len(tokens) - 1)
    if config.eval.eval_compile:
        nats = torch.compile(nats, dynamic=False)
    text, size = torch.from_numpy(tokens.astype(np.int64)).to(start_process().device), config.eval.eval_batch_seqs

    @torch.no_grad()
    def score():
        found = torch.zeros(len(tokens) - 1, dtype=torch.float64)
        # The first window alone scores all its positions, as in the package.
        for batch in [windows[:1], *(windows[at : at + size] for at in range(1, len(windows), size))]:
            rows = torch.stack([text[start : start + width + 1] for start, _, width in batch])
            losses = nats(rows[:, :-1], rows[:, 1:]).cpu()
            for (start, first, width), row in zip(batch, losses):
                found[start + first : start + width] = row[first:]
        return found.numpy()

    return score


def own_nats(config, arrays):
    """Losses of all positions of a batch by the package's own forward."""
    arch, device = load_arch(config.model.name), start_process().device
    weights = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return lambda x, y: torch_ops.cross_entropy(model_logits(torch_ops, arch, config, weights, x), y)


def peer_nats(config, path):
    """The same by class `GPT` of a contest script, which gives the mean over all positions: the same work, only not position by position."""
    spec = importlib.util.spec_from_file_location("peer", path)
    module = sys.modules["peer"] = importlib.util.module_from_spec(spec)  # torch.compile looks it up by name
    spec.loader.exec_module(module)
    shape = config.model
    model = module.GPT(
        shape.vocab_size, shape.num_layers, shape.model_dim, shape.num_heads, shape.num_kv_heads, shape.mlp_mult, True,
        shape.embed_init_std, shape.logit_softcap, shape.rope_base, shape.qk_gain_init,
    ).to(start_process().device).eval()  # fmt: skip
    return lambda x, y: model(x, y).expand(x.shape)


def measure(forms, rounds, warm):
    """{name: (losses, [wall-clock seconds], [CPU seconds])} of functions, run in turn."""
    found = {name: (None, [], []) for name in forms}
    for number in range(-warm, rounds):
        for name, score in forms.items():
            begin, cpu = time.perf_counter(), time.process_time()
            losses, walls, cpus = score(), *found[name][1:]
            if number >= 0:
                walls.append(time.perf_counter() - begin)
                cpus.append(time.process_time() - cpu)
                print(f"round {number + 1} {name:<14}{walls[-1]:9.2f} s, of the CPU {cpus[-1]:9.2f} s", flush=True)
            found[name] = losses, walls, cpus
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.toml")
    parser.add_argument("--windows", type=int, default=33, help="overlapping windows of a round")
    parser.add_argument("--segment", type=int, default=8192, help="eval.eval_segment_tokens; a round of one_pass is one segment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", help="a contest training script to compare with")
    parser.add_argument("--json", help="file for the result")
    parser.add_argument("settings", nargs="*", help="further key=value")
    options = parser.parse_args()
    config = load(options.config, {}, SHAPE + options.settings)[0]
    one_pass = replace(config, eval=replace(config.eval, eval_segment_tokens=options.segment, eval_compile=False))
    arrays = init_params(load_arch(config.model.name).param_specs(config), 0)
    width, stride = config.eval.eval_seq_len, config.eval.eval_stride
    new = {"one_pass": options.segment - width}
    long = np.random.default_rng(0).integers(0, config.model.vocab_size, max(options.segment, width + stride * options.windows) + 1)
    text = long[: width + stride * (options.windows - 1) + 1]
    forms = {"strided": our_form(config, arrays, text), "one_pass": our_form(one_pass, arrays, long[: options.segment + 1])}
    forms["contest_loop"] = contest_loop(config, text, own_nats(config, arrays))
    if options.peer:
        forms["peer"] = contest_loop(config, text, peer_nats(config, options.peer))
    found = measure(forms, options.rounds, 1)
    gap = float(np.abs(found["strided"][0] - found["contest_loop"][0]).max())
    assert gap < 1e-3, f"strided windows and the contest's loop differ by {gap} nats"
    times = {
        kind: {name: np.array(found[name][1 + i]) / new.get(name, stride * options.windows) for name in forms}
        for i, kind in enumerate(("wall", "cpu"))
    }
    for name in forms:
        texts = []
        for kind, by_name in times.items():
            middle = statistics.median(by_name[name]) * 1e6
            ratios = by_name["strided"] / by_name[name]
            texts.append(f"{kind} {middle:9.1f} us a token, {statistics.median(ratios):6.2f} times as fast as strided")
        print(f"{name:<14}{';  '.join(texts)}")
    if options.json:
        line = {"config": options.config, "settings": options.settings, "segment": options.segment, "windows": options.windows}
        line |= {"seconds_a_token": {kind: {name: list(x) for name, x in by_name.items()} for kind, by_name in times.items()}}
        line |= {"threads": torch.get_num_threads(), "hardware": hardware(start_process())}
        with open(options.json, "w") as file:
            json.dump(line, file, indent=1)


if __name__ == "__main__":
    main()
