"""Combinations chosen, not multiplied: of a product of axes the fast suite runs few rows in which every pair of values of any two axes
stands at least once, the slow suite all of them."""

import itertools

import pytest


def covering(axes, allowed=lambda *row: True, fast=lambda *row: True):
    """pytest parameters of every allowed row of the product of `axes`, those outside a covering set of pairs marked slow.

    `axes` are the values of each axis, the cheapest first: ties are broken in their order. `allowed(*row)` says whether a
    row can be, `fast(*row)` whether the fast suite can afford it; pairs that stand in no such row are left to the slow suite or to
    nobody.
    """
    axes = [list(axis) for axis in axes]
    rows = [row for row in itertools.product(*(range(len(axis)) for axis in axes)) if allowed(*values(axes, row))]
    chosen = covering_rows([row for row in rows if fast(*values(axes, row))])
    return [
        pytest.param(*values(axes, row), id="-".join(map(label, axes, row)), marks=[] if row in chosen else pytest.mark.slow)
        for row in rows
    ]


def values(axes, row):
    return [axis[place] for axis, place in zip(axes, row, strict=True)]


def label(axis, place):
    value = axis[place]
    return str(value) if isinstance(value, (str, int)) else f"{getattr(value, '__name__', 'case')}{place}"


def pairs(row):
    """All pairs of (axis, place) of a row; of one axis, its single places."""
    return set(itertools.combinations(enumerate(row), min(2, len(row))))


def covering_rows(rows):
    """Greedily, a set of some `rows` (tuples) with every pair that any of them has: always the first of those with most pairs that are
    still missing."""
    missing, chosen = set().union(*map(pairs, rows)), set()
    gains = {row: pairs(row) for row in rows}
    while missing:
        best = max(gains, key=lambda row: len(gains[row]))
        missing -= gains[best]
        chosen.add(best)
        gains = {row: left for row, found in gains.items() if (left := found & missing)}
    return chosen
