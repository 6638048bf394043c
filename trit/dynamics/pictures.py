"""What a dense associative memory does, drawn: trajectories, energies, landscapes. In: what the tasks ran. Out: a picture file."""

import numpy as np

from trit.dynamics.memory import effective_energy, hidden_outputs, pattern_memory
from trit.dynamics.parity import BITS, all_strings, logits_of, relaxation, split_strings, verified
from trit.dynamics.parity import context as embedded
from trit.dynamics.tasks import HAMMING_BETA, codewords, decode, received, settling_run, xor_memory, xor_trajectories
from trit.report.page.pictures import PALETTE, plotting

BLUE, RED, GREY = PALETTE[0], PALETTE[1], PALETTE[6]


def panels(count, width=3.6, height=3.1):
    """(pyplot, figure, axes) of so many panels in a row."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(1, count, figsize=(width * count, height), layout="constrained")
    for axis in axes:
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return pyplot, figure, axes


def titled(axis, title, across, up):
    """Title and names of the axes."""
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel(across)
    axis.set_ylabel(up)


def saved(pyplot, figure, path):
    """Write the picture and let go of it."""
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw_xor(path, beta):
    """Outputs and energies of the four inputs over time, and the landscape that the output moves in for several beta."""
    pyplot, figure, (left, middle, right) = panels(3)
    for place, (inputs, answer, run) in enumerate(xor_trajectories(beta)):
        # By symmetry the outputs of two inputs lie on one line, and all energies: circles on a line are its second input.
        look = {"color": BLUE if answer else RED, "linewidth": 1.8}
        if place > 1:
            look |= {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "markersize": 5, "markevery": (4 * place, 30)}
        name = f"{int(inputs[0])} xor {int(inputs[1])}"
        left.plot(run.times, run.visible[:, 2], label=name, **look)
        middle.plot(run.times, run.energies, label=name, **look)
    left.set_xlim(0, 6)
    middle.set_xlim(0, 6)
    left.legend(frameon=False, fontsize=8)
    titled(left, f"output, beta {beta:g}", "time (tau_v)", "v3")
    titled(middle, "energy, the same for all four", "time (tau_v)", "E")
    outputs = np.linspace(-0.2, 1.2, 281)
    states = np.stack([np.ones_like(outputs), np.zeros_like(outputs), outputs], -1)
    for place, each in enumerate((2.0, 4.0, 8.0, 16.0)):
        right.plot(outputs, effective_energy(xor_memory(each), states), color=PALETTE[place], linewidth=1.6, label=f"beta {each:g}")
    right.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    right.legend(frameon=False, fontsize=8)
    titled(right, "landscape for 1 xor 0", "v3", "energy, hidden neurons settled")
    saved(pyplot, figure, path)


def draw_hamming(path, beta=HAMMING_BETA):
    """One received word on its way: bits and hidden outputs; and the energies of all words with one error or none."""
    pyplot, figure, (left, middle, right) = panels(3)
    words, sent = received(1)
    place = 7 * 5 + 2
    run, _ = decode(words[place : place + 1], beta)
    outputs = hidden_outputs(pattern_memory(codewords(), beta), run.hidden[:, 0])
    for bit in range(7):
        wrong = words[place, bit] != sent[place, bit]
        left.plot(
            run.times,
            run.visible[:, 0, bit],
            color=RED if wrong else BLUE,
            linewidth=2.2 if wrong else 1.0,
            label="flipped" if wrong else None,
        )
    left.set_xlim(0, 6)
    left.legend(frameon=False, fontsize=8)
    said = ["".join(str(int(bit)) for bit in word[place]) for word in (words, sent)]
    titled(left, f"{said[0]} received, {said[1]} found", "time (tau_v)", "v")
    winner = int(outputs[-1].argmax())
    for row in range(16):
        middle.plot(run.times, outputs[:, row], color=BLUE if row == winner else GREY, linewidth=2.0 if row == winner else 0.9)
    middle.set_xlim(0, 1)
    titled(middle, "the 16 hidden neurons", "time (tau_v)", "f")
    whole, _ = decode(np.concatenate([codewords(), words]), beta)
    right.plot(whole.times, whole.energies[:, 16:], color=BLUE, linewidth=0.6, alpha=0.35)
    right.plot(whole.times, whole.energies[:, :16], color=PALETTE[2], linewidth=0.8, alpha=0.8)
    right.plot([], [], color=BLUE, label="112 words with an error")
    right.plot([], [], color=PALETTE[2], label="16 codewords")
    right.set_xlim(0, 3)
    right.legend(frameon=False, fontsize=8)
    titled(right, f"energy, beta {beta:g}", "time (tau_v)", "E")
    saved(pyplot, figure, path)


def draw_settling(path, rows):
    """Largest error over time for every size, and the time until it is 0.01 beside what a computer pays for it."""
    pyplot, figure, (left, right) = panels(2, 4.4)
    sizes = sorted({row["neurons"] for row in rows})
    for place, size in enumerate(sizes):
        run, pattern, _ = settling_run(size)
        error = np.abs(run.visible - pattern).max(-1)
        left.semilogy(
            run.times, error, color=PALETTE[place], linewidth=1.0 + 0.7 * (len(sizes) - place), label=f"{size} neurons", alpha=0.8
        )
    left.axhline(0.01, color=GREY, linewidth=0.8, linestyle=":")
    left.legend(frameon=False, fontsize=8)
    titled(left, "largest error of a neuron", "time (tau_v)", "|v - pattern|")
    settled = [row for row in rows if row["settled"] is not None]
    right.semilogx([row["neurons"] for row in settled], [row["settled"] for row in settled], "o-", color=BLUE, base=2)
    right.set_ylim(0, 6)
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.minorticks_off()
    right.yaxis.label.set_color(BLUE)
    titled(right, "settling and what simulating it takes", "neurons of either kind", "time until 0.01 (tau_v)")
    cost = right.twinx()
    cost.loglog(
        [row["neurons"] for row in settled], [row["evaluations"] * row["products"] for row in settled], "s--", color=RED, markersize=4
    )
    cost.set_ylabel("multiplications", color=RED)
    cost.spines["top"].set_visible(False)
    cost.set_xticks(sizes, [str(size) for size in sizes])
    cost.minorticks_off()
    saved(pyplot, figure, path)


def draw_parity(path, weights, kind, seed):
    """Decoded answer and energy of held-out strings in the full circuit, and where every string of eight bits comes to rest."""
    pyplot, figure, (left, middle, right) = panels(3)
    trained_on, held = split_strings(kind, seed)
    shown = held[np.unique(held.sum(1), return_index=True)[1]] if "position" not in weights else held
    _, run = verified(weights, shown, 20.0)
    margins = logits_of(weights, run.visible)
    margins = margins[..., 1] - margins[..., 0]
    for place, string in enumerate(shown):
        look = {"color": BLUE if string.sum() % 2 else RED, "linewidth": 1.3, "alpha": 0.8}
        left.plot(run.times, margins[:, place], **look)
        middle.plot(run.times, run.energies[:, place], **look)
    left.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    titled(left, "held-out strings, one a count of ones", "time (tau_v)", "score of odd less even")
    titled(middle, "their energy", "time (tau_v)", "E")
    strings = all_strings()
    rest = logits_of(weights, relaxation(weights, embedded(weights, strings))[-1])
    counts, known = strings.sum(1), set(trained_on.sum(1))
    for parity, colour, name in ((0, RED, "even"), (1, BLUE, "odd")):
        mine = counts % 2 == parity
        right.plot(counts[mine], (rest[:, 1] - rest[:, 0])[mine], "o", color=colour, markersize=5, label=name)
    new = [count for count in range(BITS + 1) if count not in known]
    for count in new:
        right.plot([count], [(rest[:, 1] - rest[:, 0])[counts == count].mean()], "o", color="none", markeredgecolor="black", markersize=12)
    if new:
        right.plot([], [], "o", color="none", markeredgecolor="black", markersize=9, label="count not in training")
    right.axhline(0, color=GREY, linewidth=0.8, linestyle=":")
    low, high = right.get_ylim()
    right.set_ylim(low - 0.35 * (high - low), high)  # room for the names
    right.legend(frameon=False, fontsize=8, loc="lower right")
    titled(right, "all 256 strings at rest", "ones in the string", "score of odd less even")
    saved(pyplot, figure, path)
