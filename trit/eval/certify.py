"""python -m trit.eval.certify RECORD_FOLDER: proves what can be proved about a finished record, from its counted file alone.

The counted file is a black box: it is run in isolation on the validation text and on changed copies of it, and what it wrote, printed
and touched is judged. In: a record folder and its shards. Out: a `Certificate`; a table, JSON, and an exit status that is not zero where
a check failed. An unknown verdict proves nothing either way and says what to supply. The record is never changed.
"""

import contextlib
import functools
import json
import os
import re
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from trit.bundle.alone import KILLED, Job, run_jobs
from trit.bundle.verify import BundleError, check_syntax, verify
from trit.bundle.wrap import expand
from trit.config_load import from_dict
from trit.console import Parser, command, move, progress, visible
from trit.console import say as tell
from trit.data.byte_count import byte_table
from trit.data.tokenizer import open_tokenizer
from trit.eval.temperature import artifact_specs
from trit.models import load_arch
from trit.proof import checks, claims
from trit.proof.checks import check, unknown
from trit.proof.contamination import shared_documents
from trit.proof.entry import given_files, read_entry, track_limits
from trit.proof.paid_prefix import text_runs
from trit.proof.rebuild import same_build
from trit.proof.replay import Replay, Scores, plan_replay, replay_checks, replay_length
from trit.proof.touched import touched_checks
from trit.proof.views import artifact_views, code_views
from trit.report.record import certificate_json, hardware, verdict_counts, verdict_line
from trit.train.backend import Process

CUTS, QUICK_CUTS, FULL_ROWS = 10, 4, 24
GPU_TOLERANCE = 1e-3  # nats: atomic sums and bfloat16 kernels do not repeat exactly
LOSSES, ROWS = "losses.f64", "rows.f64"


class Plan(NamedTuple):
    """The runs of a certification: the whole text first (`full_rows` are the positions whose rows it writes; None where it is left
    out), then the replay's true text, its probes, and the true text again."""

    jobs: list
    replay: Replay
    full_rows: np.ndarray


class Certificate(NamedTuple):
    """`checks`, `made_by` (what they were made with), and the `losses` of the full run, None where it failed."""

    checks: list
    made_by: dict
    losses: np.ndarray


def plan_runs(entry, quick=False, tokens=0, cuts=CUTS, seed=0):
    """`Plan` for an `Entry`. `tokens` is the length of the replayed text (0: three learning chunks), `cuts` how many tails are replaced."""
    if len(entry.tokens) < 8:
        raise ValueError(f"{entry.data}: {len(entry.tokens)} validation tokens are too few to judge a scorer on")
    generator = np.random.default_rng(seed)
    length = replay_length(entry.evaluation, len(entry.tokens)) if not tokens else min(max(tokens, 8), len(entry.tokens))
    replay = plan_replay(entry.evaluation, entry.tokens[:length], entry.vocab_size, cuts, seed)
    full_rows = None if quick else np.unique(generator.integers(0, len(entry.tokens) - 1, FULL_ROWS))
    environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "byte260" if entry.tokenizer == "byte260" else "tokenizer.model"}
    environ |= {"LOSSES": LOSSES, "ROWS": ROWS}
    if "OMP_NUM_THREADS" in os.environ:
        environ["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]

    def job(name, text, rows_at):
        return Job(name, entry.program, given_files(entry, text), environ | {"ROWS_AT": ",".join(map(str, rows_at))})

    jobs = [] if quick else [job("whole validation text", None, full_rows)]
    jobs.append(job(f"first {length} tokens", replay.tokens, replay.rows_at))
    jobs += [job(f"tail replaced from token {probe.first}", probe.tokens, replay.rows_at) for probe in replay.probes]
    return Plan([*jobs, job(f"first {length} tokens again", replay.tokens, replay.rows_at)], replay, full_rows)


def read_scores(result, vocab_size):
    """`Scores` that a run wrote, or None where it failed or wrote no losses."""
    losses, rows = (result.folder / name for name in (LOSSES, ROWS))
    if result.returncode or not losses.exists():
        return None
    found = np.fromfile(rows) if rows.exists() else np.zeros(0)
    return Scores(np.fromfile(losses), found[: len(found) // vocab_size * vocab_size].reshape(-1, vocab_size))


def failure_text(result):
    """The last line a failed run printed to its error stream."""
    lines = result.stderr.strip().splitlines()
    if result.returncode == KILLED:
        lines.append("it took too long, or ended its process")
    return f"exit {result.returncode}: {lines[-1][:300] if lines else 'no message'}"


def full_run_checks(entry, result, scores, session, documents, texts):
    """Checks of the run on the whole validation text."""
    names = ("scored exactly once", "printed score", "byte accounting", "reproduces the recorded score", "evaluation time")
    positions, size = len(entry.tokens) - 1, sum(map(len, texts))
    printed = claims.final_line(result.stdout)
    runs = [
        check("runs alone", not result.returncode, f"empty folder, python -I; {failure_text(result) if result.returncode else 'exit 0'}")
    ]
    if scores is None or printed is None:
        missing = "printed no final_..._roundtrip_exact line" if printed is None else "wrote no losses to LOSSES"
        if not result.returncode:
            runs.append(check("printed score", False, f"the run {missing}"))
        return runs + [unknown(name, "needs a full run that ends well") for name in names if name != "printed score" or result.returncode]
    printed = {name: printed.get(name, np.nan) for name in ("val_loss", "val_bpb", "tokens", "bytes")}
    limit = track_limits(entry.config)["eval_seconds"]
    table = byte_table(entry.tokenizer, entry.vocab_size)
    device = "cuda:0" if session.device.startswith("cuda") else session.device
    found = [
        checks.scored_once(scores.losses, positions, printed["tokens"]),
        checks.printed_score(scores.losses, size, printed["val_loss"], printed["val_bpb"]),
        checks.byte_accounting(documents, texts, table, printed["bytes"]),
        claims.reproduces(entry, printed, session.libraries, hardware(Process(0, 1, device))),
        checks.within_time("evaluation time", result.seconds, limit),
    ]
    constants = checks.contest_constants(positions, size, len(documents))
    return runs + found + ([constants] if constants else [])


@functools.cache
def compiles(program):
    """The counted file, and what it expands to, is valid under every supported Python."""
    try:
        expand(program)
    except ValueError:
        try:
            check_syntax(program.decode("utf-8"))
        except (BundleError, UnicodeDecodeError) as fault:
            return check("byte-compiles", False, str(fault))
        return unknown(
            "byte-compiles", "not wrapped by trit.bundle.wrap; the file itself is valid Python 3.10, what it unpacks was not seen"
        )
    try:
        report = verify(program)
    except BundleError as fault:
        return check("byte-compiles", False, str(fault))
    pythons, missing = ", ".join(sorted(report["pythons"])), ", ".join(report["missing"]) or "none"
    return check("byte-compiles", report["pythons"], f"python {pythons}; not installed here: {missing}")


def shipped_views(entry):
    """({name: bytes} of what is submitted, taken apart; a remark where the artifact could not be)."""
    views = code_views(entry.program)
    try:
        config = from_dict(entry.config)
        return views | artifact_views(entry.artifact, config, artifact_specs(load_arch(config.model.name), config)), ""
    except (ValueError, KeyError) as fault:
        return views | {"artifact": entry.artifact}, f"; the artifact was searched as it lies, this version cannot take it apart: {fault}"


def contamination(entry, texts):
    """Checks that validation text is neither in the training text nor in what is submitted. `texts` are the decoded documents."""
    name = "no validation documents in training"
    if entry.training:
        shared = check(name, *shared_documents(entry.training, entry.shards).summary())
    else:
        shared = unknown(name, "no training shards beside the validation shards; give their folder with --train-data")
    views, remark = shipped_views(entry)
    runs = text_runs(views, entry.tokens, b"".join(texts), entry.vocab_size)
    found = "; ".join(f"{run.symbols} of {run.encoding} in {run.view} at byte {run.byte}" for run in runs[:3]) or "none"
    evidence = f"{len(views)} views of code and artifact, {sum(map(len, views.values()))} bytes, searched; runs of validation text: {found}"
    return [shared, check("no validation text in the submission", not runs, evidence + remark)]


def claim_checks(entry, texts):
    """Checks of what the record says about itself; nothing is run for them."""
    limits, seconds = track_limits(entry.config), claims.training_seconds(entry)
    return [
        claims.complete(entry),
        checks.within_budget(len(entry.program), len(entry.artifact), limits["cap_bytes"]),
        claims.claimed_sizes(entry),
        claims.claimed_scores(entry),
        claims.recorded_hashes(entry),
        claims.config_hash(entry),
        claims.seeds(entry),
        claims.validation_split(entry, texts),
        unknown("training time", "neither submission.json nor the log says how long training took")
        if seconds is None
        else checks.within_time("training time", seconds, limits["train_seconds"], claims.warm_up(entry)),
        compiles(entry.program),
    ]


def judge(entry, plan, session):
    """Every check of an `Entry` whose `plan` was run in `session`, but for the rebuild."""
    results, quick = session.results, plan.full_rows is None
    scores = [read_scores(result, entry.vocab_size) for result in results]
    documents = checks.split_documents(entry.tokens)
    texts = checks.decoded_documents(entry.tokens, open_tokenizer(entry.tokenizer))
    tolerance = 0.0 if session.device == "cpu" else GPU_TOLERANCE
    if quick:
        found = [check("runs alone", not any(r.returncode for r in results), f"{len(results)} runs, empty folder, python -I")]
        found += [unknown("reproduces the recorded score", "left out by --quick"), unknown("evaluation time", "left out by --quick")]
        late = None
    else:
        found = full_run_checks(entry, results[0], scores[0], session, documents, texts)
        late = (scores[0], plan.full_rows, entry.tokens) if scores[0] else None
    base, *changed, again = scores[not quick :]
    found += replay_checks(plan.replay, base, again, changed, tolerance, late)
    found += touched_checks(session)
    return found + claim_checks(entry, texts) + contamination(entry, texts)


@contextlib.contextmanager
def watched_runs(plan, entry):
    """A function for `run_jobs` to `watch` with, which moves a bar over the tokens that the runs of a plan score; None without a bar."""
    if not visible():
        yield None
        return
    replayed, whole = len(plan.replay.tokens), plan.full_rows is not None
    sizes = [len(entry.tokens)] * whole + [replayed] * (len(plan.jobs) - whole)
    with progress("certify", sum(sizes), " tokens") as bar:

        def watch(number, printed):
            steps = re.findall(r"eval_step:(\d+)/(\d+)", printed)
            share = int(steps[-1][0]) / int(steps[-1][1]) if steps else 0.0
            bar.set_postfix_str(f"run {number + 1} of {len(sizes)}", refresh=False)
            move(bar, sum(sizes[:number]) + int(share * sizes[number]))

        yield watch


def certify(entry, quick=False, tokens=0, say=tell, complete=None):
    """`Certificate` of an `Entry` (trit.proof.entry.read_entry). `say` gets progress lines.

    A build writes the record's last claims from the full run: `complete` maps (JobResult, losses or None) of it to the `Entry` to judge.
    """
    plan, begin = plan_runs(entry, quick, tokens, QUICK_CUTS if quick else CUTS), time.perf_counter()
    limit = 2 * track_limits(entry.config)["eval_seconds"] or 86400
    say(f"certify: {len(plan.jobs)} runs of the counted file in one isolated process")
    with tempfile.TemporaryDirectory() as root:
        with watched_runs(plan, entry) as watch:
            session = run_jobs(plan.jobs, root, limit, say=lambda line: say(f"certify: {line}"), watch=watch)
        first = session.results[0]
        scores = read_scores(first, entry.vocab_size)
        losses = scores and scores.losses
        entry = complete(first, losses) if complete else entry
        found = judge(entry, plan, session)
    say("certify: rebuilding the counted file")
    made_by = {
        **session.libraries,
        "device": session.device,
        "isolation": session.isolation,
        "replayed_tokens": len(plan.replay.tokens),
        "first_replaced_tokens": [probe.first for probe in plan.replay.probes],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    return Certificate([*found, same_build(entry)], made_by, losses)


def main(arguments=None):
    """Command line: 0 where nothing failed, 1 where a check failed, 2 where the record cannot be judged."""
    description = "Judge a finished record as a stranger would."
    parser = Parser(prog="python -m trit.eval.certify", description=description, answers=True)
    parser.add_argument("record", help="record folder, for example records/<track>/<date>_<name>")
    parser.add_argument("--data", help="folder of the validation shards; by default the one the record names")
    parser.add_argument("--train-data", help="folder of the training shards; by default that of the validation shards")
    parser.add_argument("--tokens", type=int, default=0, help="tokens of the replayed text; by default three learning chunks")
    parser.add_argument("--quick", action="store_true", help="fewer replays and no run on the whole text")
    options = parser.parse_args(arguments)
    with command(options.json, "stopped; nothing was judged, and the record is as it was", code=2) as answer:
        certificate = certify(read_entry(options.record, options.data, options.train_data), options.quick, options.tokens)
        for item in certificate.checks:
            print(f"{item.verdict:8}{item.name}: {item.evidence}")
        print(verdict_line(certificate.checks))
        answer |= {"record": options.record, **json.loads(certificate_json(certificate.checks, certificate.made_by))}
    return 1 if verdict_counts(certificate.checks)["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
