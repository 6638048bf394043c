"""A line in the log every few hundred steps: what the artifact would weigh now, and for programs how many trits changed since the last
one. Beside the counted program, not in it."""

from trit.compress.sizes import predicted_bytes


def changed_shares(codes, before):
    """{name: share of the codes that differ} of the tensors in both of two looks, each {name: int8 array}."""
    return {name: round(float((codes[name] != before[name]).mean()), 6) for name in codes if name in before}


def with_prediction(backend, ops, cfg, specs, log):
    """`backend` whose steps also predict the size, every compress.predict_every of them, on rank 0. A record in the metrics tells the
    size, the share of noughts of every ternary tensor and, from the second look on, the share of its trits that changed since the last."""
    taken, before = [0], {}

    def step(*arguments):
        result = backend.step(*arguments)
        taken[0] += 1
        if taken[0] % cfg.compress.predict_every == 0 and backend.rank == 0:
            codes = {}
            total = cfg.compress.code_bytes_reserve + predicted_bytes(ops, cfg, specs, backend.export(), codes)
            spare = cfg.track.cap_bytes - total
            verdict = (
                f"{spare:,} bytes free"
                if spare >= 0
                else f"OVER by {-spare:,} bytes: stop and choose smaller, see build_submission.py --plan --fit"
            )
            log.line(f"predicted size: {total:,} bytes with code, {verdict}")
            noughts = {name: round(float((found == 0).mean()), 6) for name, found in codes.items()}
            log.metrics(look=taken[0], predicted_bytes=total, noughts=noughts, churn=changed_shares(codes, before))
            before.update(codes)
        return result

    return backend._replace(step=step) if cfg.compress.predict_every else backend
