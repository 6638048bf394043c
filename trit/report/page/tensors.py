"""What a record's page says of its tensors: round trip and calibration, trits, the engram. In: `Facts`. Out: markup."""

import math

from trit.report.page import reading
from trit.report.page.known import fixed, middle, numbers
from trit.report.page.parts import absent, charts, folded, note, table
from trit.report.page.svg import Line, bar_rows, dot_rows, e, line_chart

NEGATIVE, ZERO, POSITIVE = 0, 6, 4
MOST_ROWS = 96  # of a chart that has one row a tensor
PER_CHART = 24


def shown_tensors(tensors):
    """The tensors a chart has room for, the largest if not all, in the order of the model; and words on that."""
    kept = {t.name for t in sorted(tensors, key=lambda t: -t.count)[:MOST_ROWS]}
    words = f"the {MOST_ROWS} largest of {len(tensors)}; all are in the table" if len(tensors) > MOST_ROWS else ""
    return [t for t in tensors if t.name in kept], words


def tensor_section(known):
    """Round trip and calibration tensor by tensor."""
    if not known.opened:
        return absent(f"The artifact was not opened: {known.faults.get('artifact')}.")
    large = [t for t in known.tensors if t.count >= 256 and not math.isnan(t.ideal)]
    shown, words = shown_tensors(large)
    rows = [(t.name, [(0, t.bits, "dot"), (1, t.ideal, "ring")], f"{t.bits:.3f} / {t.ideal:.3f}") for t in shown]
    remark = "as coded, and the entropy of the codes one by one; the coder also learns rows and columns, so it can go below"
    figures = [
        dot_rows(
            "Bits a weight" + f", {i // PER_CHART + 1}" * (len(rows) > PER_CHART),
            rows[i : i + PER_CHART],
            "bits",
            remark,
            [(0, "coded"), (1, "entropy")],
            0.0,
        )
        for i in range(0, len(rows), PER_CHART)
    ]
    rounding = [(t.name, [(2, t.error, "dot")], f"{100 * t.error:.1f} %") for t in shown if not math.isnan(t.error)]
    figures += [
        dot_rows(
            "Error of rounding", rounding[i : i + PER_CHART], "share of the weights' RMS", "trained weights against stored ones", (), 0.0
        )
        for i in range(0, len(rounding), PER_CHART)
    ]
    compared = [t for t in known.tensors if t.differing >= 0]
    if compared:
        wrong = [t for t in compared if t.differing]
        line = f"{len(compared) - len(wrong)} of {len(compared)} tensors: the checkpoint's weights, rounded once, give the stored numbers bit for bit."
        text = f"<p>{e(line)}</p>"
    elif known.run:
        text = absent(f"Not compared with the trained weights: {known.faults.get('rounding')}.")
    else:
        text = note("With --run RUN_FOLDER the stored numbers are compared with the trained weights, and the rule of each tensor is found.")
    text += "".join(
        f"<p class=note>{e(line)}</p>"
        for curve in known.curves
        for line in curve.said
        if line.startswith(("calib", "temper", "prun", "alloc"))
    )
    quant = reading.part(known.settings, "quant", dict)
    steps = reading.number(quant, "scale_steps")
    text += note(
        f"Settings: dead zone {reading.number(quant, 'ternary_threshold'):g} of a group's mean magnitude, scale {str(quant.get('ternary_scale'))[:20]}, "
        f"{f'{steps:g} scales a doubling' if steps else 'scales of 16 bits'}. Smallest, median and largest scale are of the tensor's groups."
    )
    heads = (
        "tensor",
        "shape",
        "stored as",
        "numbers",
        "bytes",
        "bits each",
        "entropy",
        "scales' bytes",
        "smallest",
        "median",
        "largest",
        "rule",
        "differing",
        "error",
    )
    lines = [
        (t.name, "×".join(map(str, t.shape)), t.kind, f"{t.count:,}", f"{t.code_bytes:,}", f"{t.bits:.3f}", fixed(t.ideal, 3), f"{t.scale_bytes:,}",
         *(f"{value:.3g}" for value in t.scales or ()), *("-" * (0 if t.scales else 3)), t.rule or "-", t.differing if t.differing >= 0 else "-", fixed(t.error, 4))
        for t in known.tensors
    ]  # fmt: skip
    return text + charts(figures) + folded(f"All {len(lines)} tensors", table(heads, lines, (0, 1, 2, 11)))


def trit_section(known):
    """Shares of -1, 0 and +1 of every ternary tensor, and how many change while training."""
    ternary, text, figures = [t for t in known.tensors if t.shares], "", []
    legend = [(NEGATIVE, "-1"), (ZERO, "0"), (POSITIVE, "+1")]
    shown, words = shown_tensors(ternary)
    for i in range(0, len(shown), PER_CHART):
        rows = [
            (t.name, list(zip((NEGATIVE, ZERO, POSITIVE), t.shares)), " / ".join(f"{100 * s:.1f}" for s in t.shares))
            for t in shown[i : i + PER_CHART]
        ]
        figures.append(bar_rows("Trits of each tensor", rows, f"per cent of -1 / 0 / +1{'; ' + words if words else ''}", legend))
    if not known.opened:
        text += absent("No histograms: the artifact was not opened, see Round trip and calibration.")
    elif not ternary:
        text += note("No tensor is ternary.")
    looks = [(curve, [look for look in curve.looks if isinstance(look.get("churn"), dict)]) for curve in known.curves]
    churn = []
    for _, found in looks:
        for index, (words, pick) in enumerate((("median tensor", middle), ("most changed tensor", max), ("least changed tensor", min))):
            points = [(look["step"], 100 * pick(values)) for look in found if (values := numbers(look["churn"]))]
            churn.append(Line(words, points, index, "dots"))
    figures.append(line_chart("Churn", churn, "steps", "per cent", "trits that changed since the look before", 0.0, clip=False))
    noughts = [
        Line("noughts", [(look["step"], 100 * middle(v)) for look in found if (v := numbers(look.get("noughts")))], 6, "dots")
        for _, found in looks
    ]
    figures.append(line_chart("Noughts while training", noughts, "steps", "per cent", "of the median tensor", clip=False))
    if not any(line.points for line in churn):
        text += absent(
            "No churn: it is recorded in metrics.jsonl of the run folder (give --run) with every prediction of the size, from the second on."
        )
    return text + charts(figures)


def engram_section(known):
    """Which rows of the hashed tables text reads."""
    if not reading.number(known.settings, "engram", "engram_buckets") > 0:
        return ""
    if not known.engram:
        return absent(f"Hit rates need the shards: {known.faults.get('engram')}.")
    tables, words = known.engram
    names = [f"{t.order}-grams, head {t.head}" for t in tables]
    rows = [
        (name, [(0, t.train, "dot"), (1, t.val, "ring")], f"{100 * t.train:.1f} / {100 * t.val:.1f} %") for name, t in zip(names, tables)
    ]
    hits = [
        (name, [(2, t.met, "dot"), (3, t.known, "ring"), (4, t.crowded, "diamond")], f"{100 * t.known:.1f} / {100 * t.crowded:.1f} %")
        for name, t in zip(names, tables)
    ]
    figures = [
        dot_rows("Rows that text reads", rows, "share of a table's rows", "training / validation text", [(0, "training"), (1, "validation")], 0.0),
        dot_rows("Hits and collisions", hits, "share", "validation's n-grams known / training's n-grams that share a row",
                 [(2, "reads of a row that training touched"), (3, "reads of an n-gram in the training text"), (4, "n-grams that share a row")], 0.0),
    ]  # fmt: skip
    cells = [
        (
            name,
            f"{t.rows:,}",
            f"{100 * t.train:.2f} %",
            f"{100 * t.val:.2f} %",
            f"{t.grams:,}",
            f"{100 * t.crowded:.2f} %",
            f"{100 * t.met:.2f} %",
            f"{100 * t.known:.2f} %",
        )
        for name, t in zip(names, tables)
    ]
    heads = (
        "table",
        "rows",
        "training reads",
        "validation reads",
        "distinct n-grams",
        "share a row",
        "reads of touched rows",
        "reads of known n-grams",
    )
    return note(f"Counted over {words}.") + charts(figures) + folded("All tables", table(heads, cells, (0,)))
