"""Findings of probes as pictures and as a page in one file that needs no network. Both draw the same charts. In: findings. Out: files, text."""

import math
from pathlib import Path

from trit.dynamics.probe_finding import shown
from trit.report.page.parts import charts, document, facts, note, table
from trit.report.page.pictures import DOTS, PALETTE, plotting
from trit.report.page.svg import WIDTH, bounds, e, figure, marked, plain, svg

FEW = 24  # points of a line, up to which each is marked
LEAST = 1e-300  # what a logarithmic axis takes for nought


def drawable(chart):
    """[(Series, its finite points)] of a chart, on a logarithmic axis the positive ones alone."""
    found = []
    for series in chart.series:
        points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
        points = [(x, y) for x, y in points if (x > LEAST or not chart.log_across) and (y > LEAST or not chart.log_up)]
        if points:
            found.append((series, points))
    return found


def draw(axes, chart):
    """The chart on matplotlib axes."""
    longest = max((len(points) for series, points in drawable(chart) if series.look != "dots"), default=0)
    for series, points in drawable(chart):
        across, up = zip(*points)
        colour = PALETTE[series.colour % len(PALETTE)]
        if series.look == "dots":
            axes.plot(across, up, "o", color=colour, markersize=2.4, markeredgewidth=0, alpha=0.6, label=series.name)
        else:
            marker = "o" if longest <= FEW else None
            axes.plot(across, up, color=colour, linewidth=1.4, marker=marker, markersize=3.5, label=series.name)
    for height, name in chart.marks:
        axes.axhline(height, color="#444444", linewidth=0.9, linestyle=":")
        if name:
            axes.annotate(
                name, (1, height), xycoords=("axes fraction", "data"), xytext=(-3, 3), textcoords="offset points", ha="right", fontsize=8
            )
    if chart.log_up:
        axes.set_yscale("log")
    if chart.log_across:
        axes.set_xscale("log")
    if chart.equal:
        axes.set_aspect("equal", "datalim")
        axes.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
        axes.axvline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
    axes.set_title(f"{chart.title}\n", fontsize=11, fontweight="bold", loc="left")
    axes.text(0, 1.02, chart.note, transform=axes.transAxes, fontsize=8, color="#555555")
    axes.set_xlabel(chart.across)
    axes.set_ylabel(chart.up)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(drawable(chart)) > 1:
        axes.legend(frameon=False, fontsize=8, markerscale=2)


def pictures(findings, folder):
    """[path] of a PNG for each finding that has charts, in `folder`."""
    pyplot, folder, made = plotting(), Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for finding in findings:
        some = [chart for chart in finding.charts if drawable(chart)]
        if some:
            wide = min(len(some), 2)
            high = -(-len(some) // wide)
            sheet, axes = pyplot.subplots(high, wide, figsize=(5.6 * wide, 4.1 * high), layout="constrained", squeeze=False)
            for place, axis in enumerate(axes.flat):
                if place < len(some):
                    draw(axis, some[place])
                else:
                    axis.axis("off")
            made.append(folder / f"{finding.name}.png")
            sheet.savefig(made[-1], dpi=DOTS)
            pyplot.close(sheet)
    return made


def decades(low, high):
    """[(logarithm, text)] of ticks of a logarithmic axis between two logarithms to base ten: powers of ten, over a short stretch 2 and 5 too."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= math.log10(factor) + power <= high]
    if len(fine) < 2:
        return [(value, f"{10**value:.3g}") for value, _ in marked(low, high)]
    if high - low < 2:
        return [(math.log10(value), f"{value:.1g}" if value < 10 else plain(value)) for value in fine]
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, -(-(last - first) // 5))
    return [(float(power), f"1e{power}" if abs(power) > 2 else f"{10.0**power:g}") for power in range(first, last + 1, step)]


def span(values, logarithmic, marks=()):
    """(low, high) of an axis with a little room."""
    return bounds([math.log10(value) if logarithmic else value for value in [*values, *marks]])


def svg_chart(chart, height=240):
    """The chart as a <figure> in the page's colours; "" where it has no point."""
    lines = drawable(chart)
    if not lines:
        return ""
    marks = [mark for mark in chart.marks if mark[0] > 0 or not chart.log_up]
    left, right = span([x for _, points in lines for x, _ in points], chart.log_across)
    low, high = span([y for _, points in lines for _, y in points], chart.log_up, [value for value, _ in marks])
    x0, x1, y1 = 44, WIDTH - 12, 22
    if chart.equal:
        height = round(min(max((high - low) / (right - left) * (x1 - x0), 150), 320)) + 56
    y0 = height - 34
    if chart.equal:
        unit = max((right - left) / (x1 - x0), (high - low) / (y0 - y1))
        middle, centre = (left + right) / 2, (low + high) / 2
        left, right = middle - unit * (x1 - x0) / 2, middle + unit * (x1 - x0) / 2
        low, high = centre - unit * (y0 - y1) / 2, centre + unit * (y0 - y1) / 2

    def over(x):
        return x0 + (x - left) / (right - left) * (x1 - x0)

    def rise(y):
        return y0 - (y - low) / (high - low) * (y0 - y1)

    def at(x, y):
        return over(math.log10(x) if chart.log_across else x), rise(math.log10(y) if chart.log_up else y)

    parts = []
    for value, text in (decades if chart.log_up else marked)(low, high):
        parts.append(
            f'<path class=grid d="M{x0} {rise(value):.1f}H{x1}"/><text x="{x0 - 5}" y="{rise(value) + 3.8:.1f}" class=end>{e(text)}</text>'
        )
    for value, text in (decades if chart.log_across else marked)(left, right):
        parts.append(f'<text x="{over(value):.1f}" y="{y0 + 15}" class=mid>{e(text)}</text>')
    parts.append(
        f'<path class=axis d="M{x0} {y0}H{x1}"/><text x="{(x0 + x1) / 2}" y="{height - 4}" class="mid quiet">{e(chart.across)}</text>'
    )
    parts.append(f'<text x="2" y="12" class=quiet>{e(chart.up)}</text>')
    for value, name in marks:
        y = rise(math.log10(value) if chart.log_up else value)
        parts.append(f'<path class=mark d="M{x0} {y:.1f}H{x1}"/><text x="{x1}" y="{y - 4:.1f}" class="end quiet halo">{e(name)}</text>')
    for series, points in lines:
        places = [at(*point) for point in points]
        if series.look == "dots":
            # One path of strokes without length: a tenth of the bytes of as many circles.
            path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
            parts.append(
                f'<path class="line c{series.colour}" style="stroke-width:2.8;stroke-linecap:round;stroke-dasharray:none" d="{path}"/>'
            )
        elif len(places) <= FEW:
            parts += [f'<circle class="dot c{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in places]
        if series.look != "dots" and len(places) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line c{series.colour}" d="M{path}"><title>{e(series.name)}</title></path>')
    ends = "; ".join(f"{series.name}: {len(points)} points, last {points[-1][1]:.3g}" for series, points in lines[:8])
    label = f"{chart.title}: {chart.up} against {chart.across}, {ends}"
    return figure(chart.title, chart.note, svg(height, label, "".join(parts)), [(series.colour, series.name) for series, _ in lines])


def page(title, about, findings):
    """The text of the page: `about` is [(what, value, more)] for its head; findings are its sections."""
    sections = []
    for finding in findings:
        words = "".join(note(sentence) for sentence in finding.words)
        rows = [[shown(value) for value in row] for row in finding.rows]
        texts = [place for place, value in enumerate(finding.rows[0]) if isinstance(value, str)] if rows else []
        body = (table(finding.heads, rows, texts) if rows else "") + words + charts([svg_chart(chart) for chart in finding.charts])
        sections.append((finding.name, finding.title, body))
    head = f"<h1>{e(title)}</h1>{facts(about)}"
    return document(title, head, sections, e("Computed in 64 bits on the weights as they are stored, by python -m trit.dynamics.probe."))
