"""One training run from start or checkpoint to its last save, on any backend: what both entries and the counted file share."""

from trit.data.loader import open_loader
from trit.params import parameter_count
from trit.train.loop import train, wall_clock, warm_up
from trit.train.plateau import with_ladder


def run_training(cfg, specs, backend, data_path, seed, log, resumed, save):
    """Train the weights that `backend` holds, or continue from `resumed` (state, step, seconds, loader position) -> TrainResult.

    `save(state, step, seconds, position)` writes a checkpoint.
    """
    step, seconds, position = 0, 0.0, 0
    if cfg.train.ladder:
        backend = with_ladder(cfg, backend, log)
    if resumed:
        state, step, seconds, position = resumed
        backend.restore(state)
    loader = open_loader(cfg, data_path, seed, backend.rank, backend.world, position)
    log.line(f"model_params:{parameter_count(specs)} world_size:{backend.world} grad_accum_steps:{cfg.train.grad_accum_steps} seed:{seed}")
    if cfg.train.batch_schedule:
        begun = step
    begin = wall_clock()
    warm_up(cfg, backend, seed)
    log.line(f"warmup_step:{cfg.train.warmup_steps}/{cfg.train.warmup_steps} warmup_time:{(wall_clock() - begin) * 1000:.0f}ms")

    def save_all(step, seconds):
        # A step takes one batch. The loader may be one ahead: a step that Ctrl-C broke off is done again.
        if cfg.train.batch_schedule:
            save(backend.state(), step, seconds, loader.taken[step - begun])
        else:
            save(backend.state(), step, seconds, step)

    try:
        result = train(cfg, backend, loader, log, save_all, step, seconds, wall_clock)
        save_all(result.steps, result.seconds)
    finally:
        loader.close()
    return result
