"""Turn a training run into a verified record: python build_submission.py --run runs/demo --dce
Or plan before training: python build_submission.py --plan --config configs/demo.toml [--fit engram_buckets] [key=value ...]

Calibrates, quantises, packs, reloads, scores, bundles, certifies what the counted file does when run alone, and files the record.
Any failed check ends with a non-zero exit and says what to do; an unknown one says what would settle it. The last line is the record's
folder.
"""

import json
import os
import sys
from pathlib import Path

from trit.bundle.bundle import ALL_CODECS, QUICK_CODECS
from trit.compress.plan_report import plan_report
from trit.config import RunArgs
from trit.console import Parser, above_bars, command
from trit.report.leaderboard import write_leaderboard
from trit.report.record import result_rows, verdict_counts, verdict_line
from trit.train.log import Log


def main(arguments=None):
    parser = Parser(description=__doc__, answers=True)
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
    with command(options.json, "stopped; nothing was filed, and the run is as it was", also=RuntimeError) as answer:
        if options.plan:
            report = plan_report(options.config, options.overrides, options.fit, os.environ)
            print(report.text)
            answer |= report.facts
            sys.exit(0 if report.fits else 1)
        build_and_file(options, answer)


def build_and_file(options, answer):
    """Build what the command line says; `answer` gets what --json prints of it. ValueError where a check failed."""
    from trit.build import build  # a plan answers at once; torch takes seconds to import

    folder = Path(options.run or "")
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not a training run (no run.json); train first: python train_gpt.py --config configs/demo.toml")
    run = read_run(folder / "run.json")
    about = {"author": options.author, "github_id": options.github_id, "blurb": options.blurb}
    log = above_bars(Log())
    codecs = QUICK_CODECS if options.quick_start else ALL_CODECS
    name = options.name or run.run_id
    built = build(folder, run, options.overrides, options.dce, name, options.records, about, log, codecs, options.backend)
    answer |= {"summary": verdict_counts(built.checks), **built._asdict()}
    print("\ncertificate")
    for item in built.checks:
        print(f"  {item.verdict:8}{item.name}: {item.evidence}")
    print(f"  {verdict_line(built.checks)}")
    print("\nresult")
    for what, measured in result_rows(built.submission):
        print(f"  {what.replace('`', ''):<52}{measured}")
    if built.folder is None:
        names = ", ".join(item.name for item in built.checks if item.verdict == "fail")
        raise ValueError(f"no record was filed, because of: {names}. The evidence stands above; mend it and build again")
    write_leaderboard(options.records)
    print(f"its page: python -m trit.report.page {built.folder} --run {folder}")
    print(built.folder)


def read_run(path):
    """`RunArgs` of a training run."""
    try:
        return RunArgs(**json.loads(path.read_text()))
    except (ValueError, TypeError) as fault:
        raise ValueError(f"{path} is damaged ({fault}); train again, or give another run") from None


if __name__ == "__main__":
    main()
