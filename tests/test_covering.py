"""The fast suite's combinations hold every pair that any combination of the whole product does, and few of them."""

import itertools

import model_fixtures
import numpy as np
import pytest
import test_documents
from covering import covering
from model_fixtures import BACKENDS, COMBINED
from test_models import LENGTHS

from trit.models import arch_names

random_axes = [
    [list(range(size)) for size in np.random.default_rng(seed).integers(1, 7, 2 + seed % 4)] for seed in range(12)
]  # of two to five axes


def fast_rows(found):
    return [tuple(parameter.values) for parameter in found if not parameter.marks]


def pairs_of(rows):
    """All ((axis, value), (axis, value)) that stand together in a row."""
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("axes", random_axes, ids=map(str, range(12)))
def test_every_pair_of_a_product_is_covered(axes):
    found = covering(axes)
    assert sorted(tuple(parameter.values) for parameter in found) == sorted(itertools.product(*axes))
    fast = fast_rows(found)
    for one, two in itertools.combinations(range(len(axes)), 2):
        assert {(row[one], row[two]) for row in fast} == set(itertools.product(axes[one], axes[two]))
    sizes = sorted(map(len, axes))
    assert len(fast) <= 2 * sizes[-1] * sizes[-2]
    assert fast_rows(covering(axes)) == fast


@pytest.mark.parametrize("axes", random_axes[2:], ids=map(str, range(2, 12)))
def test_what_cannot_be_is_left_out_and_what_is_slow_is_marked(axes):
    def allowed(*row):
        return sum(row) % 5 != 1

    def fast(*row):
        return row[0] != 0

    found = covering(axes, allowed, fast)
    possible = [row for row in itertools.product(*axes) if allowed(*row)]
    assert sorted(tuple(parameter.values) for parameter in found) == possible
    chosen = fast_rows(found)
    assert all(fast(*row) for row in chosen) and pairs_of(chosen) == pairs_of([row for row in possible if fast(*row)])


def test_one_axis_is_run_whole_and_values_need_no_hash():
    assert fast_rows(covering([[{}, {"a": 1}]])) == [({},), ({"a": 1},)]
    assert [parameter.id for parameter in covering([["x", "y"], [{}, {"a": 1}]])] == ["x-case0", "x-case1", "y-case0", "y-case1"]


def rows_of_models(name, flags, *_):
    return name == "unet" or flags in COMBINED


def rows_of_documents(name, flags, backend, *_):
    return (name, backend) != ("equilibrium", "mlx")


@pytest.mark.parametrize(
    "found,fast",
    [
        (model_fixtures.models_with(), rows_of_models),
        (model_fixtures.models_with(BACKENDS), rows_of_models),
        (model_fixtures.models_with(BACKENDS, LENGTHS), rows_of_models),
        (test_documents.models_with(test_documents.SEVERAL), rows_of_documents),
    ],
    ids=["models", "models_of_both", "lengths", "documents"],
)
def test_the_uses_have_every_pair_that_the_fast_suite_can_afford(found, fast):
    chosen, rows = fast_rows(found), [tuple(parameter.values) for parameter in found]
    assert pairs_of(chosen) == pairs_of([row for row in rows if fast(*row)])
    assert {row[0] for row in chosen} == set(arch_names())
    assert len(chosen) < len(rows) / 2


def test_a_property_is_checked_for_every_architecture_with_every_combined_row():
    """Also beside a third and fourth axis."""
    chosen = fast_rows(model_fixtures.models_with(BACKENDS, LENGTHS))
    assert {row[:2] for row in chosen} == {tuple(p.values) for p in model_fixtures.MODELS if not p.marks}
