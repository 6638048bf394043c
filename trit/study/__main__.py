"""Train and score a list of variants at equal cost and equal bytes: python -m trit.study STUDY.toml [--jobs 2] [--out FOLDER]

Writes FOLDER (runs/<study's name> by default), one folder a variant and seed, then the table, and with --plot the picture. Started
again it goes on where it stopped, also after kill -9; started twice on a shared folder, the two take turns. What a study file may say
stands in trit/study/plan.py.
"""

import sys
from pathlib import Path

from trit.console import Parser, command
from trit.study.plan import read_study
from trit.study.pool import prepare, run_jobs
from trit.study.report import draw, records_of, table


def main():
    parser = Parser(prog="python -m trit.study", description=__doc__, answers=True)
    parser.add_argument("study", help="TOML file of variants")
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings that run at once on this machine")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="variants to run")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--plot", metavar="FILE", help="draw the variants against the first one (.png or .svg)")
    options = parser.parse_args()
    with command(options.json, "stopped; the same command goes on from here", also=RuntimeError) as answer:
        study = read_study(options.study)
        out = Path(options.out or f"runs/{study.name}")
        failed = [] if options.table else run_jobs(study, prepare(study, out, options.only, options.jobs), out, options.jobs)
        records = records_of(study, out)
        answer |= {"study": study.name, "folder": out, "records": records, "failed": failed}
        if study.score:
            print(table(study, records))
        if options.plot:
            draw(study, records, options.plot)
    for folder in failed:
        print(f"failed: {folder}, see {folder}/train.log", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
