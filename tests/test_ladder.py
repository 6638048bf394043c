"""The controller of train.ladder: when a rung ends, what the learning rate does, and that a resumed run goes on bit for bit."""

import math

import numpy as np
import pytest
from model_fixtures import Records, random_tokens, start, tiny_config
from record_fixtures import counted_and_package

from trit.train.backend import Backend
from trit.train.phases import Moment
from trit.train.plateau import LONGEST_WINDOW, judged, rung_factor, with_ladder

NAME = "spectral_lm"


def ladder_config(**settings):
    return tiny_config(NAME, **{"ladder": "0.25,0.5,1", "ladder_window": 10, "warmup_fraction": 0.0, "iterations": 1000} | settings)


def climb(cfg, losses, log=None, total=None):
    """[(rung, learning rate factor)] of steps that lose `losses` one after another, of `total` that the clock has."""
    seen = []

    def step(inputs, targets, factor, rounded, averaging, moment):
        seen.append((moment.rung, factor))
        return lambda: (losses[len(seen) - 1], 1.0)

    backend = with_ladder(cfg, Backend(step, None, None, dict, lambda flat: None, 0, 1), log or Records())
    for number in range(len(losses)):
        backend.step(None, None, 1.0, True, False, Moment(False, 1, number, number / (total or 1000)))()
    return seen


def test_a_rung_lasts_while_the_loss_falls_and_ends_where_it_stands_still():
    falling = [3.0 * 0.99**i for i in range(60)]
    assert {rung for rung, _ in climb(ladder_config(), falling)} == {0.25}
    log = Records()
    seen = climb(ladder_config(), falling[:40] + [2.0] * 30, log)
    assert [rung for rung, _ in seen] == [0.25] * 50 + [0.5] * 10 + [1.0] * 10
    first, second = log.events("cutoff_raise")
    assert (first["before"], first["after"], first["step"]) == (0.25, 0.5, 50) and (second["before"], second["after"]) == (0.5, 1.0)
    assert first["m1"] == first["m2"] == 2.0 and first["sigma"] == 0.0


def test_a_raise_sets_the_rate_to_its_peak_and_a_cosine_leads_on():
    """A18: the next step has the peak rate, the following ones stay on the new cosine."""
    seen = climb(ladder_config(min_lr=0.05), [2.0] * 900)
    rungs = [rung for rung, _ in seen]
    for rung, low in ((0.25, 0.1), (0.5, 0.1), (1.0, 0.05)):
        begin = rungs.index(rung)
        assert seen[begin][1] == 1.0
        for number in range(begin, begin + rungs.count(rung)):
            share = (number / 1000 - begin / 1000) / (1 - begin / 1000)
            assert math.isclose(seen[number][1], low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)), rel_tol=1e-9)


def test_the_first_steps_rise_and_the_last_rung_begins_in_time():
    cfg = ladder_config(warmup_fraction=0.1, ladder_end=0.4)
    seen = climb(cfg, [3.0 * 0.99**i for i in range(1000)])
    assert [factor for _, factor in seen[:100]] == pytest.approx([max(i / 100, 0.01) for i in range(100)])
    assert [rung for rung, _ in seen] == [0.25] * 400 + [1.0] * 600 and seen[400][1] == 1.0
    assert rung_factor(cfg, 1.0, 1.0, True) == 1.0


def test_noise_defers_a_decision_up_to_a_bound():
    generator, log = np.random.default_rng(0), Records()
    losses = 2.0 + 1e-4 * np.arange(1400) + generator.normal(0, 0.25, 1400)
    seen = climb(ladder_config(ladder_end=0.999), losses.tolist(), log, total=2000)
    windows = [record["window"] for record in log.events("cutoff_deferred")]
    assert windows[:7] == [20, 40, 80, 160, 320, 640, LONGEST_WINDOW]
    assert [rung for rung, _ in seen].count(0.25) == LONGEST_WINDOW
    still, before, after, sigma, hidden = judged(losses[:1000], 0.005)
    assert still and hidden and abs(sigma - 0.25) < 0.02 and abs(after - before - 0.05) < 0.05


def test_a_loss_that_is_no_number_is_not_counted():
    assert {rung for rung, _ in climb(ladder_config(), [2.0] * 9 + [math.nan] * 30)} == {0.25}


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_resumed_run_goes_on_bit_for_bit(backend):
    """A19: weights, moments, rung, window, losses and origin of the rate: five more steps lose the same."""
    cfg = ladder_config(ladder_window=4, ladder_gain=0.5, ladder_end=0.9)

    def steps(trained, numbers):
        rows = [random_tokens(cfg, 4, 33, number) for number in numbers]
        return [
            trained.step(each[:, :-1], each[:, 1:], 1.0, True, False, Moment(False, 1, number, number / 40))()[0]
            for number, each in zip(numbers, rows)
        ]

    log = Records()
    whole = with_ladder(cfg, start(cfg, backend), log)
    steps(whole, range(6))
    kept = {name: np.array(x) for name, x in whole.state().items()}
    wanted = steps(whole, range(6, 11))
    assert [record["step"] for record in log.events("cutoff_raise")] == [4, 8]  # one before the state was kept, one after
    other = with_ladder(cfg, start(cfg, backend), Records())
    steps(other, range(3))
    other.restore(kept)
    assert steps(other, range(6, 11)) == wanted


def test_warm_up_leaves_the_ladder_at_its_foot():
    from trit.train.loop import warm_up

    cfg = ladder_config(ladder_window=4, ladder_gain=0.5, warmup_steps=9)
    trained = with_ladder(cfg, start(cfg), Records())
    before = trained.state()
    warm_up(cfg, trained, 1)
    after = trained.state()
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "mlx"])
def test_the_counted_file_trains_climbs_and_scores_as_the_package_does(library, shard_folder, tmp_path):
    cfg = tiny_config(NAME, vocab_size=260, ladder="0.25,1", iterations=8, chunk=4, chunk_rank=8, embed_dim=32, calibration_evals=0)
    alone, package, steps = counted_and_package(cfg, shard_folder, tmp_path, library)
    assert steps == 8 and np.array_equal(alone, package)
