"""What it is worth to hold a wide graph by its entries, and once a forward: python -m benchmarks.sem_sparse [--width 1024] [--rounds 9]

12 products H x in a row, as an iterative solve takes them, for columns x (D, R): `cached` makes the entries of H once before them, `rebuilt`
before each, `dense` makes the matrix once, `dense rebuilt` before each. Then one Cayley step forward and back by every solver on R / 2
positions, `as a matrix` with the same solver kept dense. Median CPU seconds of one thread over rounds in which all take turns.
"""

import argparse

import numpy as np
import torch

from benchmarks.sem_scan import medians
from trit.config_load import load
from trit.layers import propagator
from trit.ops import torch_ops
from trit.params import init_params

PRODUCTS = 12


def case(width, solver):
    """(config, weights of a propagator "u", a function that says how many columns to draw)."""
    few = [f"model.model_dim={width}", f"model.embed_dim={width}", f"arch.cayley_solver={solver}"]
    cfg, _, _ = load("configs/sem_2m.toml", environ={}, overrides=few)
    arrays = init_params(propagator.propagator_specs(cfg, "u", True), 1)
    return cfg, {name: torch.from_numpy(x).requires_grad_() for name, x in arrays.items()}


def columns(*shape):
    """Normal numbers of a fixed seed."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def products(made, again, multiply, x):
    """A function () that multiplies x by H PRODUCTS times; `made()` gives H, with `again` anew for each."""

    def run():
        with torch.no_grad():
            h, y = made(), x
            for number in range(PRODUCTS):
                if again and number:
                    h = made()
                y = multiply(h, y)
            return y

    return run


def product_forms(width, count):
    """{name: function ()} of the ways to take PRODUCTS products of `count` columns."""
    cfg, p = case(width, "cg")
    x = columns(width, count)

    def entries():
        return propagator.neighbours(torch_ops, p, cfg, "u")

    def matrix():
        return propagator.hamiltonian(torch_ops, p, cfg, "u")

    def sparse(h, y):
        return torch_ops.weighted_rows(y, *h)

    def dense(h, y):
        return h @ y

    forms = {"cached": (entries, False, sparse), "rebuilt": (entries, True, sparse)}
    forms |= {"dense": (matrix, False, dense), "dense rebuilt": (matrix, True, dense)}
    return {name: products(*form, x) for name, form in forms.items()}


def turn_forms(width, positions):
    """{name: function ()} of a Cayley step of `positions`, forward and back, by each solver and form of H."""
    forms = {}
    for name, solver, least in (
        ("direct", "direct", 512),
        ("cg", "cg", 512),
        ("cg as a matrix", "cg", width),
        ("chebyshev", "chebyshev", 512),
        ("chebyshev as a matrix", "chebyshev", width),
    ):
        cfg, p = case(width, solver)
        x, weights = columns(1, positions, 2 * width).requires_grad_(), columns(1, positions, 2 * width)

        def run(cfg=cfg, p=p, x=x, weights=weights, least=least):
            propagator.WIDE = least
            y = propagator.cayley_turn(torch_ops, p, cfg, "u", x)
            return torch.autograd.grad((y * weights).sum(), [x, p["u.edges"]])

        forms[name] = run
    return forms


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--columns", default="1,16,64,512,2048", help="numbers of columns")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"| {PRODUCTS} products of columns, D={options.width} | cached, ms | rebuilt | dense | dense rebuilt | cached / rebuilt | cached / dense |"
    )
    print("|---" * 7 + "|")
    for count in map(int, options.columns.split(",")):
        found = medians(product_forms(options.width, count), options.rounds)
        ratios = f"{found['cached'] / found['rebuilt']:.2f} | {found['cached'] / found['dense']:.3f}"
        print(f"| {count} | {' | '.join(f'{seconds * 1000:.2f}' for seconds in found.values())} | {ratios} |", flush=True)
    positions = int(options.columns.split(",")[-1]) // 2
    found = medians(turn_forms(options.width, positions), max(options.rounds // 3, 1))
    print(f"\n| Cayley step of {positions} positions, forward and back | ms | over direct |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds * 1000:.1f} | {seconds / found['direct']:.2f} |")


if __name__ == "__main__":
    main()
