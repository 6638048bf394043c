"""LeakyReLU(0.5) squared MLP with a normalised output projection."""

from trit.layers.linear import normed_project, normed_projection_specs, project
from trit.params import matrix_spec


def mlp_specs(cfg, name):
    """Parameters of one MLP of hidden width mlp_mult * model_dim."""
    width, hidden = cfg.model.model_dim, cfg.model.mlp_mult * cfg.model.model_dim
    # 0.955/sqrt(n) keeps the variance of the squared LeakyReLU at one (skc.md B5).
    return [matrix_spec(cfg, name + ".in", hidden, width, 0.955 * width**-0.5)] + normed_projection_specs(
        cfg, name + ".out", width, hidden, 0.02
    )


def mlp_layer(ops, p, cfg, name, x):
    """x (B, T, C) -> (B, T, C)."""
    hidden = ops.leaky_relu(project(ops, p, cfg, name + ".in", x), 0.5)
    return normed_project(ops, p, cfg, name + ".out", hidden * hidden)
