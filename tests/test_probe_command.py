"""Probes of a run's checkpoint: what they say of constructed traces, maps and logs, and the command on a trained folder from end to end."""

import dataclasses
import json
import math

import numpy as np
import pytest
from equilibrium_fixtures import SMALL, TINIEST, character_shards, run_folder
from page_fixtures import stands_alone

from trit.config import TrainConfig
from trit.data.loader import open_train_split
from trit.dynamics.probe import PROBES, main
from trit.dynamics.probe_finding import Chart, Series, as_text
from trit.dynamics.probe_gradients import Bench, cosine, cosines_probe, doubt, nudge_probe, range_of
from trit.dynamics.probe_history import history_probe, read_history
from trit.dynamics.probe_modes import spectrum_probe, walls
from trit.dynamics.probe_operator import Operator, held_windows, open_run, stored_weights
from trit.dynamics.probe_show import decades, svg_chart
from trit.dynamics.probe_trace import (
    AT_REST,
    BLOWN,
    FALLING,
    OSCILLATING,
    STALLED,
    WAVES,
    autocorrelation,
    period,
    sampled,
    trace_probe,
    verdict,
)
from trit.dynamics.spectrum import CONTRACTING, EULER
from trit.models import load_arch
from trit.ops import torch_ops
from trit.train.checkpoint import load_checkpoint, trained_arrays
from trit.train.loss import seen_weights

STEPS = np.arange(2000)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return character_shards(tmp_path_factory.mktemp("shards"), 8000)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run folder of ternary matrices, trained for some steps."""
    return run_folder(tmp_path_factory.mktemp("run"), data, **TINIEST | {"iterations": 12, "calibration_tokens": 256, "log_every": 1})


@pytest.fixture(scope="module")
def opened(run):
    return open_run(run, 3)[0]


@pytest.mark.parametrize(
    "values,wanted",
    [
        (np.exp(-0.02 * STEPS), AT_REST),
        (np.exp(-0.002 * STEPS), FALLING),  # slow, which a short window takes for a halt
        (0.3 + 0.1 * np.sin(0.4 * STEPS), OSCILLATING),
        (0.3 + 0.001 * np.sin(0.005 * STEPS), OSCILLATING),  # whose turn is longer than a short window
        (np.exp(-0.005 * STEPS) * (1.0 + 0.5 * np.sin(0.4 * STEPS)), WAVES),
        (0.1 + np.exp(-0.1 * STEPS), STALLED),
        (np.exp(0.01 * STEPS), BLOWN),
        (np.where(STEPS < 1999, 1.0, np.nan), BLOWN),
    ],
)
def test_what_a_trace_is_called(values, wanted):
    assert verdict(values) == wanted


def test_a_cycle_has_its_period_and_what_falls_has_none():
    assert period(np.sin(2 * np.pi * STEPS / 37)) == 37
    assert period(np.exp(-0.01 * STEPS)) == 0 and period(np.ones(100)) == 0
    found = autocorrelation(np.sin(2 * np.pi * STEPS / 40), 40)
    assert found[0] == 1 and found[20] < -0.9 and found[40] > 0.9


def test_a_thinned_series_keeps_its_least_and_largest():
    values = np.random.default_rng(0).normal(size=5000)
    points = sampled(values, 100)
    assert len(points) <= 100 and {values.min(), values.max()} <= {y for _, y in points}
    assert all(values[x] == y for x, y in points) and [x for x, _ in points] == sorted(x for x, _ in points)


def test_a_map_foretells_first_moving_tokens_only():
    critical = np.array([[0.5, 0.2, 0.1], [0.5, 0.4, 0.3], [0.5, np.nan, np.nan], [0.5, 0.1, 0.4], [0.5, 0.6, 0.7], [0.5, 0.26, 0.1]])
    tail = np.array([[0.0, 0.3, 0.9], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.2], [0.0, 0.1, 0.0]])
    told = walls(critical, tail, 0.25, 1e-3)
    assert told["moving"] == 4 and told["moving_with_evidence"] == 3 and told["foretold"] == 2
    assert told["still"] == 2 and told["still_foretold"] == 1
    assert [row["token"] for row in told["texts"]] == [1, None, 1, None, 2, 1] and told["texts"][0]["least_before"] == 0.5


def test_no_cosine_stands_without_its_residuals():
    assert "no evidence" in doubt(None, 0.0) and "no evidence" in doubt(math.nan, 0.0)
    assert "did not arrive" in doubt(0.2, 0.0) and "not at rest" in doubt(0.01, 0.1) and "not at rest" in doubt(0.01, math.nan)
    assert doubt(0.01, 1e-6) == ""
    left, right = {"a": np.array([1.0, 0.0]), "b": np.array([2.0])}, {"a": np.array([1.0, 1.0]), "b": np.array([0.0])}
    assert cosine(left, right, ["a"]) == pytest.approx(0.5**0.5) and math.isnan(cosine(left, right, ["b"]))


def test_weights_are_those_of_training_bit_for_bit_and_ternary(run, opened):
    cfg, state, *_ = load_checkpoint(run / "checkpoint.npz")
    arch, found = load_arch("equilibrium"), stored_weights(cfg, state)
    latent = {name: torch_ops.from_numpy(x) for name, x in trained_arrays(state).items()}
    wanted = seen_weights(torch_ops, cfg, arch.param_specs(cfg), latent, True)
    assert all((torch_ops.to_numpy(wanted[name]) == found[name]).all() for name in found) and set(found) == set(wanted)
    assert len(np.unique(np.abs(found["cell0.output"][0]))) <= 2 < len(np.unique(np.abs(trained_arrays(state)["cell0.output"][0])))
    tokens = torch_ops.from_numpy(opened.windows[:, :-1])
    trained = torch_ops.to_numpy(arch.forward(torch_ops, wanted, cfg, tokens)[0])
    assert np.abs(trained - opened.ops.to_numpy(opened.deployed())).max() < 1e-4


def test_texts_are_training_tokens_that_no_batch_had(data, opened):
    parts, held = open_train_split(opened.cfg, data)
    held = np.concatenate(held)
    for window in opened.windows:
        assert any((held[start : start + len(window)] == window).all() for start in range(len(held) - len(window) + 1))
    assert sum(map(len, parts)) + len(held) == 8000 and len(held) == 256
    with pytest.raises(ValueError, match="lower --tokens"):
        held_windows(opened.cfg, data, 2, 300)


def test_gradients_agree_where_the_relaxation_rests(opened):
    bench = Bench(opened)
    assert bench.operator is not None
    numbers = cosines_probe(opened, bench).numbers
    (total,) = [row for row in numbers["groups"] if row["group"] == "total"]
    assert numbers["rho_adjoint"] < 1e-9 and numbers["g_refined"] < 1e-8
    assert total["contrast, adjoint"] > 0.99 and total["adjoint, steps"] > 0.99
    found = nudge_probe(opened, bench, strengths=(0.002, 0.02), steps=(5, 40), wide=(0.02, 2.0, 8.0), many=40)
    sweeps = found.numbers["sweeps"]
    rho = [row["rho"] for row in sweeps if row["sweep of"] == "steps"]
    cosines = [row["cosine with the adjoint"] for row in sweeps if row["sweep of"] == "steps"]
    assert rho[1] < rho[0] and cosines[1] > cosines[0] and cosines[1] > 0.9999
    about, tracked = ([row for row in sweeps if row["sweep of"] == sweep] for sweep in ("about the rest", "tracked"))
    columns = [[row["cosine with the adjoint"] for row in part] for part in (about, tracked)]
    assert all(kept > lost for lost, kept in zip(columns[0][1:], columns[1][1:])) and columns[0][0] > columns[0][2]
    assert found.words[-1].endswith("up to a nudge of 8 about the rest, 8 tracked")


def test_the_range_of_a_nudge_ends_where_its_cosine_first_falls():
    def rows(*cosines):
        return [["tracked", strength, 80, 0.0, value] for strength, value in zip((0.02, 0.2, 0.8), cosines)]

    assert range_of(rows(0.999, 0.98, 0.999)) == 0.02 and range_of(rows(0.999, 0.99, 0.999)) == 0.8
    assert range_of(rows(0.5, 0.999, 0.999)) == range_of(rows(float("nan"), 1.0, 1.0)) == 0.0


def test_texts_without_a_rest_give_no_gradient(opened):
    class Restless:
        shape = opened.shape
        cfg = opened.cfg

        def rest(self):
            return opened.rest()[0], np.zeros(opened.shape[:2], bool)

    bench = Bench(Restless())
    assert bench.operator is None and bench.left_out == opened.shape[0]
    assert cosines_probe(opened, bench).numbers == {"texts": 0} and not nudge_probe(opened, bench).rows


def test_a_log_is_read_and_a_step_that_was_taken_again_counts_once(tmp_path):
    lines = [{"event": "start"}, {"step": 10, "train_loss": 3.0}]
    lines += [{"event": "probe", "step": step, "critical_step": 0.5 - 0.1 * step, "g_deployed_token": 10.0**step} for step in (0, 1, 2, 3)]
    lines += [{"event": "probe", "step": 3, "critical_step": 0.1, "g_deployed_token": 0.5, "jacobian_weight": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nno json\n[1]\n")
    probes, losses = read_history(tmp_path)
    assert [p["step"] for p in probes] == [0, 1, 2, 3] and probes[-1]["critical_step"] == 0.1 and losses == [(10, 3.0)]
    found = history_probe(tmp_path, 0.35)
    assert found.numbers["below_deployed"] == [2, 3] and "first at step 2" in found.words[0] and len(found.charts) == 4
    (tmp_path / "metrics.jsonl").write_text("")
    assert not history_probe(tmp_path, 0.35).rows


def test_the_command_says_shows_and_writes_everything(run, tmp_path, capsys):
    page, folder = tmp_path / "page.html", tmp_path / "pictures"
    main([str(run), "--texts", "2", "--steps", "120", "--report", str(page), "--pictures", str(folder), "--json"])
    out, said = capsys.readouterr()
    found = json.loads(out)
    assert set(PROBES) <= set(found) and found["texts"] == 2 and found["tokens"] == 8 and found["step"] == 12
    assert found["trace"]["r_deployed"]["token"] == pytest.approx(0.25 * found["trace"]["g_deployed"]["token"])
    assert found["spectrum"]["least_critical_step"] > 0.25 and found["spectrum"]["tokens_at_rest"] == 16
    assert found["arnoldi"]["written_out"]["above_diagonal"] == 0 and found["arnoldi"]["written_out"]["apart"] < 1e-6
    assert found["arnoldi"]["written_out"]["blocks_apart"] < 1e-12
    assert max(row["apart"] for row in found["arnoldi"]["spectra"]) < 1e-5
    assert {row["status"] for row in found["solvers"]["solvers"]} == {"converged"}
    assert found["continuation"]["texts"] == ["contracting"] * 2 and len(found["history"]["probes"]) >= 2
    assert 0 < found["asymmetry"]["blocks_median"] < 1
    for heading in (
        "Relaxation trace",
        "Modes of every token",
        "The whole Jacobian",
        "Attention's gain",
        "Solvers",
        "Gradients",
        "History",
    ):
        assert heading in said
    text = page.read_text()
    tags = stands_alone(text)
    assert sum(tag == "section" for tag, _ in tags.seen) == len(PROBES) and sum(tag == "svg" for tag, _ in tags.seen) >= 8
    assert "nan" not in text.lower().split("<body>")[1].replace("governance", "")
    pictures = {path.name for path in folder.iterdir()}
    assert pictures == {f"{name}.png" for name in ("trace", "spectrum", "continuation", "rates", "nudge", "history")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert found["files"] == [*sorted(found["files"][:-1], key=lambda path: PROBES.index(path.split("/")[-1][:-4])), str(page)]


def test_what_cannot_be_probed_is_refused_in_one_line(run, data, tmp_path, capsys):
    other = run_folder(tmp_path / "unet", data, "unet", iterations=1, calibration_tokens=128, train_seq_len=8, train_batch_tokens=32)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.npz").write_bytes(b"no file")
    wrong = {
        (str(other),): "model.name=unet, which has no relaxation to probe; give a run of model.name=equilibrium",
        (str(tmp_path / "nowhere"),): "no checkpoint",
        (str(tmp_path / "damaged"),): "is damaged",
        (str(run), "--tokens", "9"): "train.train_seq_len=8",
        (str(run), "--texts", "0"): "--texts must be at least 1",
        (str(run), "--data", str(tmp_path)): "shard",
        (str(run), "--steps", "1"): "at least 4",
    }
    for arguments, reason in wrong.items():
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code.startswith("error: ") and reason in ended.value.code and "\n" not in ended.value.code
    with pytest.raises(SystemExit) as ended:
        main([str(run), "--only", "everything"])
    assert ended.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_axes_have_round_ticks_and_charts_drop_what_is_no_number():
    assert decades(-6.2, 0.1) == [(-6.0, "1e-6"), (-4.0, "1e-4"), (-2.0, "0.01"), (0.0, "1")]
    assert len(decades(-0.3, 0.2)) >= 2
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, 0.0), (4.0, 1e-5)]
    text = svg_chart(Chart("T<b>", "", "x", "y", [Series("s", points)], log_up=True))
    assert text.count("<circle") == 2 and "T&lt;b&gt;" in text and "nan" not in text
    assert svg_chart(Chart("T", "", "x", "y", [Series("s", [(1.0, math.inf)])])) == ""


def test_a_table_lines_up(opened):
    found = history_probe("/nowhere", 0.25)
    assert "History" in as_text(found) and found.words[0] in as_text(found)
    assert isinstance(opened.cfg.train, TrainConfig)


@pytest.mark.slow
def test_the_map_foretells_where_a_relaxation_begins_to_cycle(tmp_path):
    """After 60 steps without a penalty some texts cycle at the deployed step: those, and only those, that have a token whose critical step is
    shorter; all by pairs that a shorter step would hold."""
    settings = SMALL | {"iterations": 110, "warmdown_fraction": 0, "warmup_fraction": 0.2}
    folder = run_folder(tmp_path / "run", character_shards(tmp_path / "shards"), stop=60, **settings)
    operator, step = open_run(folder, 12)
    _, trace = trace_probe(operator, 1200)
    found = spectrum_probe(operator, trace).numbers
    told = found["walls"]
    assert step == 60 and 2 <= told["moving"] <= 10
    assert told["moving_with_evidence"] >= 2 and told["foretold"] >= 0.8 * told["moving_with_evidence"]
    assert told["still"] == 12 - told["moving"] and told["still_foretold"] == told["still"]
    assert {row["outcome"] for row in found["texts"]} == {EULER, CONTRACTING}
    shorter = Operator(
        dataclasses.replace(operator.cfg, arch=dataclasses.replace(operator.cfg.arch, relax_rate=0.05)), operator.arrays, operator.windows
    )
    assert trace_probe(shorter, 2000)[0].numbers["g_last"]["token"] < 1e-6
