"""Write the file that `trit.bundle.mixing` reads: the encoder of context mixing.

In: source text. Out: a Python file that decodes the text and runs it. The text is known here, so what the decoder finds bit by bit is
computed for all bits at once, with the decoder's arithmetic: equal to the last bit.
"""

import functools
import math
import operator

import numpy as np

from trit.bundle.mixing import (
    BASE,
    FIRST_DIVISOR,
    FLOOR,
    FULL,
    LAST_DIVISOR,
    LEARNING_SHIFT,
    LOGIT,
    LONGEST,
    MARGIN,
    ON_EDGE,
    QUOTES,
    SCALE,
    SPAN,
    WEIGHT,
    file_around,
    rounded,
)  # fmt: skip
from trit.console import counted


def latin(text):
    """(`text` as characters below the alphabet's size, that size): itself where it is ASCII, else its UTF-8 bytes."""
    return (text, 128) if text.isascii() else (text.encode().decode("l1"), 256)


@functools.lru_cache(8)
def encode(text):
    """Digits (below BASE, one character each) of a text. ValueError where it cannot be coded: see `rounded`.

    The text is known, so every counter's history is too: only weights and coder are left to go bit by bit.
    """
    characters, alphabet = latin(text)
    prefixes, bits = bit_tree(np.array([ord(character) for character in characters]), alphabet)
    logits, bits, prefixes = logits_of(contexts_of(characters), prefixes, bits, alphabet).tolist(), bits.tolist(), prefixes.tolist()
    places, by_last, by_prefix, parts, width, at = alphabet.bit_length() - 1, {}, {}, [0], 1, 0
    for index in counted(range(len(characters)), "mixing", len(characters), " characters"):
        first = by_last.setdefault(characters[index - 1 : index], [WEIGHT] * 9)
        for _ in range(places):
            second, z, bit = by_prefix.setdefault(prefixes[at], [WEIGHT] * 9), logits[at], bits[at]
            total = sum(map(operator.mul, map(operator.add, first, second), z))
            guessed = rounded(65534.5 / (1 + math.exp(-total / SCALE))) + 1 if total else 32768
            while width < FULL:
                width *= BASE
                parts.append(0)
            part = width * guessed >> 16
            if bit:
                width = part
            else:
                parts[-1] += part
                width -= part
            error = (bit << 16) - guessed
            changes = [logit * error >> LEARNING_SHIFT for logit in z]
            first[:] = map(operator.add, first, changes)
            second[:] = map(operator.add, second, changes)
            at += 1
    return digits_of(parts)


def bit_tree(codes, alphabet):
    """(nodes, bits), both (characters * bits of one,): the prefix of bits before each bit, with a leading one, and that bit."""
    places = alphabet.bit_length() - 1
    bits = codes[:, None] >> np.arange(places - 1, -1, -1) & 1
    prefixes = (codes + alphabet)[:, None] >> np.arange(places, 0, -1)
    return prefixes.ravel(), bits.ravel()


def contexts_of(characters):
    """(9, characters): a number for what each context holds before each character, different from context to context."""
    numbers, found, word, marks = {}, [], "", ""
    for index, character in enumerate(characters):
        text = characters[max(0, index - 5) : index]
        held = "", text[-1:], text[-2:], text[-3:], text[-4:], text[-5:-1], word, marks[-2:], marks + word
        found.append([numbers.setdefault(key, len(numbers)) for key in enumerate(held)])
        word = (word + character) * character.isalnum()
        marks = (marks + character * (word == ""))[-4:]
    return np.array(found).T


def logits_of(contexts, prefixes, bits, alphabet):
    """(bits, 9): what every counter says before each bit, rounded. The n-th visits of all counters are taken in one step, with the
    decoder's arithmetic. ValueError where another library might round otherwise."""
    places = alphabet.bit_length() - 1
    cells = (np.repeat(contexts, places, axis=1) * alphabet + prefixes).ravel()
    bits = np.tile(bits, len(contexts))
    _, cell, visits = np.unique(cells, return_inverse=True, return_counts=True)
    busiest = np.argsort(-visits, kind="stable")
    place = np.empty(len(visits), np.int64)
    place[busiest] = np.arange(len(visits))
    by_cell = np.argsort(place[cell], kind="stable")  # the visits of each counter, busiest first
    counts = visits[busiest]
    visit = np.arange(len(cells)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = by_cell[np.argsort(visit, kind="stable")]  # all first visits, all second ones: each a shorter run of the same counters
    sizes = np.bincount(visit)
    targets, shares = bits[order] * SPAN + FLOOR, np.empty(len(cells))
    share, divisor, low = np.full(len(visits), 0.5), FIRST_DIVISOR, 0
    for size in sizes.tolist():
        high, now = low + size, share[:size]
        shares[low:high] = now
        now += (targets[low:high] - now) / divisor
        divisor, low = divisor + (divisor < LAST_DIVISOR), high
    values = LOGIT * np.log(shares / (1 - shares))
    whole = np.rint(values)
    if np.any((whole != 0) & (np.abs(values - whole) < MARGIN)):
        raise ValueError(ON_EDGE)
    logits = np.empty(len(cells), np.int64)
    logits[order] = np.trunc(values)
    return logits.reshape(len(contexts), -1).T


def digits_of(parts):
    """The coder's number, the sum of `parts[n]` times BASE to the power of the places after n, as digits; one is added to the last but
    one and the last is zero, which is neither a quote nor a backslash."""
    carry, out = parts[-1] // BASE + 1, [1]
    for part in reversed(parts[1:-1]):
        carry, digit = divmod(part + carry, BASE)
        out.append(digit + 1 + (digit > 11))
    return "".join(map(chr, reversed(out)))


def mixed_file(source, needs_source=False):
    """The counted file of a source text, or None where this way of packing cannot hold it."""
    characters, alphabet = latin(source)
    if not 0 < len(characters) <= LONGEST:
        return None
    try:
        payload = encode(source)
    except (ValueError, ArithmeticError):
        return None
    quotes = [quote for quote in QUOTES if quote not in payload]
    return file_around(payload, quotes[0], len(characters), alphabet, needs_source) if quotes else None
