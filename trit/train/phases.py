"""Phases of training: what of a step's shape changes with the clock. Each phase is compiled before the clock starts.

A schedule is a text such as "64:0.1,128:0.3": the value 64 until 10 % of the clock, 128 until 30 %, then the setting it leads up to.
"""

from typing import NamedTuple


class Phase(NamedTuple):
    """Tokens of a window, tokens of an optimiser step over all ranks, and whether recurrent layers are still visited once."""

    length: int
    tokens: int
    shallow: bool


class Moment(NamedTuple):
    """Where in a run a step stands: whether recurrent layers are visited once, the run's seed, steps done, share of the clock, and with
    train.carry for each of this rank's rows 1 where it goes on with the text of the step before, else 0: float32 (rows,), None for none."""

    shallow: bool
    seed: int
    step: int
    progress: float
    joined: object = None


def has_moments(cfg):
    """Whether a step must know its `Moment`. Static: without it none is ever made."""
    chance = cfg.train.drop_path > 0 or cfg.quant.noise > 0
    return cfg.train.recurrence_start > 0 or chance or cfg.engram.write_every > 1 or cfg.train.carry or cfg.train.ladder != ""


def has_phases(cfg):
    """Whether anything changes at all. Static: without it nothing of this file ships."""
    return cfg.train.seq_schedule != "" or cfg.train.batch_schedule != "" or has_moments(cfg)


def parse_schedule(text):
    """[(value, share of the clock at which it ends), ...] of a schedule's text."""
    return [(int(value), float(end)) for value, end in [part.split(":") for part in text.split(",") if part]]


def scheduled(text, progress, last):
    """The value that a schedule's text gives at this share of the clock; `last` after its end."""
    for value, end in parse_schedule(text):
        if progress < end:
            return value
    return last


def phase_at(cfg, progress):
    """The `Phase` that holds at this share of the clock."""
    length = scheduled(cfg.train.seq_schedule, progress, cfg.train.train_seq_len)
    tokens = scheduled(cfg.train.batch_schedule, progress, cfg.train.train_batch_tokens)
    return Phase(length, tokens, progress < cfg.train.recurrence_start)


def all_phases(cfg):
    """Every `Phase` of a run, each once, in order."""
    edges = [end for text in (cfg.train.seq_schedule, cfg.train.batch_schedule) for _, end in parse_schedule(text)]
    return list(dict.fromkeys(phase_at(cfg, edge) for edge in sorted([0.0, cfg.train.recurrence_start, *edges])))
