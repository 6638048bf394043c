"""What a study found, as a Markdown table and a picture."""

import json
import math

from trit.report.statistics import compare, corrected, mean_and_deviation, pooled_deviation

BETTER, WORSE, UNSURE, BASE = "#0072b2", "#d55e00", "#8a8a8a", "#000000"  # apart for every common colour vision


def records_of(study, out):
    """Records that are there, in the order of the study."""
    files = (out / variant.name / str(seed) / "record.json" for variant in study.variants for seed in study.seeds)
    return [json.loads(file.read_text()) for file in files if file.exists()]


def by_variant(study, records):
    """[(Variant, its records)] of variants that have any, and [Compared] of each against the first variant of the study."""
    groups = [(variant, [r for r in records if r["name"] == variant.name]) for variant in study.variants]
    groups = [group for group in groups if group[1]]
    base = [r["bpb"] for r in groups[0][1]] if groups else []
    return groups, corrected([compare([r["bpb"] for r in found], base) for _, found in groups[1:]])


def cell(value, form):
    """A number, or a dash where there is none."""
    return "-" if math.isnan(value) else format(value, form)


def table_rows(study, records):
    """(heads, rows of text, a sentence on the spread or "") of the table: one row a variant, compared with the first."""
    groups, compared = by_variant(study, records)
    heads = "variant", "runs", "bits per byte", "sd", "against the first", "p", "p (Holm)", "steps", "tokens/s", "bytes", "change"
    rows = []
    for place, (variant, found) in enumerate(groups):
        mean, deviation = mean_and_deviation([r["bpb"] for r in found])
        apart = compared[place - 1] if place else None
        over = sum(r["bytes_total"] > r["cap_bytes"] for r in found)
        cells = [
            variant.name,
            str(len(found)),
            f"{mean:.4f}",
            cell(deviation, ".4f"),
            f"{apart.difference:+.4f} ± {cell(apart.margin, '.4f')}" if apart else "",
            cell(apart.p, ".3f") if apart else "",
            cell(apart.corrected, ".3f") if apart else "",
            *(f"{sum(r[key] for r in found) / len(found):,.0f}" for key in ("steps", "tokens_per_second", "bytes_total")),
            " ".join(variant.change).replace("|", "/") or "-",
        ]
        cells[-2] += f" ({over} over the cap)" if over else ""
        rows.append(cells)
    pooled, freedom = pooled_deviation([[r["bpb"] for r in found] for _, found in groups])
    spread = f"Pooled standard deviation of a seed: {pooled:.4f} bits per byte, {freedom} degrees of freedom." if freedom else ""
    return heads, rows, spread


def table(study, records):
    """Markdown table: one line a variant, compared with the first."""
    heads, rows, spread = table_rows(study, records)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines + (["", spread] if spread else []))


def draw(study, records, path):
    """Picture of every training's bits per byte and each variant's mean with its 95 % interval against the first, best on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups, compared = by_variant(study, records)
    if not groups:
        raise ValueError("nothing to draw: no training has a record yet")
    base = mean_and_deviation([r["bpb"] for r in groups[0][1]])[0]
    rows = sorted(zip(groups, [None, *compared]), key=lambda row: -mean_and_deviation([r["bpb"] for r in row[0][1]])[0])
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.3 * len(rows)), layout="constrained")
    for height, ((_, found), apart) in enumerate(rows):
        values = [r["bpb"] for r in found]
        mean, colour, error = sum(values) / len(values), BASE, float("nan")
        if apart:
            error = apart.margin
            colour = UNSURE if math.isnan(error) or abs(apart.difference) < error else BETTER if apart.difference < 0 else WORSE
        axes.plot(values, [height] * len(values), "o", color=colour, alpha=0.35, markersize=5, markeredgewidth=0)
        axes.plot([mean], [height], "D", color=colour, markersize=6)
        if error == error:
            axes.plot([mean - error, mean + error], [height, height], "-", color=colour, linewidth=1.5)
    axes.axvline(base, color=BASE, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [variant.name for (variant, _), _ in rows])
    axes.set_xlabel("bits per byte (lower is better)")
    axes.set_title(
        f"{study.name}: circles are seeds, diamonds means; bars are 95 % intervals of the\ndifference from {groups[0][0].name} (dotted)"
    )
    axes.title.set_fontsize(9)
    axes.grid(axis="x", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
