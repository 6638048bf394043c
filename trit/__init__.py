"""trit: train, compress, bundle and certify small ternary language models under a byte budget."""
