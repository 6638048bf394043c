"""Text from an artifact's model, token by token. In: an `Opened` and a beginning. Out: pieces of text as they come."""

import codecs

import numpy as np

from trit.data.token_ids import BOS_ID


def chosen(row, generator, temperature, top_k):
    """A token id by log-probabilities (V,): the likeliest at temperature 0, else drawn from the `top_k` likeliest (0: from all)."""
    if temperature == 0:
        return int(row.argmax())
    row = row.astype(np.float64) / temperature
    if top_k and top_k < len(row):
        row = np.where(row >= np.partition(row, -top_k)[-top_k], row, -np.inf)
    p = np.exp(row - row.max())
    return int(generator.choice(len(p), p=p / p.sum()))


def generated(opened, beginning, tokens, temperature=0.8, top_k=40, seed=0):
    """Yield what the model writes after the text `beginning`, at most so many tokens, until it ends the document. ValueError where a
    setting makes no sense."""
    if not (temperature >= 0 and top_k >= 0 and tokens >= 0):
        raise ValueError(f"temperature={temperature}, top_k={top_k} and tokens={tokens} must be 0 or more")
    generator, decoder = np.random.default_rng(seed), codecs.getincrementaldecoder("utf-8")("replace")
    ids = [BOS_ID, *opened.tokenizer.encode(beginning).tolist()]
    for _ in range(tokens):
        window = np.array([ids[-opened.window :]], np.int32)
        choice = chosen(opened.rows(window, window.shape[1] - 1)[0, 0], generator, temperature, top_k)
        if opened.spelled[choice] is None:
            break
        ids.append(choice)
        text = decoder.decode(opened.spelled[choice])
        if text:
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
