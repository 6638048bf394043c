"""Equal bytes: a variant's size setting grows until its code and its artifact are expected to fill the cap.

What the artifact will weigh comes from the planner, which needs no weights; the code is bundled for real.
"""

import functools

from trit.bundle.bundle import bundle
from trit.compress.plan import plan
from trit.config_load import load
from trit.models import load_arch

FILLED_SHARE = 0.985  # of the cap: the planner is within half a percent where it was measured, and a study must not end over the cap


def counted_code(config):
    """Bytes of the counted program of a configuration."""
    return bundle(config).sizes["wrapped"]


def expected_total(preset, settings, code):
    """Bytes that settings are expected to take beside a program of `code` bytes, and the cap of their track."""
    config, _, _ = load(preset, environ={}, overrides=settings)
    made = plan(config, load_arch(config.model.name).param_specs(config), code)
    return code + made.model_bytes()[1], config.track.cap_bytes


@functools.cache  # the first variant is asked for again by every other that is paced against it
def filled(study, variant):
    """([key=value] of the variant with its size set, bytes of its program, bytes expected in all). ValueError where even one step of the
    setting that should grow does not fit."""
    settings = study.settings(variant)
    code = counted_code(load(study.preset, environ={}, overrides=settings)[0]) if study.score else 0
    if not variant.fill:
        return settings, code, expected_total(study.preset, settings, code)[0]

    def fits(steps):
        total, cap = expected_total(study.preset, [*settings, f"{variant.fill}={steps * variant.fill_step}"], code)
        return total <= FILLED_SHARE * cap

    if not fits(1):
        raise ValueError(f"variant {variant.name} does not fit its cap with {variant.fill}={variant.fill_step}: make its model smaller")
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    settings.append(f"{variant.fill}={low * variant.fill_step}")
    return settings, code, expected_total(study.preset, settings, code)[0]
