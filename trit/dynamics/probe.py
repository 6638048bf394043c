"""Probes of a relaxation on the checkpoint of a run: python -m trit.dynamics.probe RUN_FOLDER [--only NAME ...] [--report FILE.html]

Model and weights are those that the checkpoint holds, nothing is guessed; the texts are training tokens that no batch had. Probes:
  trace         residuals over thousands of steps     spectrum      modes of every token, longest stable step
  arnoldi       the whole Jacobian against them       continuation  how modes go with attention's gain, and what fails
  rates         step lengths                          solvers       evaluations that solvers take
  cosines       gradients against each other          nudge         strength and length of the nudged phase
  asymmetry     how far J is from its transpose       history       what the run's log says, step by step
How to read them: docs/equilibrium.md.
"""

from trit.console import Parser, command, counted, say
from trit.data.files import atomic_write
from trit.dynamics.probe_finding import as_text
from trit.dynamics.probe_gradients import Bench, cosines_probe, nudge_probe
from trit.dynamics.probe_history import history_probe
from trit.dynamics.probe_modes import arnoldi_probe, asymmetry_probe, continuation_probe, spectrum_probe
from trit.dynamics.probe_operator import open_run
from trit.dynamics.probe_show import page, pictures
from trit.dynamics.probe_trace import rates_probe, solvers_probe, trace_probe

PROBES = ("trace", "spectrum", "arnoldi", "continuation", "rates", "solvers", "cosines", "nudge", "asymmetry", "history")


def probed(operator, folder, names, steps, done=lambda finding: None):
    """[Finding] of the probes `names`, in the order of PROBES; each goes to `done` at once."""
    found, trace, bench = [], None, None
    for name in counted([name for name in PROBES if name in names], "probes", len(names), "probes"):
        if name == "trace":
            finding, trace = trace_probe(operator, steps)
        elif name == "spectrum":
            finding = spectrum_probe(operator, trace)
        elif name in ("cosines", "nudge"):
            bench = bench or Bench(operator)
            finding = {"cosines": cosines_probe, "nudge": nudge_probe}[name](operator, bench)
        elif name == "history":
            finding = history_probe(folder, operator.rate)
        else:
            finding = {
                "arnoldi": arnoldi_probe,
                "continuation": continuation_probe,
                "rates": rates_probe,
                "solvers": solvers_probe,
                "asymmetry": asymmetry_probe,
            }[name](operator)
        found.append(finding)
        done(finding)
    return found


def main(arguments=None):
    """Command line of this module; exit 1 with one line where the folder holds no such run."""
    parser = Parser(prog="python -m trit.dynamics.probe", description=__doc__, answers=True)
    parser.add_argument("run", help="folder of a run of model.name=equilibrium, such as runs/demo")
    parser.add_argument("--only", nargs="+", choices=PROBES, metavar="NAME", help="these probes alone")
    parser.add_argument("--texts", type=int, default=4, help="texts to look at")
    parser.add_argument("--tokens", type=int, default=0, help="tokens of each; by default a training window, at most 64")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the trace")
    parser.add_argument("--data", help="folder of the shards, where it is not the one the run names")
    parser.add_argument("--pictures", metavar="FOLDER", help="write each probe's charts there as PNG files")
    parser.add_argument("--report", metavar="FILE", help="write one HTML page that needs no network")
    options = parser.parse_args(arguments)
    with command(options.json) as answer:
        if options.steps < 4:
            raise ValueError(f"--steps {options.steps}: a trace takes at least 4")
        operator, step = open_run(options.run, options.texts, options.tokens, options.data)
        texts, tokens, width = operator.shape
        say(
            f"{options.run}: step {step}, {texts} texts of {tokens} tokens, width {width}, {operator.cfg.arch.relax_steps} steps of {operator.rate:g}"
        )
        found = probed(operator, options.run, options.only or PROBES, options.steps, lambda finding: say(as_text(finding)))
        answer |= {"run": options.run, "step": step, "texts": texts, "tokens": tokens, "width": width}
        answer |= {"relax_steps": operator.cfg.arch.relax_steps, "relax_rate": operator.rate}
        answer |= {finding.name: {"words": finding.words, **finding.numbers} for finding in found}
        files = []
        if options.pictures:
            files += pictures(found, options.pictures)
        if options.report:
            about = [("trained", f"{step} steps", ""), ("texts", f"{texts} of {tokens} tokens", "training text that no batch had")]
            about += [
                (
                    "relaxation",
                    f"{operator.cfg.arch.relax_steps} steps of {operator.rate:g}",
                    f"leak {operator.cfg.arch.leak:g}, width {width}",
                )
            ]
            atomic_write(options.report, page(f"Probes of {options.run}", about, found).encode("utf-8"))
            files.append(options.report)
        if files:
            say("")
        for path in files:
            say(str(path))
        answer["files"] = [str(path) for path in files]


if __name__ == "__main__":
    main()
