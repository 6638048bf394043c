"""Counts bytes of every document of a corpus twice: by the byte table, and as the UTF-8 length of the decoded text.

    python -m benchmarks.byte_accounting pydocs data/pydocs_sp1024 some.model byte260

Input: a corpus and any number of tokenizers (data folder, .model file or byte260). Output: one line each; exit 1 on a mismatch.
"""

import argparse
import os
import sys

import numpy as np

from trit.data.byte_count import byte_table, token_bytes
from trit.data.corpus import open_corpus
from trit.data.manifest import resolve_tokenizer
from trit.data.token_ids import BOS_ID
from trit.data.tokenizer import open_tokenizer


def account(documents, tokenizer):
    """Totals over `documents`: tokens (BOS included), counted bytes, mismatching documents, documents that decode to themselves."""
    table = byte_table(tokenizer.path, tokenizer.vocab_size)
    tokens = counted = mismatches = exact = 0
    for text in documents:
        ids = tokenizer.encode(text)
        decoded = tokenizer.decode(ids)
        size = int(token_bytes(table, np.concatenate([[BOS_ID], ids])[:-1], ids).sum())
        tokens, counted = tokens + len(ids) + 1, counted + size
        mismatches += size != len(decoded.encode("utf-8"))
        exact += decoded == text
    return tokens, counted, mismatches, exact


def main():
    """Command line of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", help="packagedocs, pydocs, a .jsonl or .jsonl.zst file, or a folder of .txt files")
    parser.add_argument("tokenizers", nargs="+", help="data folder, .model file, or byte260")
    options = parser.parse_args()
    documents = list(open_corpus(options.corpus))
    size = sum(len(text.encode("utf-8")) for text in documents)
    print(f"{options.corpus}: {len(documents)} documents, {size} bytes")
    print(f"{'tokenizer':24} {'pieces':>6} {'tokens':>10} {'tokens/byte':>11} {'counted bytes':>13} {'mismatches':>10} {'text kept':>12}")
    wrong = 0
    for name in options.tokenizers:
        tokenizer = open_tokenizer(resolve_tokenizer(name) if os.path.isdir(name) else name)
        tokens, counted, mismatches, exact = account(documents, tokenizer)
        kept = f"{exact}/{len(documents)}"
        print(f"{tokenizer.name:24} {tokenizer.vocab_size:6} {tokens:10} {tokens / counted:11.4f} {counted:13} {mismatches:10} {kept:>12}")
        wrong += mismatches
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
