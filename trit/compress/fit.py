"""The largest configuration under the cap: what `build_submission.py --plan --fit NAME` solves, without weights."""

import math

from trit.compress.plan import plan, replaced
from trit.models import load_arch

PLAN_ERROR = 0.005  # the expected size is good to this share: what a fit leaves free
UNITS = {"model.model_dim": 8, "model.embed_dim": 2, "engram.engram_buckets": 16}  # steps of a search; one elsewhere
PASSED_OVER = 48  # neighbouring values tried where one does not go with the other settings


def expected_total(config, code_bytes):
    """Bytes of code and artifact that a configuration should take, with what the plan may be wrong by."""
    made = plan(config, load_arch(config.model.name).param_specs(config), code_bytes)
    return code_bytes + math.ceil(made.model_bytes()[1] * (1 + PLAN_ERROR))


def valid_below(config, name, value, unit):
    """(value, Config) of the largest valid value at most `value`, looked for among some neighbours; None where there is none."""
    for candidate in range(value, max(value - PASSED_OVER * unit, 0), -unit):
        try:
            return candidate, replaced(config, name, candidate)
        except (ValueError, ArithmeticError):
            continue
    return None


def fit(config, name, code_bytes, cap):
    """Config with the largest value of the integer setting `name` (section.key) whose expected total fits `cap` bytes.

    ValueError where the setting is no size or nothing fits. Sizes must grow with the setting; values that do not go with the other
    settings (a width that the heads do not divide) are passed over.
    """
    section, key = name.split(".")
    start = getattr(getattr(config, section), key)
    if type(start) is not int or section not in ("model", "engram", "quant"):
        raise ValueError(f"{name} is not a size; fit model.model_dim, model.num_layers, model.embed_dim, engram.engram_buckets or the like")
    unit = UNITS.get(name, 1)
    best, low, high = None, 0, max(start // unit, 1)

    def try_value(steps):
        found = valid_below(config, name, steps * unit, unit)
        return found if found and expected_total(found[1], code_bytes) <= cap else None

    while found := try_value(high):
        if best and found[0] <= best[0]:
            return found[1]  # the other settings allow no more
        best, low, high = found, high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        found = try_value(middle)
        best, low, high = (found, middle, high) if found else (best, low, middle)
    if best is None:
        raise ValueError(f"no value of {name} fits {cap:,} bytes")
    return best[1]
