"""The benchmark of growth with the window: its fit, its way to read variants, and a run of it on two small models."""

import re

import numpy as np
import pytest

from benchmarks.growth import growth_exponent, main, settings_of


def test_the_exponent_is_that_of_a_power_law_and_commas_in_values_stay():
    lengths = [128, 256, 512, 1024]
    assert all(abs(growth_exponent(lengths, 3.0 * np.array(lengths) ** a) - a) < 1e-12 for a in (0.0, 0.37, 1.0))
    text = "model.name=spectral_lm,train.ladder=0.125,0.5,1,arch.fir_taps=8"
    assert settings_of(text) == ["model.name=spectral_lm", "train.ladder=0.125,0.5,1", "arch.fir_taps=8"] and settings_of("") == []


def test_it_prints_speeds_of_training_and_evaluation_and_their_growth(capsys):
    base = "model.num_layers=1,model.model_dim=32,model.embed_dim=32,model.num_heads=1,model.num_kv_heads=1,engram.engram_buckets=0"
    base += ",eval.ttt_scope=none,eval.ngram_order=0"
    modal = "modal:model.name=spectral_lm,arch.filter=modal"
    main(["--lengths", "16,32", "--tokens", "64", "--rounds", "2", "--base", base, "attention:model.name=unet", modal])
    rows = [re.split(r"\s{2,}|\s(?=\d)", line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[name, kind] for kind in ("training", "evaluation") for name in ("attention", "modal")]
    for row in rows:
        weights, first, second, exponent, last = (float(cell.replace(",", "")) for cell in row[2:])
        assert weights > 1000 and first > 100 and second > 100
        wanted = np.log(first / second) / np.log(2)
        assert abs(exponent - wanted) < 0.02 and abs(last - wanted) < 0.02
    with pytest.raises(SystemExit):
        main(["--lengths", "16,24", "--tokens", "64", "unet:"])
