"""Turn a training run into a verified record: python build_submission.py --run runs/demo --dce
Or plan before training: python build_submission.py --plan --config configs/demo.toml [--fit engram_buckets] [key=value ...]

Calibrates, quantises, packs, reloads, scores, bundles, certifies what the counted file does when run alone, and files the record.
Any failed check ends with a non-zero exit and says what to do; an unknown one says what would settle it. The last line is the record's
folder.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from trit.bundle.bundle import ALL_CODECS, QUICK_CODECS
from trit.compress.plan_report import plan_report
from trit.config import RunArgs
from trit.report.leaderboard import write_leaderboard
from trit.report.record import result_rows, verdict_line
from trit.train.log import Log


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of the training run, for example runs/demo")
    parser.add_argument("--plan", action="store_true", help="print the bytes a configuration will take, without weights, and stop")
    parser.add_argument("--config", help="preset to plan, for example configs/demo.toml")
    parser.add_argument("--fit", default="", metavar="SETTING", help="with --plan: find the largest value of a setting under the cap")
    parser.add_argument(
        "--dce", action="store_true", help="specialise and tree-shake the counted file (without it, the whole package is wrapped)"
    )
    parser.add_argument(
        "--quick-start", action="store_true", help="pack the code without mixing: a tenth larger, starts some four seconds sooner"
    )
    parser.add_argument(
        "--backend",
        default="torch",
        help="array library of the counted file: torch (the contest's machines) or mlx (Macs); either may have trained",
    )
    parser.add_argument("--name", help="name of the record; the run's name by default")
    parser.add_argument("--records", default="records", help="where records are filed")
    parser.add_argument("--author", default="trit")
    parser.add_argument("--github-id", default="")
    parser.add_argument("--blurb", default="A small ternary language model, trained, packed and certified by trit.")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of eval and compress that differ from the run's; any with --plan"
    )
    options = parser.parse_args(arguments)
    try:
        if options.plan:
            text, fits = plan_report(options.config, options.overrides, options.fit, os.environ)
            print(text)
            return sys.exit(0 if fits else 1)
        from trit.build import build  # a plan answers at once; torch takes seconds to import

        folder = Path(options.run or "")
        if not (folder / "run.json").exists():
            raise ValueError(f"{folder} is not a training run (no run.json); train first: python train_gpt.py --config configs/demo.toml")
        run = RunArgs(**json.loads((folder / "run.json").read_text()))
        about = {"author": options.author, "github_id": options.github_id, "blurb": options.blurb}
        log = Log()
        codecs = QUICK_CODECS if options.quick_start else ALL_CODECS
        name = options.name or run.run_id
        built = build(folder, run, options.overrides, options.dce, name, options.records, about, log, codecs, options.backend)
    except (ValueError, RuntimeError, OSError) as fault:
        sys.exit(f"error: {fault}")
    submission = built.submission
    print("\ncertificate")
    for item in built.checks:
        print(f"  {item.verdict:8}{item.name}: {item.evidence}")
    print(f"  {verdict_line(built.checks)}")
    print("\nresult")
    for what, measured in result_rows(submission):
        print(f"  {what.replace('`', ''):<52}{measured}")
    if built.folder is None:
        names = ", ".join(item.name for item in built.checks if item.verdict == "fail")
        sys.exit(f"error: no record was filed, because of: {names}. The evidence stands above; mend it and build again")
    write_leaderboard(options.records)
    print(f"its page: python -m trit.report.page {built.folder} --run {folder}")
    print(built.folder)


if __name__ == "__main__":
    main()
