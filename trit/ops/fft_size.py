"""Lengths that a fast Fourier transform likes."""


def fft_size(least):
    """The smallest even number of at least `least` whose prime factors are 2, 3 and 5."""
    size = max(least + least % 2, 2)
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
