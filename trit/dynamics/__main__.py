"""Dense associative memories at work: python -m trit.dynamics {xor,hamming,parity,settling} [--plot FILE] [--json]

Prints a table; with --plot also draws trajectories and energies (.png or .svg; needs matplotlib). Times are in units of tau_v. What the
tasks are and what they show stands in docs/energy.md.
"""

from trit.console import Parser, command, progress
from trit.dynamics.parity import SPLITS, Setting, parity_row
from trit.dynamics.pictures import draw_hamming, draw_parity, draw_settling, draw_xor
from trit.dynamics.tasks import HAMMING_BETA, XOR_BETA, hamming_table, settling_table, xor_table

TASKS = ("xor", "hamming", "parity", "settling")


def cell(value):
    """A value of a table as text."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        more = f" and {len(value) - 2} more" if len(value) > 3 else ""
        return " ".join(map(str, value[: 2 if more else 3])) + more or "-"
    return "-" if value is None else str(value)


def printed(rows):
    """Rows of one kind as a table with their names above."""
    names = list(rows[0])
    cells = [[name.replace("_", " ") for name in names], *([cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths)).rstrip())


def parity_rows(options):
    """(rows of the splits that were asked for, weights of the first)."""
    kinds = [options.split] if options.split else list(SPLITS)
    settings = [Setting(options.iterations, options.gain, options.positions, seed, options.step) for seed in range(options.seeds)]
    found, first = [], None
    with progress("training", len(kinds) * len(settings) * options.iterations, "step") as bar:
        for kind in kinds:
            for setting in settings:
                row, weights = parity_row(kind, setting, bar.update, not options.brief)
                first = weights if first is None else first
                found.append(row)
    return found, first


def main():
    """Command line of this module."""
    defaults = Setting()
    parser = Parser(prog="python -m trit.dynamics", description=__doc__, answers=True)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--plot", metavar="FILE", help="draw trajectories and energies into FILE")
    parser.add_argument("--seeds", type=int, default=1, help="parity and settling: so many seeds, from 0 on")
    parser.add_argument("--split", choices=SPLITS, help="parity: one split alone")
    parser.add_argument("--positions", type=float, default=defaults.positions, help="parity: size of learned positions; 0 is none")
    parser.add_argument("--gain", type=float, default=defaults.gain, help="parity: largest gain of the memory, below 1")
    parser.add_argument("--iterations", type=int, default=defaults.iterations, help="parity: steps of training")
    parser.add_argument(
        "--step", type=float, default=defaults.step, help="parity: length of a training's 20 explicit steps (tau_v), below 2"
    )
    parser.add_argument("--brief", action="store_true", help="parity: leave the full circuit out")
    options = parser.parse_args()
    with command(options.json) as answer:
        if not 0 < options.gain < 1:
            raise ValueError(f"--gain {options.gain} leaves the energy without a lower bound; choose a number between 0 and 1")
        if not 0 < options.step < 2:
            raise ValueError(f"--step {options.step} may raise the energy; choose a number between 0 and 2")
        if options.seeds < 1 or options.iterations < 1:
            raise ValueError("--seeds and --iterations must be 1 or more")
        if options.task == "xor":
            rows = xor_table()
        elif options.task == "hamming":
            rows = hamming_table()
        elif options.task == "settling":
            rows = settling_table(seeds=range(options.seeds))
        else:
            rows, weights = parity_rows(options)
        answer |= {"task": options.task, "rows": rows}
        printed(rows)
        if options.plot:
            if options.task == "xor":
                draw_xor(options.plot, XOR_BETA)
            elif options.task == "hamming":
                draw_hamming(options.plot, HAMMING_BETA)
            elif options.task == "settling":
                draw_settling(options.plot, rows)
            else:
                draw_parity(options.plot, weights, rows[0]["split"], rows[0]["seed"])
            print(f"{options.plot} drawn")


if __name__ == "__main__":
    main()
