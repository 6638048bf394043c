"""Which tokens of a window see each other: those of one document where documents are isolated, near ones in a long segment.

A document begins with its BOS; a window may begin in the middle of one. Shapes: B batch, T time.
"""

from trit.data.token_ids import BOS_ID


def document_starts(ops, tokens):
    """Position (B, T) float32 at which each token's document begins: that of its BOS, or 0 where the window begins inside it."""
    return ops.cummax(ops.arange(tokens.shape[1], tokens) * ops.cast(tokens == BOS_ID, "float32"), 1)


def document_blocks(ops, tokens, size):
    """Of the complete blocks of `size` tokens that have a block after them: 1 where no document starts in the block (B, K), else 0, and
    1 for its tokens (B, K, size) of the document that it ends in. And the mask (B, T, 1) of the tokens whose document starts in their
    own block: they see no earlier one."""
    batch, length = tokens.shape
    sources, starts = (length - 1) // size, document_starts(ops, tokens)
    within = ops.reshape(starts[:, : sources * size], (batch, sources, size))
    unbroken = ops.cast(within[:, :, -1] < ops.arange(sources, starts) * size, "float32")
    block_starts = ops.constant([place // size * size for place in range(length)], starts)
    return unbroken, ops.cast(within == within[:, :, -1:], "float32"), (starts >= block_starts)[:, :, None]


def visible_tokens(ops, tokens):
    """Mask (B, 1, T, T), True where the token of the third axis sees that of the fourth: its own document's, up to itself."""
    positions = ops.arange(tokens.shape[1], tokens)
    return (positions >= document_starts(ops, tokens)[:, None, :, None]) & (positions <= positions[:, None])


def visible_blocks(ops, cfg, tokens):
    """Masks (B or 1, 1, queries, keys) of consecutive blocks of queries that cover T. The keys end where the queries end; a query sees
    itself and the eval_seq_len - 1 tokens before it, of its own document only with isolate_documents."""
    width, positions = cfg.eval.eval_seq_len, ops.arange(tokens.shape[1], tokens)
    lowest = positions[None] - (width - 1)
    if cfg.model.isolate_documents:
        starts = document_starts(ops, tokens)
        lowest = ops.where(starts > lowest, starts, lowest)
    masks = []
    # A quarter wastes a quarter of the products. One key more than is seen keeps the sizes round, as fused kernels like them.
    block = max(width // 4, 1)
    for begin in range(0, tokens.shape[1], block):
        keys, queries = positions[max(begin - width, 0) : begin + block], positions[begin : begin + block]
        masks.append((keys >= lowest[:, None, begin : begin + block, None]) & (keys <= queries[:, None]))
    return masks
