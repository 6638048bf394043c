"""Which settings an architecture can have is known in one place, `validate`. Tests of rows of settings ask it and run what it takes; what it
refuses stands here: refused before anything is trained, in one line that names the architecture and the setting."""

import pytest
from model_fixtures import EVAL_SETS, refusal, takes
from test_bundle_package import GRID
from test_fp8 import FP8

from trit.models import arch_names

# Rows of FLAG_SETS and of the two tables of test_bundle_package.py, and what only training asks for.
TRAINING = {"fp8": FP8, "drop_path": {"drop_path": 0.1}, "carry": {"carry": "true"}, "ladder": {"ladder": "0.5,1"}}
ROWS = GRID | {f"evaluation, {part}": settings for part, settings in EVAL_SETS.items()} | TRAINING
REFUSED = [(name, row) for name in arch_names() for row in ROWS if not takes(name, ROWS[row])]


def named(line, settings):
    """The settings of a row that a refusal names."""
    return [key for key in settings if f".{key}=" in line or repr(key) in line]


@pytest.mark.parametrize("name,row", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_that_names_both(name, row):
    """A row that is refused for another reason is a fault of the row, which no test would ever run."""
    line = refusal(name, ROWS[row])
    assert "\n" not in line and f"model.name={name}" in line and len(named(line, ROWS[row])) == 1


@pytest.mark.parametrize("name,row", REFUSED)
def test_without_the_settings_that_are_named_the_rest_of_a_row_is_possible(name, row):
    settings = dict(ROWS[row])
    while line := refusal(name, settings):
        (key,) = named(line, settings)
        del settings[key]
    assert settings != ROWS[row]


def test_every_row_is_run_on_some_architecture_and_every_architecture_runs_some():
    possible = {(name, row) for name in arch_names() for row in ROWS} - set(REFUSED)
    assert {row for _, row in possible} == set(ROWS)
    assert all(
        ("plain" in rows and "evaluation, all" in rows)
        for rows in ([row for arch, row in possible if arch == name] for name in arch_names())
    )


def test_names_of_settings_that_no_architecture_has_are_answered_as_before():
    assert "of model.name" not in refusal("unet", {"capsule": 4}) and "did you mean" in refusal("unet", {"capsule": 4})
