"""Train and score a list of variants at equal cost and equal bytes: python -m trit.study STUDY.toml [--jobs 2] [--out FOLDER]

Writes FOLDER (runs/<study's name> by default), one folder a variant and seed, then the table, and with --plot the picture. Started
again it goes on where it stopped, also after kill -9; started twice on a shared folder, the two take turns. What a study file may say
stands in trit/study/plan.py.

--on says where: `local`, processes of this machine; `slurm`, a job array (pip install submitit; FOLDER must be shared by the nodes; Ctrl-C
cancels it, and a command that was killed or hung up finds its jobs again); `ray`, any number of machines (pip install ray; each has this
repository and the data, FOLDER need not be shared).
"""

import sys
from pathlib import Path

from trit.console import Parser, command
from trit.data.files import atomic_write
from trit.report.page.study import read_results, study_page
from trit.study.engines import make_engine
from trit.study.live import display
from trit.study.plan import read_study
from trit.study.pool import prepare, run_jobs
from trit.study.report import draw, records_of, table


def run(study, out, options, lines):
    """Trains what has no record yet -> [folder] of what failed."""
    engine = make_engine(study, out, options)
    try:
        folders = prepare(study, out, options.only, engine)
        # What was compared with what stands beside the results, for whoever reads them.
        atomic_write(out / Path(options.study).name, Path(options.study).read_bytes())
        return run_jobs(folders, engine, display(study, out, len(folders), lines))
    finally:
        engine.close()


def main():
    """Command line of this module: exit 1 where a training failed."""
    parser = Parser(prog="python -m trit.study", description=__doc__, answers=True)
    parser.add_argument("study", help="TOML file of variants")
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--on", choices=("local", "slurm", "ray"), default="local", help="where the trainings run")
    parser.add_argument("--jobs", type=int, help="trainings that run at once: 1 on this machine, elsewhere as many as there is room for")
    parser.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE", help="what sbatch is told, such as partition=gpu account=me time=120 (minutes)"
    )
    parser.add_argument("--address", help="ray cluster, HOST:PORT or auto; without it one is started on this machine")
    parser.add_argument("--root", help="folder of this repository on ray's machines, where it is another than here")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="variants to run")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--plot", metavar="FILE", help="draw the variants against the first one (.png or .svg)")
    parser.add_argument("--report", metavar="FILE", help="write the page of python -m trit.report.page, an HTML file that stands alone")
    options = parser.parse_args()
    with command(options.json, "stopped; the same command goes on from here", also=RuntimeError) as answer:
        study = read_study(options.study)
        out = Path(options.out or f"runs/{study.name}")
        # What programs read on standard output stays theirs.
        failed = [] if options.table else run(study, out, options, sys.stderr if options.json else sys.stdout)
        records = records_of(study, out)
        answer |= {"study": study.name, "folder": out, "records": records, "failed": failed}
        if study.score:
            print(table(study, records))
        if options.plot:
            draw(study, records, options.plot)
        if options.report:
            atomic_write(options.report, study_page(read_results(out)).encode())
    for folder in failed:
        print(f"failed: {folder}, see {folder}/train.log", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
