"""What the counted code costs: python -m trit.report.code_bytes configs/ternary_10x768.toml [key=value ...]

Prints the counted file's size, the bytes of every definition, and those of every feature: the feature is switched the other way, the
file bundled again, and the difference shown. Needs no data and no training. Sizes of features are those under brotli, which packs in an
instant; mixing makes them about a tenth smaller.
"""

import ast

import brotli

from trit.bundle.bundle import bundle, byte_report, shaken_text
from trit.bundle.emit import minified
from trit.bundle.messages import number_messages
from trit.config_load import load, with_overrides
from trit.console import Parser, command, counted

# What switches each feature on, and off.
FEATURES = {
    "n-gram memory": (["eval.ngram_order=5"], ["eval.ngram_order=0"]),
    "EvalEngram": (["eval.eval_engram_buckets=4096"], ["eval.eval_engram_buckets=0"]),
    "test-time training": (["eval.ttt_scope=lora"], ["eval.ttt_scope=none"]),
    "temperature": (["eval.fit_temperature=true"], ["eval.fit_temperature=false"]),
    "calibration": (["compress.calibration_evals=48", "compress.calibration_seconds=1"], ["compress.calibration_evals=0"]),
    "training": (["eval.evaluation_only=false"], ["eval.evaluation_only=true"]),
    "compile": (["train.compile=true"], ["train.compile=false"]),
    "bfloat16": (["train.compute_dtype=bfloat16"], ["train.compute_dtype=float32"]),
    "8-bit products": (["train.fp8=true", "quant.bitnet_group_size=65536"], ["train.fp8=false"]),
    "FlashAttention": (["train.attention_kernel=flash", "train.compute_dtype=bfloat16"], ["train.attention_kernel=sdpa"]),
    "full-precision phase": (["quant.full_precision_fraction=0.2"], ["quant.full_precision_fraction=0"]),
    "moving average": (["train.ema_decay=0.99"], ["train.ema_decay=0"]),
    "row norm of Muon": (["train.muon_row_norm=true"], ["train.muon_row_norm=false"]),
    "gradient clipping": (["train.grad_clip_norm=1"], ["train.grad_clip_norm=0"]),
    "engram": (["engram.engram_buckets=4096"], ["engram.engram_buckets=0"]),
    "XSA": (["model.xsa_layers=1"], ["model.xsa_layers=0"]),
    "value residual": (["model.value_residual=true"], ["model.value_residual=false"]),
    "isolated documents": (["model.isolate_documents=true"], ["model.isolate_documents=false"]),
}


def quick_size(config):
    """Bytes of a configuration's shortened code under brotli, without the wrapper."""
    tree = ast.parse(shaken_text(config))
    number_messages(tree)
    return len(brotli.compress(minified(tree).encode()))


def feature_rows(config):
    """[(feature, "on" or "off", bytes it costs, or would cost)], dearest first. What the configuration forbids is left out."""
    base, rows = quick_size(config), []
    for name, (on, off) in counted(FEATURES.items(), "features", len(FEATURES), " builds"):
        try:
            is_on = with_overrides(config, off) != config
            other = quick_size(with_overrides(config, off if is_on else on))
        except ValueError:
            continue
        rows.append((name, "on" if is_on else "off", base - other if is_on else other - base))
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def report(config, codecs=("brotli", "mixing")):
    """(the whole report as lines of text, its facts for programs)."""
    built = bundle(config, codecs=codecs)
    features, definitions = feature_rows(config), byte_report(built)
    lines = [f"counted file: {len(built.wrapped)} bytes, of {built.sizes['source']} of shortened text", "", "bytes by feature"]
    for name, state, size in features:
        lines.append(f"{size:7}  {name}" + ("" if state == "on" else " (off; this is what it would cost)"))
    lines += ["", "bytes by definition", *(f"{size:7}  {name}" for name, size in definitions)]
    facts = {
        "counted_file": len(built.wrapped),
        "shortened_text": built.sizes["source"],
        "features": [{"name": name, "state": state, "bytes": size} for name, state, size in features],
        "definitions": [{"name": name, "bytes": size} for name, size in definitions],
    }
    return lines, facts


def main(arguments=None):
    """Command line of this module."""
    parser = Parser(prog="python -m trit.report.code_bytes", description=__doc__, answers=True)
    parser.add_argument("config", help="preset, for example configs/ternary_10x768.toml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the preset's")
    options = parser.parse_args(arguments)
    with command(options.json) as answer:
        lines, facts = report(load(options.config, None, options.overrides)[0])
        print("\n".join(lines))
        answer |= facts


if __name__ == "__main__":
    main()
