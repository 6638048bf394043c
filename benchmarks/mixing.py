"""Ways to mix an n-gram memory into a model, each normalised over the vocabulary: python -m benchmarks.mixing --run RUN [--tokens N]

Every way sees the same evidence on the held-out slice of the training text: exact counts of what was scored before, absorbed
every --step tokens. Model probabilities come from the run's packed and reloaded weights, in sliding windows.
  fixed      (1 - a) p + a * share after the longest known context, a = scale * (0.05 + 0.55 sigmoid(2 (entropy - 4)))  (skc.md EV06)
  backed off from the shortest context to the longest, p <- (max(count - d, 0) + (alpha + d * distinct) p) / (total + alpha)
  learned    what trit/eval/mixture.py does; `count only` drops its second term
  logistic   from the shortest context to the longest, the chance q that the context's last follower comes again is a logistic
             regression on the logit of its probability so far, with weights for each kind of context, learned online; all other
             tokens keep their proportions
"""

import argparse
import time

import numpy as np

from benchmarks.trained import load_trained
from trit.data.loader import calibration_tokens
from trit.eval.mixture import NgramMixture, magnitude
from trit.eval.ngram import NgramMemory
from trit.eval.score import score_windows
from trit.ops import torch_ops
from trit.train.torch_backend import evaluator, start_process


def model_rows(model, config, tokens):
    """Log-probabilities float16 (n - 1, V) of sliding windows."""
    rows = np.zeros((len(tokens) - 1, config.model.vocab_size), np.float16)
    for start, first, width in score_windows(config, len(tokens) - 1):
        rows[start + first : start + width] = model.rows(tokens[None, start : start + width], None, first)[0]
    return rows


def gather_evidence(tokens, order, vocab_size, step):
    """Arrays (order, n - 1) for every position: count of what came, total, distinct, the last follower (-1: none), its count, age."""
    memory, positions = NgramMemory(order, vocab_size, 1 << 22, -1), len(tokens) - 1
    found = {name: np.zeros((order, positions), np.int64) for name in ("count", "total", "distinct", "last", "last_count", "age")}
    memory.absorb(tokens[:1])
    for start in range(0, positions, step):
        came = tokens[start + 1 : start + step + 1]
        at, nodes = slice(start, start + len(came)), memory.walk(came)[0]
        known = (nodes >= 0) & (memory.total[nodes] > 0)
        last = np.where(known, memory.recent[nodes], -1)
        for name, tokens_asked in (("count", np.broadcast_to(came, nodes.shape)), ("last_count", last)):
            keys = np.where(known & (tokens_asked >= 0), nodes * vocab_size + tokens_asked, -1)
            children = memory.find(keys.ravel()).reshape(nodes.shape)
            found[name][:, at] = np.where(children >= 0, memory.count[children], 0)
        found["last"][:, at], found["age"][:, at] = last, memory.clock - memory.when[nodes]
        found["total"][:, at], found["distinct"][:, at] = (np.where(known, x[nodes], 0) for x in (memory.total, memory.distinct))
        memory.absorb(came)
    return found


def fixed(p, entropy, evidence, scale):
    """Longest known context, weight by the model's entropy."""
    share, known = np.zeros(len(p)), np.zeros(len(p), bool)
    for count, total in zip(evidence["count"], evidence["total"]):
        share, known = np.where(total > 0, count / np.maximum(total, 1), share), known | (total > 0)
    weight = scale * (0.05 + 0.55 / (1.0 + np.exp(-2.0 * (entropy - 4.0)))) * known
    return (1.0 - weight) * p + weight * share


def backed_off(p, evidence, shortest, alpha, discount):
    """Pitman-Yor chain with the model at its base."""
    for order in range(shortest - 1, len(evidence["count"])):
        count, total, distinct = (evidence[name][order] for name in ("count", "total", "distinct"))
        deeper = (np.maximum(count - discount, 0) + (alpha + discount * distinct) * p) / (total + alpha)
        p = np.where(total > 0, deeper, p)
    return p


def learned(p, tokens, order, vocab_size, step, recent):
    """The shipped mixture; without `recent` its second term is held at zero."""
    mixture, found = NgramMixture(order, vocab_size, 1 << 22, -1, 0.4), np.zeros(len(p))
    mixture.memory.absorb(tokens[:1])
    for start in range(0, len(p), step):
        came = tokens[start + 1 : start + step + 1]
        if not recent:
            mixture.logits[:, 1] = -50.0
        found[start : start + step], tape = mixture.score(came, p[start : start + step])
        mixture.learn(tape, came)
    return found


def logistic(p, rows, tokens, evidence, step, rate=0.1):
    """A chain of binary logistic mixtures, one for each order's last follower."""
    order, found = len(evidence["last"]), np.zeros(len(p))
    weights, squares = np.zeros((order, 7 * 7 * 4, 3)), np.full((order, 7 * 7 * 4, 3), 0.1)
    weights[:, :, 0] = 1.0
    for start in range(0, len(p), step):
        at = slice(start, min(start + step, len(p)))
        came, last = tokens[at.start + 1 : at.stop + 1], evidence["last"][:, at]
        tracked = np.concatenate([came[None], last])
        logs = np.take_along_axis(rows[at], np.maximum(last, 0).T, 1).T.astype(np.float64)
        chance = np.concatenate([p[None, at], np.exp(logs)])
        for k in range(order):
            count, total = evidence["last_count"][k, at], evidence["total"][k, at]
            age = np.clip(magnitude(evidence["age"][k, at]) // 4 - 1, 0, 3)
            kind = (np.minimum(magnitude(count), 6) * 7 + np.minimum(magnitude(total - count), 6)) * 4 + age
            before = np.clip(chance[k + 1], 1e-6, 1 - 1e-6)
            share = (count + 0.4) / (total + 0.8)
            inputs = np.stack([np.log(before / (1 - before)), np.ones(len(before)), 0.3 * np.log(share / (1 - share))], -1)
            q = np.clip(1 / (1 + np.exp(-(inputs * weights[k, kind]).sum(-1))), 1e-5, 1 - 1e-5)
            known, same = last[k] >= 0, tracked == last[k]
            chance = np.where(known, np.where(same, q, chance * ((1 - q) / (1 - before))), chance)
            slope = np.where(known, q - (came == last[k]), 0.0)[:, None] * inputs
            for i in range(3):
                gradient = np.bincount(kind, slope[:, i], weights.shape[1])
                squares[k, :, i] += gradient**2
                weights[k, :, i] -= rate * gradient / np.sqrt(squares[k, :, i])
        found[at] = chance[0]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--step", type=int, default=32)
    options = parser.parse_args()
    config, run, arch, loaded = load_trained(options.run)
    vocab_size = config.model.vocab_size
    tokens = calibration_tokens(config, run.data_path)[: options.tokens].astype(np.int64)
    rows = model_rows(evaluator(torch_ops, arch, config, loaded, start_process()), config, tokens)
    p = np.exp(rows[np.arange(len(rows)), tokens[1:]].astype(np.float64))
    entropy = np.array([-(np.exp(row) * row).sum() for row in rows.astype(np.float32)])
    evidence = gather_evidence(tokens, options.order, vocab_size, options.step)
    ways = {"model alone": lambda: p}
    for scale in (1.0, 0.5, 0.25):
        ways[f"fixed, scale {scale}"] = lambda scale=scale: fixed(p, entropy, evidence, scale)
    for shortest in (2, 3):
        for alpha, discount in ((4, 0.8), (16, 0.5), (32, 0.5)):
            name = f"backed off from order {shortest}, alpha {alpha}, d {discount}"
            ways[name] = lambda s=shortest, a=alpha, d=discount: backed_off(p, evidence, s, a, d)
    ways["logistic"] = lambda: logistic(p, rows, tokens, evidence, options.step)
    ways["learned, count only"] = lambda: learned(p, tokens, options.order, vocab_size, options.step, False)
    ways["learned"] = lambda: learned(p, tokens, options.order, vocab_size, options.step, True)
    print(f"{options.run}: {len(p)} positions, absorbed every {options.step}\n")
    print("| way | nats a token | ratio | seconds of mixing |\n|---|---|---|---|")
    for name, way in ways.items():
        begin = time.perf_counter()
        loss = -np.log(way()).mean()
        print(f"| {name} | {loss:.4f} | {loss / -np.log(p).mean():.4f} | {time.perf_counter() - begin:.1f} |", flush=True)


if __name__ == "__main__":
    main()
