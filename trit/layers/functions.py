"""What layers share and the array vocabulary does not have, made of what it has."""


def hyperbolic_tangent(ops, x):
    """tanh, through the logistic function."""
    return 2.0 * ops.sigmoid(2.0 * x) - 1.0
