"""What `build_submission.py --plan` prints: bytes by category of a configuration, whether it fits, and what would. Needs no weights, no
torch and no data."""

import warnings
from typing import NamedTuple

from trit.compress.fit import expected_total, fit
from trit.compress.plan import budget_table, check_plan, plan
from trit.config_load import full_key, known_fields, load
from trit.models import load_arch
from trit.params import parameter_count


class PlanReport(NamedTuple):
    """`text` for people, whether the configuration `fits`, and the `facts` of the text for programs."""

    text: str
    fits: bool
    facts: dict


def plan_report(preset, overrides, fitted, environ):
    """`PlanReport` of a preset under `key=value` overrides; `fitted` names a setting to solve for, or is empty."""
    config, _, _ = load(preset, environ, overrides)
    code, cap, lines, facts = config.compress.code_bytes_reserve, config.track.cap_bytes, [], {}
    if fitted:
        name = full_key(fitted, known_fields(type(config.arch)), config.model.name)
        section, key = name.split(".")
        before = getattr(getattr(config, section), key)
        config = fit(config, name, code, cap)
        after = getattr(getattr(config, section), key)
        facts["fitted"] = {"setting": name, "value": after, "before": before, "expected": expected_total(config, code)}
        lines.append(
            f"{name}={after} (was {before}) is the largest that fits: {expected_total(config, code):,} of {cap:,} bytes, half a percent kept"
        )
    specs = load_arch(config.model.name).param_specs(config)
    made = plan(config, specs, code)
    bound, expected = made.model_bytes()
    facts |= {"parameters": parameter_count(specs), "cap": cap, "bytes_code": code, "rows": made.rows}
    facts |= {"expected": code + expected, "at_most": code + bound, "free": cap - code - expected}
    lines += [f"{parameter_count(specs):,} parameters; code is compress.code_bytes_reserve", budget_table(made, cap)]
    try:
        with warnings.catch_warnings(record=True) as doubts:
            warnings.simplefilter("always")
            free = check_plan(made, cap)
        notes = [str(doubt.message) for doubt in doubts]
        lines += [f"note: {note}" for note in notes] + [f"fits: {free:,} bytes expected to stay free"]
        return PlanReport("\n".join(lines), True, {"fits": True, **facts, "notes": notes})
    except ValueError as fault:
        return PlanReport("\n".join([*lines, f"does not fit: {fault}"]), False, {"fits": False, **facts, "notes": [str(fault)]})
