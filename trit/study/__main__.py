"""Train and score a list of variants at equal cost and equal bytes: python -m trit.study STUDY.toml [--jobs 2] [--out FOLDER]

Writes FOLDER (runs/<study's name> by default), one folder a variant and seed, then the table, and with --plot the picture. Started
again it goes on where it stopped, also after kill -9; started twice on a shared folder, the two take turns. What a study file may say
stands in trit/study/plan.py.
"""

import argparse
import json
import sys
from pathlib import Path

from trit.data.files import atomic_write
from trit.study.plan import read_study
from trit.study.pool import prepare, run_jobs
from trit.study.report import draw, records_of, table


def main():
    parser = argparse.ArgumentParser(prog="python -m trit.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="TOML file of variants")
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings that run at once on this machine")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="variants to run")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--json", action="store_true", help="print records instead of a table")
    parser.add_argument("--plot", metavar="FILE", help="draw the variants against the first one (.png or .svg)")
    options = parser.parse_args()
    try:
        study = read_study(options.study)
        out = Path(options.out or f"runs/{study.name}")
        failed = []
        if not options.table:
            folders = prepare(study, out, options.only, options.jobs)
            # What was compared with what stands beside the results, for whoever reads them.
            atomic_write(out / Path(options.study).name, Path(options.study).read_bytes())
            failed = run_jobs(study, folders, out, options.jobs)
        records = records_of(study, out)
        if options.json:
            print(json.dumps(records, indent=1))
        elif study.score:
            print(table(study, records))
        if options.plot:
            draw(study, records, options.plot)
    except (ValueError, ImportError, OSError, RuntimeError) as fault:
        sys.exit(f"error: {fault}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    for folder in failed:
        print(f"failed: {folder}, see {folder}/train.log", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
