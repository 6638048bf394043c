"""What each part of the evaluator gains and costs: python -m benchmarks.evaluation --run RUN [--text held_out] NAME:key=value,... ...

Example: python -m benchmarks.evaluation --run runs/english plain:eval.eval_stride=256 sliding: ngram:eval.ngram_order=5
Scores the run's packed and reloaded weights once under each variant, on the validation text or, to choose settings, on the
held-out slice of the training text. The first variant is evaluated again at the end: the ratio of its two times says how steady
the machine was. Lines are appended to --log as they come, with every loss counted, none chosen.
"""

import argparse
import json
import time

import numpy as np

from benchmarks.trained import load_trained
from trit.config_load import with_overrides
from trit.data.byte_count import byte_table
from trit.data.loader import calibration_tokens, validation_tokens
from trit.data.manifest import resolve_tokenizer
from trit.eval.score import score_tokens, summarise
from trit.eval.temperature import fit_sharpness
from trit.ops import torch_ops
from trit.train.torch_backend import evaluator, start_process


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--text", choices=("validation", "held_out"), default="validation")
    parser.add_argument("--tokens", type=int, default=0, help="only the first so many tokens of the text; 0 is all of it")
    parser.add_argument("--log", help="file that the result lines are appended to, as JSON")
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()
    config, run, arch, loaded = load_trained(options.run)
    tokens = (validation_tokens if options.text == "validation" else calibration_tokens)(config, run.data_path)
    tokens = tokens[: options.tokens or len(tokens)]
    table = byte_table(resolve_tokenizer(run.data_path, run.tokenizer_path), config.model.vocab_size)
    first = None
    for variant in [*options.variants, options.variants[0]]:
        name, _, settings = variant.partition(":")
        changed = with_overrides(config, [item for item in settings.split(",") if item])
        arrays = dict(loaded)
        if changed.eval.fit_temperature:
            rows = evaluator(torch_ops, arch, config, loaded, start_process()).rows
            fitted = fit_sharpness(rows, calibration_tokens(config, run.data_path)[:16384], config.train.train_seq_len)
            arrays["sharpness"] = np.float32([np.float16(fitted[0])])
        model = evaluator(torch_ops, arch, changed, arrays, start_process())
        begin = time.perf_counter()
        losses, counts, _ = score_tokens(torch_ops, arch, changed, model, tokens)
        seconds = time.perf_counter() - begin
        score = summarise(losses, counts, tokens, table)
        first = first or (score.bpb, seconds)
        print(
            f"{name:<28}{score.bpb:.4f} bits/byte  {score.bpb / first[0]:.4f}  {seconds:7.1f} s  {seconds / first[1]:.2f}  {settings}",
            flush=True,
        )
        if options.log:
            quarters = [round(float(part.mean()), 5) for part in np.array_split(losses, 4)]
            line = {"run": options.run, "text": options.text, "name": name, "settings": settings, "bpb": score.bpb, "seconds": seconds}
            with open(options.log, "a") as file:
                file.write(json.dumps({**line, "tokens": score.tokens, "loss_by_quarter": quarters}) + "\n")


if __name__ == "__main__":
    main()
