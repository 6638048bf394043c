"""The main charts as PNG files, for a README. In: what a page was made of. Out: files."""

from pathlib import Path

from trit.report.page.known import GROUPS, running
from trit.report.page.svg import Block, laid

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#b5a800")
DOTS = 150  # an inch


def plotting():
    """matplotlib's pyplot without a screen. ValueError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--pictures needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_curves(curves, path):
    """Training loss by steps and by time, one line a training."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for axis, pick, name in zip(axes, (0, 1), ("steps", "seconds of training")):
        for place, curve in enumerate(curves):
            points, colour = [(step[pick], step[2]) for step in curve.steps], PALETTE[place % len(PALETTE)]
            axis.plot(*zip(*points), color=colour, alpha=0.35 if len(points) > 20 else 1, linewidth=1)
            axis.plot(*zip(*running(points)), color=colour, linewidth=1.8, label=curve.name)
        axis.set_xlabel(name)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("training loss, nats a token")
    if len(curves) > 1:
        axes[1].legend(frameon=False)
    figure.savefig(path, dpi=DOTS)
    pyplot.close(figure)


def draw_bytes(known, path):
    """The byte budget as a treemap, tensors inside their categories where the artifact was opened."""
    pyplot = plotting()
    figure, axis = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    blocks = []
    for name, size in known.categories().items():
        rows = [row for row in known.opened.rows if row.category == name] if known.opened else []
        blocks.append(Block(name, size, GROUPS.index(name) if name in GROUPS else 7, "", tuple(Block(r.name, r.size, 0) for r in rows)))
    for block, x, y, wide, high in laid(blocks, 0, 0, 900, 450):
        for _, *place in laid(block.parts, x, y, wide, high) if len(block.parts) > 1 else [(None, x, y, wide, high)]:
            axis.add_patch(
                pyplot.Rectangle(place[:2], *place[2:], facecolor=PALETTE[block.colour], alpha=0.55, edgecolor="white", linewidth=0.8)
            )
        if wide > 45 and high > 18:
            axis.text(x + wide / 2, y + high / 2, f"{block.name}\n{block.size:,.0f}", ha="center", va="center", fontsize=9)
    axis.set(xlim=(0, 900), ylim=(450, 0))
    axis.axis("off")
    figure.savefig(path, dpi=DOTS)
    pyplot.close(figure)


def record_pictures(known, folder):
    """[path] of the pictures of a record that there is something to draw for."""
    folder, made = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    curves = [curve for curve in known.curves if curve.steps]
    for name, there, make in (
        ("curves.png", curves, lambda path: draw_curves(curves, path)),
        ("bytes.png", known.categories(), lambda path: draw_bytes(known, path)),
    ):
        if there:
            make(folder / name)
            made.append(folder / name)
    return made


def study_pictures(found, folder):
    """[path] of a study's picture."""
    from trit.study.report import draw

    plotting()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draw(found.study, found.records, folder / "study.png")
    return [folder / "study.png"]
