"""What the schedules of phases may say: checked before a run, never shipped."""

from trit.models import load_arch
from trit.train.phases import parse_schedule
from trit.train.plateau import LONGEST_WINDOW


def read_schedule(name, text):
    """`parse_schedule`, or ValueError where the text is none or its shares do not rise between 0 and 1."""
    try:
        schedule = parse_schedule(text)
        whole = len(schedule) == text.count(",") + 1
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{name}={text!r} is no schedule; write value:share of the clock at which it ends, for example 64:0.1,128:0.3")
    ends = [end for _, end in schedule]
    if not all(low < high for low, high in zip([0.0, *ends], [*ends, 1.0])):
        raise ValueError(
            f"{name}={text!r}: the shares of the clock must rise, above 0 and below 1; after the last one the full value holds"
        )
    return schedule


def check_phases(config, world_size):
    """ValueError where a schedule cannot be cut into windows and micro-batches, or names a switch of nothing."""
    train = config.train
    if train.seq_schedule:
        for length, _ in read_schedule("train.seq_schedule", train.seq_schedule):
            if length < 2 or train.train_seq_len % length:
                near = ", ".join(str(n) for n in range(2, train.train_seq_len) if train.train_seq_len % n == 0)
                reason = f"windows of {length} do not divide train.train_seq_len={train.train_seq_len}; possible: {near}"
                raise ValueError(f"train.seq_schedule={train.seq_schedule!r}: {reason}")
    if train.batch_schedule:
        step = world_size * train.grad_accum_steps * train.train_seq_len
        for tokens, _ in read_schedule("train.batch_schedule", train.batch_schedule):
            if tokens < step or tokens % step:
                reason = f"{tokens} tokens are no multiple of world_size*grad_accum_steps*train_seq_len = {step}"
                near = " or ".join(str(n) for n in (tokens // step * step, tokens // step * step + step) if n)
                raise ValueError(f"train.batch_schedule={train.batch_schedule!r}: {reason}; nearest {near}")
    if not 0 <= train.recurrence_start < 1:
        raise ValueError(f"train.recurrence_start={train.recurrence_start} must be at least 0 and below 1: evaluation always recurs")
    if train.recurrence_start and not getattr(config.arch, "recurrent_layers", ""):
        reason = "switches on what is not there; name layers in arch.recurrent_layers, or set it to 0"
        raise ValueError(f"train.recurrence_start={train.recurrence_start} {reason}")
    if not 0 <= train.drop_path < 1:
        raise ValueError(f"train.drop_path={train.drop_path} must be at least 0 (off) and below 1")
    if config.quant.noise < 0 or config.quant.noise and train.fp8:
        reason = "must not be negative" if config.quant.noise < 0 else "is not exact in train.fp8; set it to 0"
        raise ValueError(f"quant.noise={config.quant.noise} {reason}")
    if config.quant.noise and config.quant.matrix_scheme != "ternary":
        raise ValueError(f"quant.noise={config.quant.noise} needs ternary weights; set quant.matrix_scheme=ternary, or it to 0")
    check_carry(config)
    check_ladder(config)
    phased = train.seq_schedule or train.batch_schedule or train.recurrence_start or config.engram.write_every > 1
    if phased and train.compile and not train.warmup_steps:
        raise ValueError("train.warmup_steps=0 would compile every phase on the clock; set it to 1 or more, or train.compile=false")


def check_carry(config):
    """ValueError where train.carry has nothing to carry, or rows of a step that do not go on with those of the step before."""
    train, letters = config.train, getattr(config.arch, "layer_map", "")
    if not 0 <= train.carry_reset < 1:
        raise ValueError(f"train.carry_reset={train.carry_reset} must be at least 0 (never) and below 1 (always, which carries nothing)")
    if train.carry_windows < 0 or train.carry_windows == 1:
        reason = "must be 2 or more (1 would carry nothing), or 0 for as many as an epoch gives"
        raise ValueError(f"train.carry_windows={train.carry_windows} {reason}")
    if not train.carry:
        for name in ("carry_reset", "carry_windows"):
            if getattr(train, name) != getattr(type(train), name):
                raise ValueError(f"train.{name}={getattr(train, name)} does nothing while train.carry=False")
        return
    if not set(letters) & set("ks") and not getattr(config.arch, "capsules", 0):
        reason = "has no part with a state; take model.name=koopman_ssm, or hybrid or skc with k or s, or arch.capsules, or set it to false"
        raise ValueError(f"train.carry=True: model.name={config.model.name} {reason}")
    for name, value in (("seq_schedule", train.seq_schedule), ("batch_schedule", train.batch_schedule)):
        if value:
            raise ValueError(f"train.carry=True needs the same rows in every step, which train.{name}={value!r} changes; leave it empty")
    if train.recurrence_start:
        reason = (
            f"needs as many visits of a layer in every step, which train.recurrence_start={train.recurrence_start} changes; set it to 0"
        )
        raise ValueError(f"train.carry=True {reason}")
    blocks = {"arch.capsule_block": config.arch.capsule_block if config.arch.capsules else 1}
    if "s" in letters and config.arch.skc_mix_init:
        blocks["arch.skc_block"] = config.arch.skc_block
    for name, block in blocks.items():
        if block < 1 or train.train_seq_len % block:
            reason = f"carries whole blocks: {name}={block} must divide train.train_seq_len={train.train_seq_len}"
            raise ValueError(f"train.carry=True {reason}")


def check_ladder(config):
    """ValueError where train.ladder holds no numbers, or nothing climbs it."""
    train = config.train
    if not train.ladder:
        for name in ("ladder_window", "ladder_gain", "ladder_end"):
            if getattr(train, name) != getattr(type(train), name):
                raise ValueError(f"train.{name}={getattr(train, name)} does nothing while train.ladder is empty")
        return
    if not hasattr(load_arch(config.model.name), "stage_arrays"):
        raise ValueError(f"train.ladder={train.ladder!r}: model.name={config.model.name} has nothing to climb it; leave it empty")
    try:
        rungs = [float(part) for part in train.ladder.split(",")]
    except ValueError:
        rungs = []
    if len(rungs) < 2:
        raise ValueError(f"train.ladder={train.ladder!r} must be two numbers or more, for example 0.125,0.25,0.5,1")
    window = train.ladder_window
    if not (4 <= window <= LONGEST_WINDOW and window % 2 == 0):
        raise ValueError(f"train.ladder_window={window} must be even, from 4 to {LONGEST_WINDOW}")
    if not 0 < train.ladder_gain < 1:
        raise ValueError(f"train.ladder_gain={train.ladder_gain} must lie between 0 and 1")
    if not 0 < train.ladder_end < 1:
        raise ValueError(f"train.ladder_end={train.ladder_end} must lie between 0 and 1: what is scored is the last rung")
