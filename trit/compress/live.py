"""A line in the log every few hundred steps: what the artifact would weigh now. Beside the counted program, not in it."""

from trit.compress.sizes import predicted_bytes


def with_prediction(backend, ops, cfg, specs, log):
    """`backend` whose steps also predict the size, every compress.predict_every of them, on rank 0."""
    taken = [0]

    def step(*arguments):
        result = backend.step(*arguments)
        taken[0] += 1
        if taken[0] % cfg.compress.predict_every == 0 and backend.rank == 0:
            total = cfg.compress.code_bytes_reserve + predicted_bytes(ops, cfg, specs, backend.export())
            spare = cfg.track.cap_bytes - total
            verdict = (
                f"{spare:,} bytes free"
                if spare >= 0
                else f"OVER by {-spare:,} bytes: stop and choose smaller, see build_submission.py --plan --fit"
            )
            log.line(f"predicted size: {total:,} bytes with code, {verdict}")
        return result

    return backend._replace(step=step) if cfg.compress.predict_every else backend
