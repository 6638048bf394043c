"""What the planner expects against what trained models weigh: python -m benchmarks.planned configs/studies/planner.toml [--json]

Takes the trained weights that `python -m trit.study STUDY` left in runs/<study>/, packs them, and compares: the plan without any
weights, its guaranteed bound, and the live prediction from a sample of the weights. Exit 1 where a plan is off by more than half a
percent or a bound is exceeded.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from trit.compress.pack import pack
from trit.compress.plan import plan
from trit.compress.quantize import quantize
from trit.compress.sizes import category_bytes, predicted_bytes, sizes
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.study.plan import read_study


def compared(name, config, arrays):
    """One row: packed bytes, plan and live prediction over them, whether the bound holds, bytes by category planned and packed."""
    specs = load_arch(config.model.name).param_specs(config)
    tensors = quantize(torch_ops, config, specs, {n: torch_ops.from_numpy(array) for n, array in arrays.items()}, {})
    data = pack(config, specs, tensors)
    made = plan(config, specs, 0)
    bound, expected = made.model_bytes()
    planned = {}
    for row in made.rows:
        planned[row.category] = planned.get(row.category, 0) + row.expected
    packed = category_bytes(sizes(config, specs, tensors, data))
    return {
        "name": name,
        "packed": len(data),
        "planned_over_packed": round(expected / len(data), 4),
        "live_over_packed": round(predicted_bytes(torch_ops, config, specs, arrays) / len(data), 4),
        "bound_holds": len(data) <= bound,
        "bound": bound,
        "categories": {category: (planned[category], size) for category, size in packed.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--weights", help="folder of the trained weights, runs/<study> by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    study = read_study(options.study)
    folder, rows = Path(options.weights or f"runs/{study.name}"), []
    for variant in study.variants:
        weights = folder / variant.name / str(study.seeds[0]) / "weights.npz"
        if weights.exists():
            config, _, _ = load(study.preset, environ={}, overrides=study.settings(variant))
            rows.append(compared(variant.name, config, dict(np.load(weights))))
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print("| shape | packed bytes | planned / packed | live / packed | bound |\n|---|---|---|---|---|")
        for row in rows:
            figures = f"{row['packed']:,} | {row['planned_over_packed']:.4f} | {row['live_over_packed']:.4f}"
            print(f"| {row['name']} | {figures} | {row['bound']:,} {'holds' if row['bound_holds'] else 'EXCEEDED'} |")
    good = all(row["bound_holds"] and abs(row["planned_over_packed"] - 1) <= 0.005 for row in rows)
    sys.exit(0 if good and rows else 1)


if __name__ == "__main__":
    main()
