"""What a study shows while it runs: a table that renews itself on a terminal, else a line for each training that ends.

A display is a context; `refresh(running, waiting)` is called several times a second, `ended(folder, line, failed)` after each training.
"""

import contextlib
import functools
import json
import sys
import time
from datetime import datetime, timedelta
from typing import NamedTuple

from tqdm import tqdm

from trit.config_load import load
from trit.report.statistics import mean_and_deviation
from trit.study.files import read_json
from trit.study.report import records_of
from trit.train.schedule import training_progress

NUMBERS = 56  # columns that the numbers of a table need at most; the names get the rest
EVERY = 1.0  # seconds from one look at the folders to the next


class Progress(NamedTuple):
    """How far a training is: its stage, steps done and steps in all (0: the clock ends it), loss in nats, seconds on its budget's clock, and
    the share of its budget that they are."""

    name: str
    seed: int
    stage: str
    step: int
    steps: int
    loss: float
    seconds: float
    share: float


@functools.cache
def training_settings(preset, settings):
    """The `Config` of a training's settings."""
    return load(preset, environ={}, overrides=settings)[0]


def last_step(path):
    """The last record of a step in a file of JSON lines, whatever other records and half a line are behind it; None where there is none
    yet."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, 2) - 16384, 0))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and "train_loss" in said:
                return said
    return None


def progress(folder):
    """`Progress` of the training in a folder. It waits until it wrote its first file since it was asked for."""
    job, metrics = read_json(folder / "job.json"), folder / "metrics.jsonl"
    config = training_settings(job["preset"], tuple(job["settings"]))
    steps = 0 if config.train.max_wallclock_seconds else config.train.iterations
    begun = metrics.exists() and metrics.stat().st_mtime_ns >= (folder / "job.json").stat().st_mtime_ns
    done = read_json(folder / "trained.json") if begun else None
    if done:
        stage = "scores" if job["score"] else "saves"
        return Progress(job["name"], job["seed"], stage, done["steps"], steps, done["loss"], done["seconds"], 1.0)
    said = last_step(metrics) if begun else None
    if not said:
        return Progress(job["name"], job["seed"], "starts" if begun else "waits", 0, steps, float("nan"), 0.0, 0.0)
    share = training_progress(config, said["step"], said["seconds"])
    return Progress(job["name"], job["seed"], "trains", said["step"], steps, said["train_loss"], said["seconds"], share)


def span(seconds):
    """A length of time for people: 0:07, 12:40, 3:05:00."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Lines:
    """A line for each training that ends, and a bar where standard error is a terminal."""

    def __init__(self, study, out, todo, lines):
        total = len(study.seeds) * len(study.variants)
        self.lines, self.settings = lines, {"total": total, "initial": max(total - todo, 0), "desc": study.name}

    def __enter__(self):
        self.bar = tqdm(unit="run", disable=None, **self.settings)
        return self

    def refresh(self, running, waiting):
        """Nothing changes until a training ends."""

    def ended(self, folder, line, failed=False):
        tqdm.write(line, file=sys.stderr if failed else self.lines)
        (sys.stderr if failed else self.lines).flush()
        self.bar.update()

    def __exit__(self, *fault):
        self.bar.close()


class Clock:
    """When a study will end, from how long its trainings took here: those that are done, and by their share those that are not."""

    def __init__(self):
        self.began, self.took = {}, []

    def begins(self, folder, now):
        """The training of `folder` is under way."""
        self.began.setdefault(folder, now)

    def ends(self, folder, now):
        """It has ended."""
        if folder in self.began:
            self.took.append(now - self.began.pop(folder))

    def left(self, shares, waiting, now):
        """Seconds until {folder: share} and `waiting` others are done, as many at once as now; NaN where nothing tells yet."""
        ages = {folder: now - self.began[folder] for folder in shares}
        guesses = self.took or [ages[folder] / share for folder, share in shares.items() if share > 0]
        if not guesses:
            return float("nan")
        usual = sum(guesses) / len(guesses)
        rest = [max((ages[f] / share if share > 0 and not self.took else usual) - ages[f], 0.0) for f, share in shares.items()]
        return max((sum(rest) + waiting * usual) / max(len(shares), 1), max(rest, default=0.0))


class Table:
    """Running trainings, variants with records, and when all will be done, on the terminal that standard error is."""

    def __init__(self, study, out, todo, lines, console):
        from rich.live import Live

        self.study, self.out, self.console, self.lines = study, out, console, lines
        self.clock, self.looked, self.failed, self.records = Clock(), 0.0, 0, records_of(study, out)
        # What is printed goes above the table where it goes to the same terminal.
        self.live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self):
        self.live.start()
        return self

    def ended(self, folder, line, failed=False):
        self.clock.ends(folder, time.monotonic())
        self.failed += failed
        self.records, self.looked = records_of(self.study, self.out), 0.0
        if failed or self.lines.isatty():
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.lines, flush=True)

    def refresh(self, running, waiting):
        now = time.monotonic()
        if now - self.looked >= EVERY:
            self.looked = now
            found = {folder: progress(folder) for folder in running}
            for folder, each in found.items():
                if each.stage != "waits":
                    self.clock.begins(folder, now)
            self.live.update(self.drawn(found, len(waiting), now), refresh=True)

    def __exit__(self, *fault):
        self.live.stop()

    def drawn(self, found, waiting, now):
        """What is shown for {folder: Progress} and the number of trainings not begun."""
        from rich.console import Group
        from rich.text import Text

        active = {folder: each.share for folder, each in found.items() if each.stage != "waits"}
        queued = waiting + len(found) - len(active)
        parts = [f"{len(self.records)} done", f"{len(active)} running", f"{queued} left"]
        parts += [f"{self.failed} failed"] if self.failed else []
        left = self.clock.left(active, queued, now)
        if left == left:
            end = datetime.now() + timedelta(seconds=left)
            parts.append(f"ends {end:%H:%M} (in {span(left)})" if left < 20 * 3600 else f"ends {end:%d %b %H:%M}")
        under_way = [each for each in found.values() if each.stage != "waits"]
        room = max(self.console.height - 8, 6)
        under_way, hidden = under_way[: room // 2], len(under_way) - room // 2
        more = [Text(f"and {hidden} more that run", style="dim")] if hidden > 0 else []
        rows = self.finished(max(room - len(under_way) - len(more), 2)) if any("bpb" in record for record in self.records) else []
        return Group(*rows, self.running(under_way), *more, Text(f"{self.study.name}: {', '.join(parts)}", style="bold", no_wrap=True))

    def columns(self, heads):
        """An empty table of rich's, whose first column gives way where the terminal is narrow."""
        from rich import box
        from rich.table import Table as Grid

        grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
        grid.add_column(heads[0], no_wrap=True, overflow="ellipsis", max_width=max(self.console.width - NUMBERS, 12))
        for head in heads[1:]:
            grid.add_column(head, justify="right", no_wrap=True)
        return grid

    def running(self, under_way):
        """The table of [Progress]."""
        grid = self.columns(("running", "seed", "step", "loss", "seconds", "left"))
        for each in under_way:
            steps = f"{each.step:,} of {each.steps:,}" if each.steps else f"{each.step:,} ({each.share:.0%})"
            left = span(each.seconds / each.share - each.seconds) if 0 < each.share < 1 else each.stage
            loss = f"{each.loss:.4f}" if each.loss == each.loss else ""
            grid.add_row(each.name, str(each.seed), steps, loss, f"{each.seconds:,.0f}", left)
        return grid

    def finished(self, room):
        """[table of the variants that have records, in at most `room` lines: the first, then the best]."""
        from rich.text import Text

        groups = [(v.name, [r["bpb"] for r in self.records if r["name"] == v.name]) for v in self.study.variants]
        rows = [(name, len(found), *mean_and_deviation(found)) for name, found in groups if found]
        base = next((mean for name, _, mean, _ in rows if name == self.study.variants[0].name), None)
        shown = rows if len(rows) <= room else rows[:1] + sorted(rows[1:], key=lambda row: row[2])[: room - 2]
        grid = self.columns(("variant", "runs", "bits per byte", "sd", "against the first"))
        for name, runs, mean, deviation in shown:
            apart = "" if base is None or name == self.study.variants[0].name else f"{mean - base:+.4f}"
            spread = f"{deviation:.4f}" if deviation == deviation else "-"
            grid.add_row(name, f"{runs} of {len(self.study.seeds)}", f"{mean:.4f}", spread, apart)
        hidden = len(rows) - len(shown)
        return [grid, *([Text(f"and {hidden} more variants, worse than these", style="dim")] if hidden else []), Text("")]


def display(study, out, todo, lines):
    """The display of a study with `todo` trainings before it; `lines` is the stream that gets a line of each."""
    if not sys.stderr.isatty():
        return Lines(study, out, todo, lines)
    try:
        from rich.console import Console
    except ImportError:
        return Lines(study, out, todo, lines)
    return Table(study, out, todo, lines, Console(stderr=True))
