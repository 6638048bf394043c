"""The page of a record: what its folder says, with what its artifact, its log and its shards show. In: a folder. Out: HTML."""

import json
import math

from trit.report.page import reading
from trit.report.page.known import colour, fixed, numbers, running, whole
from trit.report.page.parts import absent, charts, document, facts, folded, note, table
from trit.report.page.svg import Block, Line, bar_rows, dot_rows, e, line_chart, treemap
from trit.report.page.tensors import engram_section, tensor_section, trit_section
from trit.report.record import verdict_counts


def head(known):
    """Title, score and the facts below it."""
    said, total, cap = known.said, known.number("bytes_total"), known.number("bytes_cap")
    gap, count = known.number("round_trip_gap"), verdict_counts(known.checks)
    word = f"{count['pass']} passed, {count['fail']} failed, {count['unknown']} unknown" if known.checks else "none"
    seeds = reading.part(said, "seeds", list)[:16]
    spread = known.number("val_bpb_std")
    runs = f"seed{'s' * (len(seeds) > 1)} {', '.join(str(seed)[:20] for seed in seeds)}"
    who = " · ".join(str(said[key])[:120] for key in ("track", "date", "author") if said.get(key))
    pairs = [
        (
            "counted bytes",
            f"{whole(total)} of {whole(cap)}",
            f"{whole(cap - total)} free" if cap >= total else "over the cap" if cap < total else "",
        ),
        ("code and artifact", f"{whole(known.number('bytes_code'))} + {whole(known.number('bytes_model'))}", "bytes"),
        (
            "round-trip gap",
            "0, bit for bit" if gap == 0 else "-" if math.isnan(gap) else f"{gap:.1e} nats",
            "artifact against training's forward",
        ),
        ("certificate", word, "checks" if known.checks else "there is no certificate.json"),
        ("trained", f"{fixed(known.number('train_time_seconds'), 1)} s", f"{whole(known.number('step_stop'))} steps, {runs}"),
        (
            "loss",
            f"{fixed(known.number('val_loss'), 4)} nats a token",
            f"± {spread:.4f} bits per byte over seeds" if len(seeds) > 1 else "",
        ),
    ]
    title = str(said.get("name") or known.folder.name)[:120]
    return (
        f"<h1>{e(title)}</h1><p class=score>{fixed(known.number('val_bpb'), 4)}<small>bits per byte</small></p>"
        f"<p class=note>{e(who)}</p><p>{e(str(said.get('blurb') or '')[:600])}</p>{facts(pairs)}"
    )


def curve_charts(known):
    """Loss against steps and against time, with bits per byte at the right; the score as the evaluation went."""
    ratio, several = 1 / math.log(2) / known.bytes_a_token("train"), len(known.curves) > 1
    second = None if math.isnan(ratio) else (ratio, "bits per byte")
    kinds, figures = (("steps", lambda s: s[0]), ("seconds of training", lambda s: s[1])), []
    for across, pick in kinds:
        lines = []
        for place, curve in enumerate(known.curves):
            points = [(pick(step), step[2]) for step in curve.steps]
            name = curve.name if several else "training loss"
            lines += [Line(name, points, place % 8, "faint")] if len(points) > 20 else []
            lines.append(Line(name if len(points) <= 20 else f"{name}, running mean", running(points), place % 8))
        figures.append(line_chart(f"Training loss by {across.split()[0]}", lines, across, "nats a token", second=second))
    own = 1 / math.log(2) / known.bytes_a_token("val")
    lines = [Line(curve.name if several else "validation", curve.scored, place % 8) for place, curve in enumerate(known.curves)]
    second = None if math.isnan(own) else (own, "bits per byte")
    remark = "mean loss of the text scored so far; the last is the score"
    figures.append(line_chart("Validation loss while scoring", lines, "share of the text", "nats a token", remark, second=second))
    rows = [(curve.name, *step) for curve in known.curves for step in curve.steps[:: max(len(curve.steps) // 400, 1)]]
    shown = [(name, step, fixed(seconds, 1), fixed(loss, 4), whole(speed)) for name, step, seconds, loss, speed in rows]
    if not rows:
        return absent("No step line stands in the record's log.")
    return charts(figures) + folded(
        f"{len(shown)} logged steps", table(("training", "step", "seconds", "nats a token", "tokens/s"), shown, (0,))
    )


def byte_sections(known):
    """Treemaps of the budget and of the code, and their tables."""
    sizes, cap = known.categories(), known.number("bytes_cap")
    if not sizes:
        return absent("submission.json does not say how its bytes are spent.")
    total, blocks = sum(sizes.values()), []
    for name, size in sizes.items():
        rows = [row for row in known.opened.rows if row.category == name] if known.opened else []
        parts = [Block(row.name, row.size, colour(name), f"{row.name}: {row.size:,} bytes, {row.count:,} numbers") for row in rows]
        words = f"{name}: {size:,.0f} bytes, {100 * size / total:.1f} %"
        blocks.append(Block(name, size, colour(name), words, tuple(parts) if len(parts) > 1 else ()))
    figures = [treemap("Counted bytes", blocks, f"{total:,.0f} of {whole(cap)} bytes; areas are bytes, blocks in blocks are tensors")]
    bars = [
        (name, [(colour(name), size / max(sizes.values()))], f"{size:,.0f}  {100 * size / total:.1f} %") for name, size in sizes.items()
    ]
    if known.code:
        whole_size = sum(size for *_, size in known.code)
        homes = {}
        for name, module, size in known.code:
            homes.setdefault(module.split(".")[0] or "other", []).append((name, module, size))
        parts = [
            Block(home, sum(max(size, 0) for *_, size in rows), place % 8, f"{home}: {sum(size for *_, size in rows):,} of {whole_size:,}",
                  tuple(Block(name, size, place % 8, f"{f'{module}:' if module else ''}{name}: {size:,} bytes") for name, module, size in rows))
            for place, (home, rows) in enumerate(sorted(homes.items(), key=lambda pair: -sum(size for *_, size in pair[1])))
        ]  # fmt: skip
        figures.append(treemap("Code by function", parts, "bytes the packed program would lose without each; blocks are packages"))
        text = folded(
            f"{len(known.code)} definitions of the counted program",
            note(
                f"What LZMA's packing of the shortened text ({whole_size:,} bytes) would lose without each; the counted file packs the same "
                f"program in {whole(known.number('bytes_code'))}. What definitions share is (other). The name before the colon is today's module."
            ).replace("<p", '<p style="padding:0 12px"', 1)
            + table(("definition", "module", "bytes"), [(name, module or "-", f"{size:,}") for name, module, size in known.code], (0, 1)),
        )
    else:
        text = absent(f"Code is not taken apart: {known.faults.get('code')}.")
    if known.opened:
        rows = [(row.name, row.category, f"{row.count:,}", f"{row.size:,}", f"{8 * row.size / row.count:.3f}") for row in known.opened.rows]
        text = (
            folded(f"{len(rows)} parts of the artifact", table(("tensor", "category", "numbers", "bytes", "bits each"), rows, (0, 1)))
            + text
        )
    else:
        text = absent("Tensors are not shown one by one: the artifact was not opened, see Round trip and calibration.") + text
    rows = [(name, f"{size:,.0f}", f"{100 * size / total:.1f} %") for name, size in sizes.items()]
    rows.append(("counted", f"{total:,.0f}", "100.0 %"))
    figures.append(bar_rows("Bytes by category", bars, "bytes and share of what counts"))
    return charts(figures) + folded("Bytes by category", table(("category", "bytes", "share"), rows, (0,))) + text


def speed_section(known):
    """Tokens a second and milliseconds a step over time, and the predicted size."""
    several, figures, slow, fast, sizes = len(known.curves) > 1, [], [], [], []
    for place, curve in enumerate(known.curves):
        name = curve.name if several else "speed"
        fast.append(Line(name, [(s[1], s[3]) for s in curve.steps], place % 8))
        pairs = zip(curve.steps, curve.steps[1:])
        slow.append(Line(name, [(b[1], 1000 * (b[1] - a[1]) / (b[0] - a[0])) for a, b in pairs if b[0] > a[0]], place % 8))
        sizes.append(Line(name, curve.predicted, place % 8, "dots"))
    figures = [
        line_chart("Tokens a second", fast, "seconds of training", "tokens/s", floor=0.0, clip=False),
        line_chart("Milliseconds a step", slow, "seconds of training", "ms", floor=0.0, clip=False),
        line_chart("Predicted size", sizes, "steps", "bytes with code", "of the weights at that step", clip=False),
    ]
    pairs = [("machine", str(known.said.get("hardware") or "-")[:80], ""), ("milliseconds a step", fixed(mean_step(known), 1), "mean over the training"),
              ("evaluation", f"{fixed(known.number('eval_time_seconds'), 1)} s", "from process start"), ("calibration", f"{fixed(known.number('calibration_seconds'), 1)} s", "after training")]  # fmt: skip
    return charts(figures) + facts(pairs)


def mean_step(known):
    """Milliseconds a step of the seeds' mean."""
    values = numbers({key: reading.number(row, "step_avg_ms") for key, row in reading.part(known.said, "seed_results", dict).items()})
    return sum(values) / len(values) if values else math.nan


def certificate_section(known):
    """Every check, its verdict and its evidence; those that did not pass first."""
    if not known.checks:
        return absent("There is no certificate.json; python -m trit.eval.certify makes one.")
    words = {"fail": "✗ fail", "unknown": "? open", "pass": "✓ pass"}
    checks = sorted(known.checks, key=lambda check: list(words).index(check.verdict))
    lines = [
        f"<li><i class={check.verdict}>{words[check.verdict]}</i><b>{e(check.name)}</b><span>{e(check.evidence)}</span></li>"
        for check in checks
    ]
    return note("What each check means, and what none of them can see: docs/legality.md.") + f"<ul class=checks>{''.join(lines)}</ul>"


def seed_section(known):
    """Every seed's result where there are several, and other compressors on the same text."""
    results = reading.part(known.said, "seed_results", dict)
    rows = [(str(seed)[:20], fixed(reading.number(row, "val_bpb"), 6), fixed(reading.number(row, "val_loss"), 6), whole(reading.number(row, "artifact_bytes")),
             whole(reading.number(row, "steps")), fixed(reading.number(row, "train_time_s"), 1)) for seed, row in list(results.items())[:64]]  # fmt: skip
    text = (
        table(("seed", "bits per byte", "nats a token", "artifact bytes", "steps", "seconds"), rows).replace(
            "class=scroll", 'class="open scroll"', 1
        )
        if rows
        else ""
    )
    others = reading.part(known.said, "comparison", dict)
    values = [("this model", [(0, known.number("val_bpb"), "diamond")], fixed(known.number("val_bpb"), 4))]
    values += [
        (str(name)[:40], [(6, reading.number(others, name), "dot")], fixed(reading.number(others, name), 4)) for name in list(others)[:8]
    ]
    return (
        charts([dot_rows("The same text under other compressors", values, "bits per byte", "lower is better", (), 0.0)] if others else [])
        + text
    )


def record_page(known):
    """The whole page of `Facts`."""
    name = str(known.said.get("name") or known.folder.name)[:120]
    sections = [
        ("curves", "Loss", curve_charts(known)),
        ("bytes", "Bytes", byte_sections(known)),
        ("tensors", "Round trip and calibration", tensor_section(known)),
        ("trits", "Trits", trit_section(known)),
        ("engram", "Engram", engram_section(known)),
        ("speed", "Throughput", speed_section(known)),
        ("certificate", "Certificate", certificate_section(known)),
        ("seeds", "Seeds and comparison", seed_section(known)),
        ("settings", "Settings", folded("config.json", f"<div class=scroll><pre>{e(json.dumps(known.settings, indent=1))}</pre></div>") if known.settings else ""),
    ]  # fmt: skip
    versions = ", ".join(f"{str(k)[:20]} {str(v)[:40]}" for k, v in list(reading.part(known.said, "versions", dict).items())[:12])
    return document(
        f"{name}: {fixed(known.number('val_bpb'), 4)} bits per byte",
        head(known),
        sections,
        f"<p>Made from the record's folder by python -m trit.report.page. {e(versions)}</p>",
    )
