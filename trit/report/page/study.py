"""The page of a study: its table, its picture, the curves of all its variants. In: the folder of its results. Out: HTML."""

import math
from pathlib import Path
from typing import NamedTuple

from trit.config_load import ROOT
from trit.report.page import reading
from trit.report.page.known import fixed, whole
from trit.report.page.parts import absent, charts, document, facts, folded, note, table
from trit.report.page.svg import Line, dot_rows, e, line_chart
from trit.report.statistics import mean_and_deviation
from trit.study.plan import Study, Variant, read_study
from trit.study.report import by_variant, table_rows

MOST_VARIANTS, MOST_SEEDS = 120, 32
NEEDED = ("bpb", "steps", "tokens_per_second", "bytes_total", "cap_bytes", "seconds")
BETTER, WORSE, UNSURE, BASE = 0, 1, 6, 2


class Found(NamedTuple):
    """A study's results: `study` with its variants in order, records that have a score, {(variant, seed): Curve}, words on the order."""

    study: Study
    records: list
    curves: dict
    words: str


def study_file(folder, named):
    """The study's file: the one named, else the copy among the results, else the repository's of that name; None where there is none."""
    folder = Path(folder)
    own = [path for path in sorted(folder.glob("*.toml")) if reading.inside(folder, path.name)]
    ours = ROOT / "configs" / "studies" / f"{folder.resolve().name}.toml"
    return Path(named) if named else own[0] if own else ours if ours.exists() else None


def is_study(folder):
    """Whether a folder holds results of a study."""
    return next(Path(folder).glob("*/*/record.json"), None) is not None


def ordered(folder, names, named):
    """(`Study` of the variants that have results, words on where their order comes from)."""
    path = study_file(folder, named)
    if path:
        study = read_study(path)
        kept = tuple(variant for variant in study.variants if variant.name in names)
        if named and not kept:
            raise ValueError(f"{path}: none of its variants has results in {folder}")
        if kept and kept[0] == study.variants[0]:
            return Study(study.name, kept, seeds=study.seeds), ""
    variants = tuple(Variant(name, (), "", 0) for name in sorted(names))
    words = "The study's file is not among the results (give --study FILE): the first variant by name stands in for the base, changes are unknown."
    return Study(Path(folder).resolve().name, variants), words


def read_results(folder, named=None):
    """`Found` of a folder of results. ValueError where no training has a record with a score."""
    folder, records, curves = Path(folder), [], {}
    paths = sorted(folder.glob("*/*/record.json"))
    for path in paths[: MOST_VARIANTS * MOST_SEEDS]:
        place = path.parent.relative_to(folder).as_posix()
        record = reading.read_object(folder, f"{place}/record.json")
        if isinstance(record.get("name"), str) and not any(math.isnan(reading.number(record, key)) for key in NEEDED):
            records.append(record)
            name = f"{record['name']}, seed {str(record.get('seed'))[:20]}"
            metrics, log = reading.read_text(folder, f"{place}/metrics.jsonl"), reading.read_text(folder, f"{place}/train.log")
            curves[record["name"], str(record.get("seed"))] = reading.curve_of(name, log, metrics)
    if not records:
        raise ValueError(f"{folder}: no training has a record with a score yet")
    study, words = ordered(folder, {record["name"] for record in records}, named)
    return Found(study, records, curves, words)


def head(found, groups, compared):
    """Title, the best variant and facts."""
    means = {variant.name: mean_and_deviation([r["bpb"] for r in records])[0] for variant, records in groups}
    best, base = min(means, key=means.get), groups[0][0].name
    sure = sum(each.corrected < 0.05 for each in compared)
    seeds = {str(r.get("seed")) for r in found.records}
    caps = {r["cap_bytes"] for r in found.records}
    pairs = [
        ("base", f"{means[base]:.4f}", base),
        ("variants", len(groups), f"{sure} differ from the base at p < 0.05 (Holm)"),
        ("trainings", len(found.records), f"{len(seeds)} seeds"),
        ("largest", whole(max(r["bytes_total"] for r in found.records)), f"bytes of {', '.join(whole(cap) for cap in sorted(caps)[:4])}"),
        ("training", f"{sum(r['seconds'] for r in found.records) / 3600:.1f} h", "on the study's clock, all together"),
    ]
    return (
        f"<h1>Study {e(found.study.name)}</h1><p class=score>{means[best]:.4f}<small>bits per byte</small></p>"
        f"<p class=note>the best mean, of {e(best)}</p>{facts(pairs)}"
    )


def ranked(groups, compared):
    """[(Variant, its records, `Compared` or None for the base)], best mean first."""
    rows = [(variant, records, apart) for (variant, records), apart in zip(groups, [None, *compared])]
    return sorted(rows, key=lambda row: mean_and_deviation([r["bpb"] for r in row[1]])[0])


def picture(rows, base):
    """Every training, each variant's mean and its 95 % interval against the mean `base` of the first, best on top."""
    shown = []
    for variant, records, apart in rows:
        values = [r["bpb"] for r in records]
        mean, margin = sum(values) / len(values), apart.margin if apart else math.nan
        colour = BASE if apart is None else UNSURE if not abs(apart.difference) >= margin else BETTER if apart.difference < 0 else WORSE
        marks = [(colour, (mean - margin, mean + margin), "bar"), *((colour, value, "ring") for value in values), (colour, mean, "diamond")]
        shown.append((variant.name, marks, f"{mean:.4f}" + (f"  {mean - base:+.4f}" if apart else "  base")))
    legend = [(BASE, "base"), (BETTER, "better"), (WORSE, "worse"), (UNSURE, "not told apart")]
    remark = "rings are trainings, diamonds means; bars are 95 % intervals of the difference from the base (dotted)"
    return dot_rows("Bits per byte", shown, "bits per byte, lower is better", remark, legend, line=base)


def overview(found, rows, base):
    """All trainings' losses by steps and by time, those of the best variant and of the base in front."""
    best, figures = rows[0][0].name, []
    for place, across in enumerate(("steps", "seconds of training")):
        lines = [Line("others", smooth(curve, place), 6, "faint") for (name, _), curve in found.curves.items() if name not in (best, base)]
        for name, colour, word in ((base, BASE, "base"), (best, BETTER, "best")):
            lines += [Line(f"{word}: {name}", smooth(curve, place), colour) for (own, _), curve in found.curves.items() if own == name]
        figures.append(line_chart(f"All trainings by {across.split()[0]}", lines, across, "nats a token", "others in grey"))
    return figures


def curve_figures(found, groups):
    """A small chart a variant: its trainings over the base's."""
    base = [curve for (name, _), curve in found.curves.items() if name == groups[0][0].name]
    figures = []
    for variant, records in groups:
        own = [found.curves[variant.name, str(r.get("seed"))] for r in records]
        grey = [] if variant is groups[0][0] else [Line("base", smooth(curve), 6, "faint") for curve in base]
        lines = grey + [Line(curve.name.rpartition(", ")[2], smooth(curve), place % 5) for place, curve in enumerate(own)]
        mean = mean_and_deviation([r["bpb"] for r in records])[0]
        figures.append(line_chart(variant.name, lines, "steps", "nats a token", f"{mean:.4f} bits per byte in the end", height=170))
    return figures


def smooth(curve, place=0):
    """[(step, or with `place` 1 seconds; training loss)] of a Curve, a mean over three logged steps."""
    steps = [(step[place], step[2]) for step in curve.steps]
    return [
        (steps[i][0], sum(loss for _, loss in steps[max(i - 1, 0) : i + 2]) / len(steps[max(i - 1, 0) : i + 2])) for i in range(len(steps))
    ]


def rates(rows):
    """Tokens a second and bytes of every variant."""
    speeds, sizes = [], []
    for variant, records, _ in rows:
        mean = sum(r["tokens_per_second"] for r in records) / len(records)
        speeds.append((variant.name, [*((6, r["tokens_per_second"], "ring") for r in records), (0, mean, "diamond")], f"{mean:,.0f}"))
        largest = max(r["bytes_total"] for r in records)
        sizes.append(
            (variant.name, [((1 if r["bytes_total"] > r["cap_bytes"] else 2), r["bytes_total"], "dot") for r in records], f"{largest:,}")
        )
    caps = {r["cap_bytes"] for _, records, _ in rows for r in records}
    cap = caps.pop() if len(caps) == 1 else None
    return [
        dot_rows("Tokens a second", speeds, "tokens/s", "rings are trainings, diamonds means"),
        dot_rows(
            "Counted bytes",
            sizes,
            "bytes",
            "code and artifact of each training" + (f"; the cap of {cap:,} is dotted" if cap else ""),
            line=cap,
        ),
    ]


def study_page(found):
    """The whole page of `Found`."""
    groups, compared = by_variant(found.study, found.records)
    heads, rows, spread = table_rows(found.study, found.records)
    listed = [(r["name"], str(r.get("seed"))[:20], fixed(float(r["bpb"]), 4), f"{r['steps']:,}", f"{r['seconds']:,.0f}", f"{r['tokens_per_second']:,}", f"{r['bytes_total']:,}",
               " ".join(map(str, reading.part(r, "settings", list)))[:1000]) for r in found.records]  # fmt: skip
    single = any(len(records) < 2 for _, records in groups)
    order, base = ranked(groups, compared), mean_and_deviation([r["bpb"] for r in groups[0][1]])[0]
    doubt = "Where a variant has one training, nothing tells chance from effect: it has no interval and no p." if single else ""
    body = table(heads, rows, (0, 10), (10,)).replace("class=scroll", 'class="open scroll"', 1)
    sections = [
        ("variants", "Variants", charts([picture(order, base), *rates(order)]) + (note(doubt) if doubt else "")),
        ("table", "Table", (absent(found.words) if found.words else "") + body + note(spread)),
        ("curves", "Training loss", charts(overview(found, order, groups[0][0].name)) + note("Each variant's trainings, the base's in grey behind them.") + charts(curve_figures(found, groups), small=True)),
        ("trainings", "Trainings", folded(f"All {len(listed)} trainings and their settings",
            table(("variant", "seed", "bits per byte", "steps", "seconds", "tokens/s", "bytes", "settings"), listed, (0, 7), (7,)))),
    ]  # fmt: skip
    return document(
        f"Study {found.study.name}",
        head(found, groups, compared),
        sections,
        "<p>Made from the study's results by python -m trit.report.page.</p>",
    )
