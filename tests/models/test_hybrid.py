"""The law of `hybrid`: the layer map says which block mixes how, all of one letter is that architecture, a wrong map is an error."""

import numpy as np
import pytest
from model_fixtures import TINY_KOOPMAN, TINY_SKC, logits_of, random_arrays, random_tokens, tiny_config

from trit.config_load import from_dict, to_dict
from trit.models import load_arch
from trit.models.hybrid import param_specs


def mixers(cfg):
    """Letter of every block, by its parameters."""
    names = {spec.name for spec in param_specs(cfg)}
    letters = ""
    for i in range(cfg.model.num_layers):
        attention, koopman = f"block{i}.attn.qkv" in names, f"block{i}.koopman.in" in names
        assert attention != koopman and attention == (f"block{i}.attn_scale" in names) and koopman == (f"block{i}.koopman_scale" in names)
        letters += "a" if attention else "k"
    return letters


@pytest.mark.parametrize("layers,layer_map,wanted", [
    (1, "ak", "a"), (2, "ak", "ak"), (5, "ak", "akaka"), (3, "ka", "kak"), (6, "kka", "kkakka"), (4, "kkka", "kkka"), (3, "k", "kkk"),
])  # fmt: skip
def test_map_names_the_mixer_of_every_block(layers, layer_map, wanted):
    cfg = tiny_config("hybrid", num_layers=layers, layer_map=layer_map)
    assert mixers(cfg) == wanted and from_dict(to_dict(cfg)).arch.layer_map == layer_map


def test_attention_takes_even_blocks_and_the_koopman_state_odd_ones():
    assert mixers(tiny_config("hybrid", num_layers=4)) == "akak"


# Settings of a mixer that the map does not name are errors: the tiny ones go back to their defaults.
UNSET = {"k": {}, "a": {"koopman_state_dim": 128, "koopman_horizon": 2048.0}}
UNSET["s"] = UNSET["a"] | TINY_SKC


@pytest.mark.parametrize("letter,arch", [("a", "unet"), ("k", "koopman_ssm"), ("s", "skc")])
def test_a_map_of_one_letter_is_that_architecture(letter, arch):
    settings = {"num_layers": 3, "engram_buckets": 64, "xsa_layers": 1 if letter != "s" else 0}
    own = {"layer_map": "s"} if letter == "s" else {}
    cfg, other = tiny_config("hybrid", layer_map=letter, **settings, **UNSET[letter]), tiny_config(arch, **settings, **own)
    specs = param_specs(cfg)
    assert specs == load_arch(arch).param_specs(other)
    arrays, tokens = random_arrays(specs), random_tokens(cfg, 2, 33)
    assert np.array_equal(logits_of(cfg, arrays, tokens), logits_of(other, arrays, tokens))


@pytest.mark.parametrize("layer_map,mixing", [("akak", [2]), ("kaka", [3]), ("kkka", []), ("aaak", [1, 2])])
def test_values_come_from_the_first_attention(layer_map, mixing):
    cfg = tiny_config("hybrid", num_layers=4, layer_map=layer_map)
    names = [spec.name for spec in param_specs(cfg)]
    assert [i for i in range(4) if f"block{i}.attn.value_mix" in names] == mixing
    if mixing:
        arrays, tokens = random_arrays(param_specs(cfg)), random_tokens(cfg, 2, 20)
        own = arrays | {f"block{mixing[-1]}.attn.value_mix": np.full(1, 40.0, np.float32)}
        first = arrays | {f"block{mixing[-1]}.attn.value_mix": np.full(1, -40.0, np.float32)}
        assert np.abs(logits_of(cfg, own, tokens) - logits_of(cfg, first, tokens)).max() > 1e-4


def test_a_silent_mixer_of_either_kind_is_not_there():
    """The scale of a block's branch is its switch: two maps agree to the last bit where the blocks they differ in are silent."""
    tokens, found = random_tokens(tiny_config(), 2, 20), []
    for layer_map in ("ak", "aa"):
        cfg = tiny_config("hybrid", layer_map=layer_map, **UNSET["k" if "k" in layer_map else "a"])
        arrays = random_arrays(param_specs(cfg))
        common = random_arrays(param_specs(tiny_config("hybrid", layer_map="ak")))
        arrays |= {name: common[name] for name in arrays if name in common}
        arrays["block1.koopman_scale" if layer_map == "ak" else "block1.attn_scale"] = np.zeros(32, np.float32)
        found.append(logits_of(cfg, arrays, tokens))
    assert np.array_equal(*found)


@pytest.mark.parametrize("layers,layer_map", [(3, "ax"), (3, "aakk"), (3, ""), (4, "aka"), (2, "akak"), (4, "AK")])
def test_a_wrong_map_is_one_clear_error(layers, layer_map):
    wanted = (
        rf"^arch.layer_map='{layer_map}' must be one letter for each of model.num_layers={layers} layers.*letters: a \(attention\) or k"
    )
    with pytest.raises(ValueError, match=wanted):
        tiny_config("hybrid", num_layers=layers, layer_map=layer_map)


def test_architectures_without_a_choice_have_no_map_to_set():
    for arch in ("unet", "koopman_ssm"):
        with pytest.raises(ValueError, match="unknown setting 'layer_map'"):
            tiny_config(arch, layer_map="ak")
    assert TINY_KOOPMAN.keys() <= to_dict(tiny_config("hybrid"))["arch"].keys()
