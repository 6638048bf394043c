"""The command of trit/dynamics: tables, JSON, pictures, mistakes."""

import json

import pytest

from trit.dynamics.__main__ import main


def run(monkeypatch, capsys, *words):
    """(standard output, standard error) of the command."""
    monkeypatch.setattr("sys.argv", ["trit.dynamics", *map(str, words)])
    main()
    return capsys.readouterr()


def test_xor_is_printed_drawn_and_given_as_json(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "xor.png"
    out, err = run(monkeypatch, capsys, "xor", "--json", "--plot", picture)
    rows = json.loads(out)["rows"]
    assert [row["beta"] for row in rows] == [2.0, 4.0, 5.0, 6.0, 8.0, 10.0] and rows[4]["right"] == 4
    assert err.splitlines()[0].split()[0] == "beta" and "0.9993" in err and picture.read_bytes()[:4] == b"\x89PNG"
    assert "0.9993" in run(monkeypatch, capsys, "xor").out


def test_parity_draws_what_it_trained(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "parity.svg"
    out, _ = run(monkeypatch, capsys, "parity", "--split", "random", "--iterations", 20, "--brief", "--json", "--plot", picture)
    (row,) = json.loads(out)["rows"]
    assert row["held"] == 52 and row["counts_not_trained"] == [8] and "circuit_right" not in row
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize(
    "words,message",
    [
        (["parity", "--gain", "1.5"], "--gain 1.5 leaves the energy without a lower bound"),
        (["parity", "--step", "2"], "--step 2.0 may raise the energy"),
        (["settling", "--seeds", "0"], "--seeds and --iterations must be 1 or more"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, capsys, *words)
    assert str(stop.value).startswith("error: ") and message in str(stop.value)
