"""Documents inside a window of tokens: where each begins, and which tokens see each other when documents are isolated.

A document begins with its BOS; a window may begin in the middle of one. Shapes: B batch, T time.
"""

from trit.data.token_ids import BOS_ID


def document_starts(ops, tokens):
    """Position (B, T) float32 at which each token's document begins: that of its BOS, or 0 where the window begins inside it."""
    return ops.cummax(ops.arange(tokens.shape[1], tokens) * ops.cast(tokens == BOS_ID, "float32"), 1)


def visible_tokens(ops, tokens):
    """Mask (B, 1, T, T), True where the token of the third axis sees that of the fourth: its own document's, up to itself."""
    positions = ops.arange(tokens.shape[1], tokens)
    return (positions >= document_starts(ops, tokens)[:, None, :, None]) & (positions <= positions[:, None])
