"""Charts as SVG text that reads at a phone's width. In: numbers and words. Out: markup whose colours are the page's variables.

A chart is WIDTH units wide and meant to be shown about as wide in CSS pixels, so that its 11 unit letters keep their size. Everything that
comes from a file is escaped here.
"""

import html
import math
import re
from typing import NamedTuple

WIDTH = 360
LETTER = 6.6  # mean width of an 11 unit letter, to see what fits
MOST_POINTS = 240  # of a line; longer ones are drawn by the means of stretches
COLOURS = 8
UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")  # control signs


class Line(NamedTuple):
    """A named line: points [(x, y)], its colour 0 .. COLOURS - 1, and a class of its own ("faint", "dots") or none."""

    name: str
    points: list
    colour: int = 0
    look: str = ""


class Block(NamedTuple):
    """A rectangle of a treemap: `size` in bytes, `words` for the reader that points at it, `parts` blocks inside or none."""

    name: str
    size: float
    colour: int
    words: str = ""
    parts: tuple = ()


def e(value):
    """Text for markup; characters that no document may hold become a replacement sign."""
    return html.escape(UNWANTED.sub("\ufffd", str(value)))


def short(text, width):
    """`text` cut to about `width` units."""
    count = max(int(width / LETTER), 1)
    return text if len(text) <= count else text[: max(count - 1, 1)] + "…"


def ticks(low, high, count=4):
    """Round numbers within low .. high, about `count` of them."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plain(value):
    """A number in few letters: 12k, 3.5M, 0.25."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{value:.4g}"


def marked(low, high):
    """[(number, text)] of an axis's ticks, with as many digits as tell them apart."""
    values = ticks(low, high)
    for form in (plain, lambda value: f"{value:,.6g}", repr):
        texts = [form(value) for value in values]
        if len(set(texts)) == len(values):
            break
    return list(zip(values, texts))


def below(points, high):
    """A line's points up to a height: where it comes from above, it begins on that height."""
    found = []
    for place, (x, y) in enumerate(points):
        for other in points[max(place - 1, 0) : place] + points[place + 1 : place + 2]:
            if y > high >= other[1]:
                found.append((x + (other[0] - x) * (y - high) / (y - other[1]), high))
        if y <= high:
            found.append((x, y))
    return found


def finite(points):
    """Points whose numbers are numbers."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thinned(points):
    """At most MOST_POINTS points: the means of equal stretches where there are more."""
    size = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)] if size > 1 else [[point] for point in points]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def figure(title, note, body, legend=(), wide=False):
    """A <figure>; `legend` is [(colour, name)], shown where there is more than one."""
    keys = "".join(f'<li><i class="key c{colour}"></i>{e(name)}</li>' for colour, name in legend)
    return (
        f'<figure class="chart{" wide" * wide}"><figcaption><b>{e(title)}</b>{f"<span>{e(note)}</span>" if note else ""}</figcaption>'
        f"{body}{f'<ul class=legend>{keys}</ul>' if len(legend) > 1 else ''}</figure>"
    )


def svg(height, label, body, width=WIDTH):
    """An <svg> of WIDTH units that says `label` to who cannot see it."""
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{e(label)}">{body}</svg>'


def bounds(values, floor=None):
    """(low, high) around values with a little room; `floor` is a lowest value that must be seen."""
    low, high = min(values), max(values)
    low = low if floor is None else min(low, floor)
    room = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    return low - (0 if floor == low else room), high + room


def line_chart(title, lines, across, up, note="", floor=None, cap=None, second=None, height=220, clip=True):
    """A figure of lines. `across` and `up` name the axes; `floor` is a value the upright axis starts at; `second` = (factor, name) marks
    the same axis in another unit at the right, a value there being factor times that at the left.

    With `clip` the upright axis ends where the first twentieth of the lines is, so that the fall of the first steps does not flatten all else.
    """
    lines = [line._replace(points=thinned(finite(line.points))) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs, ys = [x for line in lines for x, _ in line.points], [y for line in lines for _, y in line.points]
    top = max(ys)
    if clip and all(len(line.points) >= 8 for line in lines):
        top = max(max(y for _, y in line.points[len(line.points) // 20 + 1 :]) for line in lines)
    (low, high), (left, right) = bounds([min(ys), top], floor), (min([0.0, *xs]), max(xs))
    right = right if right > left else left + 1.0
    above = top < max(ys)
    lines = [line._replace(points=below(line.points, high)) for line in lines]
    lines = [line for line in lines if line.points]
    x0, x1, y0, y1 = 44, WIDTH - (44 if second else 12), height - 34, 22

    def at(x, y):
        return x0 + (x - left) / (right - left) * (x1 - x0), y0 - (y - low) / (high - low) * (y0 - y1)

    parts = []
    for value, text in marked(low, high):
        y = at(left, value)[1]
        parts.append(f'<path class=grid d="M{x0} {y:.1f}H{x1}"/><text x="{x0 - 5}" y="{y + 3.8:.1f}" class=end>{e(text)}</text>')
    for value, text in marked(low * second[0], high * second[0]) if second else ():
        parts.append(f'<text x="{x1 + 5}" y="{at(left, value / second[0])[1] + 3.8:.1f}">{e(text)}</text>')
    for value, text in marked(left, right):
        x = at(value, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{y0 + 15}" class=mid>{e(text)}</text>')
    parts.append(f'<path class=axis d="M{x0} {y0}H{x1}"/><text x="{(x0 + x1) / 2}" y="{height - 4}" class="mid quiet">{e(across)}</text>')
    parts.append(f'<text x="2" y="12" class=quiet>{e(up)}</text>')
    if second:
        parts.append(f'<text x="{WIDTH - 2}" y="12" class="end quiet">{e(second[1])}</text>')
    for line in lines:
        places = [at(*point) for point in line.points]
        if line.look == "dots" or len(places) == 1:
            parts += [f'<circle class="dot c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
        if len(places) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            parts.append(f'<path class="line c{line.colour} {line.look}" d="M{path}"><title>{e(line.name)}</title></path>')
    named = [line for line in lines if line.look != "faint"]
    ends = "; ".join(f"{line.name} ends at {plain(line.points[-1][1])}" for line in named[:8])
    label = f"{title}: {up} against {across}, {ends}"
    note = "; ".join(filter(None, (note, "the first steps lie higher" if above else "")))
    return figure(title, note, svg(height, label, "".join(parts)), list(dict.fromkeys((line.colour, line.name) for line in named)))


def bar_rows(title, rows, note="", legend=()):
    """A figure of one stacked bar a row: rows [(name, [(colour, share)], words)], shares of the whole width."""
    parts, height = [], 24 * len(rows) + 4
    for place, (name, shares, words) in enumerate(rows):
        y, x = 24 * place, 0.0
        room = WIDTH - LETTER * len(words) - 10
        parts.append(
            f'<text x="0" y="{y + 11}">{e(short(name, room))}</text><text x="{WIDTH}" y="{y + 11}" class="end quiet">{e(words)}</text>'
        )
        for colour, share in shares:
            wide = max(share, 0.0) * WIDTH
            parts.append(f'<rect class="bar c{colour}" x="{x:.1f}" y="{y + 15}" width="{wide:.1f}" height="6"/>')
            x += wide
    label = f"{title}: " + "; ".join(f"{name} {words}" for name, _, words in rows[:6])
    return figure(title, note, svg(height, label, "".join(parts)), legend)


def dot_rows(title, rows, across, note="", legend=(), floor=None, line=None):
    """A figure of marks on one axis, a row each: rows [(name, marks, words)] with marks [(colour, value, kind)] of kind "dot", "ring",
    "diamond", or a pair of values for a bar between them. `line` is a value that a dotted line marks through all rows."""
    values = [v for _, marks, _ in rows for _, value, _ in marks for v in (value if isinstance(value, tuple) else (value,))]
    values = [v for v in values if math.isfinite(v)] + ([line] if line is not None else [])
    if not values:
        return ""
    low, high = bounds(values, floor)
    height, left, right = 28 * len(rows) + 36, 8, WIDTH - 8

    def at(value):
        return left + (value - low) / (high - low) * (right - left)

    bottom, parts = 28 * len(rows) + 4, []
    for value, text in marked(low, high):
        parts.append(
            f'<path class=grid d="M{at(value):.1f} 0V{bottom}"/><text x="{at(value):.1f}" y="{bottom + 13}" class=mid>{e(text)}</text>'
        )
    if line is not None:
        parts.append(f'<path class="mark" d="M{at(line):.1f} 0V{bottom}"/>')
    for place, (name, marks, words) in enumerate(rows):
        y = 28 * place
        room = WIDTH - LETTER * len(words) - 10
        parts.append(
            f'<text x="0" y="{y + 11}" class=halo>{e(short(name, room))}</text><text x="{WIDTH}" y="{y + 11}" class="end quiet halo">{e(words)}</text>'
        )
        for colour, value, kind in marks:
            if isinstance(value, tuple):
                if all(map(math.isfinite, value)):
                    parts.append(f'<path class="line c{colour}" d="M{at(value[0]):.1f} {y + 20}H{at(value[1]):.1f}"/>')
            elif math.isfinite(value):
                x = at(value)
                if kind == "diamond":
                    parts.append(f'<path class="dot c{colour}" d="M{x - 5:.1f} {y + 20}l5-5 5 5-5 5z"/>')
                else:
                    parts.append(f'<circle class="{kind} c{colour}" cx="{x:.1f}" cy="{y + 20}" r="{3.4 if kind == "ring" else 3}"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{height - 6}" class="mid quiet">{e(across)}</text>')
    label = f"{title}: {across}; " + "; ".join(f"{name} {words}" for name, _, words in rows[:6])
    return figure(title, note, svg(height, label, "".join(parts)), legend)


def laid(blocks, x, y, wide, high):
    """[(Block, x, y, width, height)] of blocks that fill a rectangle, areas as their sizes."""
    import squarify

    blocks = sorted((block for block in blocks if block.size > 0), key=lambda block: -block.size)
    if not blocks or wide <= 0 or high <= 0:
        return []
    sizes = squarify.normalize_sizes([block.size for block in blocks], wide, high)
    places = squarify.squarify(sizes, x, y, wide, high)
    return [(block, place["x"], place["y"], place["dx"], place["dy"]) for block, place in zip(blocks, places)]


def cell(block, x, y, wide, high, bold=False):
    """One rectangle, its name where there is room, and the line above the map that tells of it while it is pointed at or touched."""
    name, place = "", f'x="{x:.2f}" y="{y:.2f}" width="{wide:.2f}" height="{high:.2f}"'
    if high >= 14 and wide >= 26 and (len(block.name) * LETTER <= wide - 6 or wide >= 46):
        # An <svg> of its own cuts off what a wider font would write over the next cell.
        name = f'<svg {place}><text x="4" y="12"{" class=bold" * bold}>{e(short(block.name, wide - 6))}</text></svg>'
    return (
        f'<g class=cell tabindex="-1"><rect class="area c{block.colour}" {place}/>{name}'
        f'<text class=tip x="0" y="12">{e(short(block.words or block.name, WIDTH))}</text></g>'
    )


def treemap(title, blocks, note="", height=330):
    """A figure of blocks by area; a block with parts is a heading and its parts below it."""
    parts = ['<text class="hint quiet" x="0" y="12">point at or touch a block for its bytes</text>']
    for block, x, y, wide, high in laid(blocks, 0, 20, WIDTH, height - 20):
        inside = laid(block.parts, x + 1, y + 15, wide - 2, high - 16) if block.parts and high > 34 and wide > 30 else []
        parts.append(cell(block, x, y, wide, high, bold=True))
        parts += [cell(part, *place) for part, *place in inside]
    whole = sum(block.size for block in blocks) or 1
    label = f"{title}: " + ", ".join(f"{block.name} {100 * block.size / whole:.1f} %" for block in blocks)
    return figure(title, note, svg(height, label, "".join(parts)), [(block.colour, block.name) for block in blocks])
