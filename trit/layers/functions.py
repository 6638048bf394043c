"""Functions that layers share and that the array vocabulary does not have, made of those that it has."""


def softmax_last(ops, logits):
    """Softmax over the last axis."""
    return ops.exp(ops.log_softmax(logits))


def hyperbolic_tangent(ops, x):
    """tanh, through the logistic function."""
    return 2.0 * ops.sigmoid(2.0 * x) - 1.0
