"""What `spectral_lm` learns and what it cannot: memory over its filters, the worth of its turn; and the published forms that look ahead
(gates on frequencies, phases of frequencies, a cutoff that drops frequencies), planted in it: the project's own checks catch each."""

import math

import numpy as np
import pytest
import torch
from cheat_fixtures import SETTINGS, Cheat, make_data, make_record, score_and_judge, write_text
from model_fixtures import random_arrays, random_tokens, start, tiny_config
from test_models import future_reach

from trit.layers import split_step
from trit.models import spectral_lm
from trit.ops import torch_ops
from trit.ops.fft_size import fft_size
from trit.train.torch_backend import Process, evaluator

NAME = "spectral_lm"
LEAKS = ("gates", "phases", "cutoff")


def leaking(kind):
    """A filter as published: gates or phases for every frequency, learned through the taps, or no frequencies above a quarter."""

    def function(ops, x, taps, before):
        half, length = x.shape[2] // 2, x.shape[1]
        size = fft_size(length + taps.shape[1] - 1)
        z = torch.fft.fft(torch.complex(x[..., :half], x[..., half:]), size, dim=1)
        g = torch.fft.fft(torch.complex(taps[:half], taps[half:]), size).mT
        logits = torch.fft.fft(taps[:half], size).real.mT
        if kind == "gates":
            g = g * torch.sigmoid(4.0 * logits)
        elif kind == "phases":
            g = g * torch.exp(torch.complex(logits * 0, logits))
        else:
            g = g * (torch.fft.fftfreq(size).abs() < 0.125)[:, None]
        y = torch.fft.ifft(z * g, dim=1)[:, :length]
        return torch.cat([y.real, y.imag], 2)

    return function


@pytest.mark.parametrize("kind", LEAKS)
def test_the_causality_check_catches_published_forms(kind, monkeypatch):
    """A7 on A4: the honest model passes the same call in test_models.py with nothing to see."""
    cfg = tiny_config(NAME)
    arrays = random_arrays(spectral_lm.param_specs(cfg))
    assert future_reach(cfg, arrays, 33) == 0.0
    monkeypatch.setattr(split_step, "block_filter", leaking(kind))
    assert future_reach(cfg, arrays, 33) > 1e-2


def losses_of(cfg, trained, inputs, targets):
    """Losses (B, T) of trained weights as they are, by the evaluator."""
    return evaluator(torch_ops, spectral_lm, cfg, trained.export(), Process(0, 1, "cpu")).losses(inputs, targets)


def held_out(cfg, trained, inputs, targets):
    """Their mean."""
    return losses_of(cfg, trained, inputs, targets).mean()


def test_training_finds_the_leak_of_gates(monkeypatch):
    """A7 on A6: random symbols are foretold as soon as frequencies have gates; without them test_models.py holds the line at ln V."""
    cfg = tiny_config(NAME, vocab_size=16, fir_training="blocks", warmdown_fraction=0.0)
    monkeypatch.setattr(split_step, "block_filter", leaking("gates"))
    trained = start(cfg)
    for seed in range(250):
        rows = random_tokens(cfg, 8, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, False, False)
    fresh = random_tokens(cfg, 64, 33, 1000)
    assert held_out(cfg, trained, fresh[:, :-1], fresh[:, 1:]) < math.log(16) - 0.5


def test_filters_remember():
    """A8: the symbol of five tokens ago is copied."""
    cfg = tiny_config(NAME, vocab_size=16, fir_taps=16)
    trained = start(cfg)

    def batch(rows, seed):
        tokens = random_tokens(cfg, rows, 32, seed)
        targets = np.concatenate([np.zeros((rows, 5), np.int32), tokens[:, :-5]], 1)
        return tokens, targets

    for step in range(400):
        trained.step(*batch(8, step), max(1.0 - step / 400, 0.05), False, False)
    assert held_out(cfg, trained, *batch(64, 1000)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["honest", "gates"])
def test_random_symbols_stay_random(kind, monkeypatch):
    """A6 at its own size, and A7 on it: 600 steps of 32 windows of 64 symbols of 16. Nobody can be better than ln 16 on fresh ones, but for
    chance; a model whose frequencies have gates is."""
    sizes = {"vocab_size": 16, "fir_taps": 16, "train_seq_len": 64, "eval_seq_len": 64, "train_batch_tokens": 2048}
    rates = {"scalar_lr": 0.003, "embed_lr": 0.003, "fir_training": "fft" if kind == "honest" else "blocks"}
    cfg = tiny_config(NAME, **sizes, **rates)
    if kind == "gates":
        monkeypatch.setattr(split_step, "block_filter", leaking("gates"))
    trained = start(cfg)
    for step in range(600):
        rows = random_tokens(cfg, 32, 65, step)
        trained.step(rows[:, :-1], rows[:, 1:], min(1.0, (step + 1) / 40), False, False)
    fresh = random_tokens(cfg, 256, 65, 10_000)
    losses = losses_of(cfg, trained, fresh[:, :-1], fresh[:, 1:])
    error = losses.std() / losses.size**0.5
    print(f"{kind}: held-out nats {losses.mean():.5f} +- {error:.5f}, ln 16 is {math.log(16):.5f}")
    if kind == "honest":
        assert math.log(16) - 3 * error <= losses.mean() < math.log(16) + 0.02 and error < 0.001
    else:
        assert losses.mean() < 0.5


@pytest.mark.slow
def test_a_turn_by_the_signal_is_worth_a_tenth_of_a_nat():
    """A16, on bytes of the embedded text: against a turn by a constant, which is a linear network. 96 wide, as many channels, 3 blocks,
    windows of 128, 16 in each of 500 steps."""
    from trit.data.corpus import pydocs

    text = np.frombuffer("\n".join(pydocs()).encode()[:1_200_000], np.uint8).astype(np.int32)
    held, tokens = text[-100_000:], text[:-100_000]
    assert len(tokens) == 1_100_000
    losses = {}
    for turn in ("input", "none"):
        sizes = {"model_dim": 96, "embed_dim": 96, "num_layers": 3, "fir_taps": 32, "train_seq_len": 128, "eval_seq_len": 128}
        cfg = tiny_config(NAME, vocab_size=256, turn=turn, train_batch_tokens=2048, scalar_lr=0.003, embed_lr=0.003, **sizes)
        trained, generator = start(cfg), np.random.default_rng(0)
        for step in range(500):
            rows = np.stack([tokens[low : low + 129] for low in generator.integers(0, len(tokens) - 129, 16)])
            trained.step(rows[:, :-1], rows[:, 1:], min((step + 1) / 40, 2.0 - 2.0 * step / 500, 1.0), False, False)
        rows = held[: len(held) // 129 * 129].reshape(-1, 129)
        losses[turn] = losses_of(cfg, trained, rows[:, :-1], rows[:, 1:]).mean()
    print("held-out nats a byte: " + ", ".join(f"{turn} {loss:.3f}" for turn, loss in losses.items()))
    assert losses["input"] < losses["none"] - 0.10


SETTINGS_HERE = [item for item in SETTINGS if "ttt" not in item] + ["model.name=spectral_lm", "arch.fir_taps=6"]
BEFORE = "def lowered("
AFTER = """def dropped(y):
    half, length = y.shape[2] // 2, y.shape[1]
    size = 2 * length
    z = torch.fft.fft(torch.complex(y[..., :half], y[..., half:]), size, dim=1)
    place = torch.fft.fftfreq(size)[:, None]
    z = z * FORM
    z = torch.fft.ifft(z, dim=1)[:, :length]
    return torch.cat([z.real, z.imag], 2)


def lowered("""
FORMS = {
    "gates": "torch.sigmoid(torch.cos(9.0 * place))",
    "phases": "torch.exp(torch.complex(place * 0, torch.sin(9.0 * place)))",
    "cutoff": "(place.abs() < 0.25)",
}


@pytest.mark.slow
def test_the_certificate_catches_published_forms(tmp_path):
    """The same three, planted in a counted file: replaced tails move the losses before them. The honest file passes."""
    data = make_data(tmp_path, write_text(tmp_path))
    honest = make_record(tmp_path / "honest", data, settings=SETTINGS_HERE)
    source = (honest / "train_gpt_readable.py").read_text()
    line = next(text for text in source.splitlines() if "rms_norm(y)" in text)
    changed = line.replace("rms_norm(y)", "rms_norm(dropped(y))")
    cheats = [Cheat("none", set(), ((BEFORE, "def lowered("),))]
    cheats += [Cheat(kind, {"prefix replay"}, ((BEFORE, AFTER.replace("FORM", form)), (line, changed))) for kind, form in FORMS.items()]
    found = score_and_judge(cheats, honest, data, tmp_path)
    for cheat in cheats:
        failed = {check.name for check in found[cheat.name] if check.verdict == "fail"}
        assert cheat.failing <= failed and ("prefix replay" in failed) == (cheat.name != "none"), (cheat.name, failed)
