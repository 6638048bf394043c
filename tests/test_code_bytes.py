"""The report of what the code costs: every feature is switched, and the sums are those of the bundle."""

import pytest
from model_fixtures import tiny_config

from trit.bundle.bundle import byte_report
from trit.report import code_bytes


@pytest.mark.slow
def test_features_cost_what_switching_them_saves(monkeypatch):
    config = tiny_config("unet", vocab_size=260, ngram_order=3, ttt_scope="lora")
    monkeypatch.setattr(code_bytes, "FEATURES", {name: code_bytes.FEATURES[name] for name in ("n-gram memory", "moving average")})
    rows = {name: (state, size) for name, state, size in code_bytes.feature_rows(config)}
    assert rows["n-gram memory"][0] == "on" and rows["n-gram memory"][1] > 500
    assert rows["moving average"][0] == "off" and 0 < rows["moving average"][1] < 200
    lines, facts = code_bytes.report(config, ("brotli",))
    assert all(f"{row['bytes']:7}  {row['name']}" in "\n".join(lines) for row in facts["features"] + facts["definitions"])
    assert lines[0].startswith("counted file: ") and any(
        line.endswith("moving average (off; this is what it would cost)") for line in lines
    )
    assert lines[0].startswith(f"counted file: {facts['counted_file']} bytes")
    assert any(line.endswith("trit.eval.ngram:NgramMemory") for line in lines) and callable(byte_report)


def test_every_feature_can_be_switched_on_some_preset():
    from trit.config_load import load, with_overrides

    config = load("configs/demo.toml", {}, ["eval.ngram_order=0"])[0]
    for on, off in code_bytes.FEATURES.values():
        assert with_overrides(config, on) != with_overrides(config, off)
