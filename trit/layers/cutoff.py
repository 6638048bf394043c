"""Low-pass smoothing of filter taps, for a curriculum that begins with slow oscillations: causal, and of the least delay.

No causal filter is exactly zero on a band (Paley-Wiener), so a cutoff that drops frequencies would look ahead. The response here falls to
a floor instead, and its phase is the minimum that goes with that magnitude: the cepstrum of the magnitude, folded onto the past.
"""

import numpy as np

CUTOFF_BAND = 1.0 / 16.0  # of Nyquist, over which the response falls
CUTOFF_FLOOR = 0.01  # what is left above the cutoff
CEPSTRUM = 4096
LOWPASS_TAPS = 64


def check_rungs(text):
    """ValueError where the rungs of a ladder are no cutoffs, as shares of Nyquist."""
    rungs = [float(part) for part in text.split(",")]
    if not (rungs[0] > CUTOFF_BAND and rungs[-1] == 1.0 and all(low < high for low, high in zip(rungs, rungs[1:]))):
        raise ValueError(f"train.ladder={text!r} must rise from above {CUTOFF_BAND} to 1, shares of Nyquist, for example 0.125,0.25,0.5,1")


def lowpass(fraction):
    """float64 (64,) taps of the low-pass with cutoff at `fraction` of Nyquist; a unit impulse from 1 on."""
    if fraction >= 1.0:
        return np.eye(LOWPASS_TAPS)[0]
    half = CEPSTRUM // 2
    above = np.clip((np.arange(half + 1) / half - fraction + CUTOFF_BAND) / CUTOFF_BAND, 0.0, 1.0)
    wanted = CUTOFF_FLOOR + (1.0 - CUTOFF_FLOOR) * 0.5 * (1.0 + np.cos(np.pi * above))
    cepstrum = np.fft.irfft(np.log(wanted))
    cepstrum[1:half] *= 2.0
    cepstrum[half + 1 :] = 0.0
    return np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[:LOWPASS_TAPS]


def stage_smoothing(fraction, count):
    """float32 (K, K): times taps (K,) gives the first K values of their convolution with `lowpass`."""
    lags = np.arange(count)[:, None] - np.arange(count)
    taps = lowpass(fraction)
    inside = (lags >= 0) & (lags < LOWPASS_TAPS)
    return np.where(inside, taps[np.clip(lags, 0, LOWPASS_TAPS - 1)], 0.0).astype(np.float32)
