"""Token ids that mean the same under every tokenizer of the project."""

BOS_ID = 1  # the first token of every document
