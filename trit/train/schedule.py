"""Every schedule runs on one clock: progress, the share of the budget that is spent (0 at the start, 1 at the end)."""


def training_progress(cfg, step, seconds):
    """The larger of the shares of steps and, where there is a cap, of wall-clock seconds."""
    share = step / cfg.train.iterations
    if cfg.train.max_wallclock_seconds:
        share = max(share, seconds / cfg.train.max_wallclock_seconds)
    return min(share, 1.0)


def learning_rate_factor(cfg, progress):
    """Share of the peak learning rate: a linear rise, a plateau, a linear fall to min_lr."""
    if progress < cfg.train.warmup_fraction:
        return max(progress / cfg.train.warmup_fraction, 0.01)
    if progress <= 1.0 - cfg.train.warmdown_fraction:
        return 1.0
    left = (1.0 - progress) / cfg.train.warmdown_fraction
    return cfg.train.min_lr + (1.0 - cfg.train.min_lr) * left
