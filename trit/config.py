"""Every setting that can change a trained model or its score: frozen dataclasses, one line of help a field.

`Config` holds static settings: they fold into the counted file as literals. `RunArgs` holds facts of one run (paths, seed).
Environment names are the field names in capitals unless `env` says otherwise, so they are unique across sections.
"""

import dataclasses
import math
from dataclasses import dataclass

from trit.compress.quantize import group_layout
from trit.eval.ttt import scope_specs
from trit.layer_map import check_layer_map
from trit.models import load_arch
from trit.setting import setting
from trit.train.check_phases import check_phases


@dataclass(frozen=True)
class ModelConfig:
    name: str = setting("unet", "architecture: the file name in trit/models", env="ARCHITECTURE")
    vocab_size: int = setting(1024, "number of token ids the model predicts")
    num_layers: int = setting(4, "blocks, encoder half and decoder half together")
    model_dim: int = setting(128, "width of the residual stream")
    num_heads: int = setting(4, "query heads")
    num_kv_heads: int = setting(2, "key and value heads; divides num_heads")
    mlp_mult: int = setting(4, "hidden width of the MLP as a multiple of model_dim")
    embed_dim: int = setting(64, "width of the factorised tied embedding; equal to model_dim means no factorisation")
    logit_softcap: float = setting(30.0, "logits are bounded to plus or minus this value")
    rope_base: float = setting(5000.0, "base of the rotary frequencies")
    partial_rope_dims: int = setting(16, "dimensions of each head that are rotated; even, at most the head width")
    yarn_max_len: int = setting(4096, "longest context the YaRN frequency ramp is made for; at least train_seq_len")
    qk_gain_init: float = setting(2.25, "initial per-head gain on normalised queries")
    value_residual: bool = setting(True, "mix the first layer's values into later layers (VRL)", env="VRL_ENABLED")
    xsa_layers: int = setting(0, "number of last layers that remove each token's own value direction (XSA); 0 is off")
    isolate_documents: bool = setting(False, "no token sees another document's: attention and the engram stop at the document's BOS")
    embed_init_std: float = setting(0.02, "standard deviation of the embedding at the start", env="TIED_EMBED_INIT_STD")


@dataclass(frozen=True)
class EngramConfig:
    engram_buckets: int = setting(0, "rows of each hashed n-gram table; 0 switches the memory off", env="BIGRAM_HASH_BUCKETS")
    engram_heads: int = setting(2, "hash functions for each n-gram order", env="ENGRAM_NUM_HEADS")
    engram_orders: int = setting(2, "n-gram orders: 1 bigrams, 2 adds trigrams, 3 adds 4-grams", env="ENGRAM_NUM_ORDERS")
    engram_row_dim: int = setting(32, "width of one table row")
    engram_layer: int = setting(0, "encoder layer before which the memory is added", env="ENGRAM_INJECT_LAYER")
    gate_bias_init: float = setting(0.0, "bias of the memory's gate at the start; 1.5 opens it early", env="ENG_GATE_BIAS_INIT")
    write_every: int = setting(1, "optimiser steps from one that trains the tables to the next", env="ENG_WRITE_EVERY")


@dataclass(frozen=True)
class QuantConfig:
    matrix_scheme: str = setting("ternary", "storage of the large matrices", choices=("ternary", "int", "fp16"))
    matrix_bits: int = setting(4, "bits of the large matrices where matrix_scheme is int")
    bitnet_group_size: int = setting(128, "weights that share one ternary scale, inside a row")
    ternary_threshold: float = setting(0.5, "weights below this share of the group's mean magnitude become zero")
    ternary_scale: str = setting("absmean", "group scale: mean magnitude, or least squares", choices=("absmean", "least_squares"))
    int_clip: float = setting(2.5, "range of the integer grids in multiples of the group's RMS")
    embed_bits: int = setting(4, "bits of the embedding rows: 1 ternary, 2 to 8 a grid, 16 floats")
    embed_group_size: int = setting(0, "embedding weights that share one scale; 0 is one row")
    engram_bits: int = setting(4, "bits of the engram rows, likewise")
    engram_clip: float = setting(2.0, "the same range for the integer grid of the engram rows; 2 bits and 2.0 make sparse trits")
    engram_group_size: int = setting(4096, "engram weights that share one scale; a multiple or a divisor of the row")
    rate_penalty: float = setting(0.0, "price, in nats, of all three-valued codes being other than zero: above 0 trades weights for bytes")
    scalar_bits: int = setting(16, "bits of gains, scales and biases, likewise; on a grid they are distances from their start")
    scalar_clip: float = setting(4.0, "range of the grid of gains, scales and biases in multiples of the tensor's RMS")
    scale_steps: int = setting(0, "scales that can be stored in every doubling; 0 stores them as 16-bit floats")
    rotate_matrices: bool = setting(
        False, "store the groups of the large matrices Hadamard-rotated, in training as in the artifact", env="TURBO_QUANT_TRAIN"
    )
    rotate_embedding: bool = setting(False, "the same for the groups of the embedding")
    noise: float = setting(
        0.0, "noise on ternary weights in training, as a share of their scale; it falls to 0 over the budget", env="TERNARY_NOISE_SCALE"
    )
    full_precision_fraction: float = setting(0.0, "share of the budget trained before rounding is switched on")


@dataclass(frozen=True)
class TrainConfig:
    train_seq_len: int = setting(256, "tokens in a training window")
    train_batch_tokens: int = setting(4096, "tokens in an optimiser step, all ranks together")
    loss_chunk_tokens: int = setting(0, "positions whose logits exist at once in training; 0 is the whole micro-batch")
    grad_accum_steps: int = setting(1, "micro-batches summed into a step, on each rank")
    iterations: int = setting(20000, "most optimiser steps; the wall clock usually ends the run first")
    max_wallclock_seconds: float = setting(280.0, "training seconds; 0 means that iterations alone end the run")
    warmup_steps: int = setting(2, "steps run before the clock starts, with every state restored afterwards")
    seq_schedule: str = setting("", "windows of other lengths first, as length:share of the clock at which it ends, such as 64:0.1,128:0.3")
    batch_schedule: str = setting("", "tokens of an optimiser step first, likewise; then train_batch_tokens")
    recurrence_start: float = setting(0.0, "share of the clock from which arch.recurrent_layers recur in training; in evaluation always")
    drop_path: float = setting(0.0, "probability that a training window skips a block (stochastic depth)", env="STOCHASTIC_DEPTH_PROB")
    carry: bool = setting(
        False,
        "each row of a batch goes on with its text of the step before, and Koopman and SKC mixers and capsules with their state; "
        "attention, engram and feedback begin anew in every window",
    )
    carry_reset: float = setting(0.2, "probability that a row begins a step without what it carries, as evaluations begin")
    carry_windows: int = setting(
        16, "windows of one text that a row reads before it goes elsewhere; 0 is far, as many as share out an epoch over the rows"
    )
    matrix_lr: float = setting(0.02, "Muon learning rate of the matrices")
    scalar_lr: float = setting(0.01, "Adam learning rate of gains, scales and biases")
    embed_lr: float = setting(0.01, "Adam learning rate of the tied embedding", env="TIED_EMBED_LR")
    engram_lr: float = setting(0.015, "Adam learning rate of the engram tables")
    muon_momentum: float = setting(0.95, "Nesterov momentum of Muon")
    muon_backend_steps: int = setting(5, "Newton-Schulz iterations of Muon")
    muon_row_norm: bool = setting(False, "normalise the rows of the momentum before orthogonalising (MuonEq-R)")
    muon_wd: float = setting(0.0, "decoupled weight decay of the matrices")
    adam_wd: float = setting(0.0, "decoupled weight decay of the embedding; 1-D parameters and tables never decay")
    beta1: float = setting(0.9, "Adam first-moment decay")
    beta2: float = setting(0.95, "Adam second-moment decay")
    adam_eps: float = setting(1e-8, "Adam denominator floor")
    grad_clip_norm: float = setting(1.0, "global gradient norm limit; 0 switches clipping off")
    warmup_fraction: float = setting(0.01, "share of the budget in which the learning rate rises")
    warmdown_fraction: float = setting(0.4, "share of the budget in which the learning rate falls, at the end")
    min_lr: float = setting(0.0, "learning rate at the end as a share of the peak")
    ema_decay: float = setting(0.0, "decay of the moving average of weights; 0 switches it off")
    ema_start_fraction: float = setting(0.4, "share of the budget after which averaging starts")
    compute_dtype: str = setting("float32", "type of activations and products", choices=("float32", "bfloat16"))
    fp8: bool = setting(
        False, "products with ternary matrices in 8-bit floats, in training only: CUDA from Ada and Hopper on; a CPU rounds alike, slowly"
    )
    attention_kernel: str = setting(
        "sdpa",
        "sdpa: torch's own choice; float32: the same in 32 bits whatever compute_dtype, twice as fast on a CPU as in bfloat16; "
        "flash: FlashAttention 3 or 2 where a machine has it and it is right on a trial, which is printed",
        choices=("sdpa", "float32", "flash"),
    )
    compile: bool = setting(False, "compile the training step (torch.compile, or mx.compile)", env="TORCH_COMPILE")
    log_every: int = setting(50, "steps between log lines", env="TRAIN_LOG_EVERY")
    checkpoint_every: int = setting(0, "steps between checkpoints; 0 writes one at the end and at Ctrl-C only")


@dataclass(frozen=True)
class CompressConfig:
    calibration_tokens: int = setting(16384, "tokens of held-out training text that calibration may read")
    calibration_evals: int = setting(48, "most loss evaluations calibration may spend; 0 switches the search off")
    code_bytes_reserve: int = setting(14_000, "bytes that the plan before training sets aside for the counted code")
    coders: str = setting(
        "entropy", "entropy: the adaptive coder alone; all: brotli and LZMA too, the smallest for every stream", choices=("entropy", "all")
    )
    allocate: bool = setting(False, "the artifact says each tensor's bits, as an allocator chose them, instead of the settings")
    engram_keep: str = setting(
        "", "share of the rows of each engram table that the artifact keeps, or one for each order, as 0.35,0.2; empty keeps all"
    )
    engram_keep_norm_weight: float = setting(
        0.85, "which rows those are: weight of a row's norm, against that of how often held-out training text reads it"
    )
    predict_every: int = setting(500, "steps between predictions of the artifact's size in the log; 0 is off")
    model_bytes_cap: int = setting(
        0,
        "most bytes of an allocated artifact; 0 takes what a build's counted code leaves of track.cap_bytes, in training code_bytes_reserve",
    )
    calibration_seconds: float = setting(20.0, "most seconds calibration may spend")


@dataclass(frozen=True)
class EvalConfig:
    eval_seq_len: int = setting(256, "tokens in an evaluation window")
    eval_stride: int = setting(64, "tokens newly scored in each window; eval_seq_len itself gives plain chunks")
    eval_segment_tokens: int = setting(
        0, "evaluate in one pass: segments of this many tokens, attention limited to the last eval_seq_len; 0 is overlapping windows"
    )
    eval_batch_seqs: int = setting(32, "windows evaluated together; the score does not depend on it")
    eval_compile: bool = setting(False, "compile the evaluator's forward (torch.compile): pays for overlapping windows over long texts")
    eval_chunk_tokens: int = setting(
        1024, "tokens that all ranks score together before test-time training takes a step on them; many on GPUs"
    )
    fit_temperature: bool = setting(False, "fit the temperature of the distribution on held-out training text and store it")
    ngram_order: int = setting(0, "longest context, in tokens, of the online n-gram memory; 0 is off", env="NGRAM_ORDER")
    ngram_nodes: int = setting(1 << 21, "most grams the n-gram memory holds, 36 bytes each; beyond it the rarest are forgotten")
    memory_chunk_tokens: int = setting(32, "tokens scored before the online memories absorb them and their weights take a step")
    memory_lr: float = setting(0.4, "step of the online memories' mixing weights (Adagrad on scored tokens)")
    eval_engram_buckets: int = setting(0, "rows of each table of EvalEngram, a hashed online memory; 0 is off", env="EVAL_ENGRAM_BUCKETS")
    eval_engram_orders: int = setting(5, "contexts of EvalEngram: of 1 token to this many")
    eval_engram_slots: int = setting(4, "tokens that a row of EvalEngram holds")
    eval_engram_entropy: float = setting(2.0, "EvalEngram acts where the model's entropy is above this, in nats")
    ttt_scope: str = setting(
        "none",
        "tensors that test-time training adapts on scored text",
        choices=("none", "feedback", "skc_safe", "capsule_bank", "scales", "lora"),
    )
    ttt_lr: float = setting(0.05, "peak learning rate of test-time training; it falls along a cosine over the text")
    ttt_momentum: float = setting(0.9, "momentum of its SGD")
    ttt_clip: float = setting(1.0, "largest norm of its gradient")
    ttt_epochs: int = setting(1, "its passes over each scored chunk")
    ttt_lora_rank: int = setting(8, "rank of the lora scope's factors")
    evaluation_only: bool = setting(False, "the counted program scores the artifact beside it and cannot train: the smallest form")
    freeze_check_strict: bool = setting(True, "an evaluation that changed a tensor of the artifact is an error, otherwise a warning")


@dataclass(frozen=True)
class TrackConfig:
    track: str = setting("demo_cpu_256kb", "contest category, an entry of configs/tracks.toml")
    cap_bytes: int = setting(256_000, "most bytes of counted code and artifact together, decimal")
    train_seconds: float = setting(300.0, "most seconds of training the track allows", env="TRACK_TRAIN_SECONDS")
    eval_seconds: float = setting(600.0, "most seconds of evaluation the track allows", env="TRACK_EVAL_SECONDS")


@dataclass(frozen=True)
class Config:
    """All static settings. `arch` is the `ArchConfig` of the architecture that `model.name` names."""

    model: ModelConfig
    arch: object
    engram: EngramConfig
    quant: QuantConfig
    train: TrainConfig
    compress: CompressConfig
    eval: EvalConfig
    track: TrackConfig


@dataclass(frozen=True)
class RunArgs:
    """Facts of one run. They may differ between runs of the same configuration and never fold into the counted file."""

    data_path: str = setting("data/pydocs_sp1024", "folder of token shards")
    tokenizer_path: str = setting("", "tokenizer model file, or byte260; empty takes what the data folder's manifest names")
    seed: int = setting(1337, "seed of the initial weights and of the order of the data")
    run_id: str = setting("run", "name of the run, and of its folder in runs/")
    out_path: str = setting("", "folder of the run's files; empty means runs/<run_id>")
    resume: bool = setting(False, "continue from the run folder's checkpoint")


SECTIONS = {
    "model": ModelConfig,
    "engram": EngramConfig,
    "quant": QuantConfig,
    "train": TrainConfig,
    "compress": CompressConfig,
    "eval": EvalConfig,
    "track": TrackConfig,
}


def nearest_multiples(value, step):
    """The two multiples of `step` around `value`, both positive."""
    below = value // step * step
    return (below, below + step) if below else (step,)


def check_fp8(config, require):
    """What train.fp8 asks of the matrices: exact in 8-bit floats but for one scale a row, in every step, of sizes that GPUs multiply."""
    quant, matrices = config.quant, [spec for spec in load_arch(config.model.name).param_specs(config) if spec.group == "matrix"]
    require(quant.matrix_scheme == "ternary", "quant.matrix_scheme", quant.matrix_scheme, "is not exact in train.fp8; it takes ternary")
    require(not quant.rotate_matrices, "quant.rotate_matrices", True, "makes matrices that train.fp8 would round; set it to false")
    phase = quant.full_precision_fraction
    require(phase == 0, "quant.full_precision_fraction", phase, "trains matrices that train.fp8 would round; set it to 0")
    widest = max(spec.shape[-1] for spec in matrices)
    size = quant.bitnet_group_size
    require(size >= widest, "quant.bitnet_group_size", size, f"cuts rows, whose one scale train.fp8 folds away; {widest} or more does not")
    for spec in matrices:
        odd = next((length for length in spec.shape if length % 16), 0)
        require(not odd, "train.fp8", True, f"multiplies by 16 numbers at a time, which {spec.name} {spec.shape} is not made of")


def check_engram(config, require):
    """What write_every and compress.engram_keep ask for."""
    engram, compress = config.engram, config.compress
    require(engram.write_every > 0, "engram.write_every", engram.write_every, "must be 1 (every step) or more")
    off = "changes nothing without a memory; set engram.engram_buckets, or it to"
    require(engram.write_every == 1 or engram.engram_buckets, "engram.write_every", engram.write_every, f"{off} 1")
    require(math.isfinite(engram.gate_bias_init), "engram.gate_bias_init", engram.gate_bias_init, "must be a number")
    if compress.engram_keep:
        name, text, weight = "compress.engram_keep", compress.engram_keep, compress.engram_keep_norm_weight
        require(engram.engram_buckets, name, text, f"{off} nothing")
        reason = f"must be one share above 0 and at most 1, or one for each of the {engram.engram_orders} orders, such as 0.35,0.2"
        try:
            shares = [float(part) for part in text.split(",")]
        except ValueError:
            shares = []
        require(len(shares) in (1, engram.engram_orders) and all(0 < share <= 1 for share in shares), name, repr(text), reason)
        require(0 <= weight <= 1, "compress.engram_keep_norm_weight", weight, "must lie between 0 and 1")
        reason = "and compress.allocate=True both decide what the engram's bytes are; leave one of them out"
        require(not compress.allocate, name, text, reason)


def validate(config, world_size=1):
    """Raise ValueError naming the setting, its value and what would be right. Pure; run before any device work."""
    model, train, quant, engram, evaluation = config.model, config.train, config.quant, config.engram, config.eval

    def require(holds, name, value, reason):
        if not holds:
            raise ValueError(f"{name}={value} {reason}")

    def divides(part, whole, part_name, whole_name):
        near = " or ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        require(part > 0 and whole % part == 0, part_name, part, f"does not divide {whole_name}={whole}; possible: {near}")

    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            choices = field.metadata.get("choices")
            value = getattr(values, field.name)
            require(not choices or value in choices, f"{section.name}.{field.name}", value, f"is unknown; possible: {choices}")
    for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult", "embed_dim"):
        require(getattr(model, name) > 0, f"model.{name}", getattr(model, name), "must be positive")
    require(model.vocab_size <= 65536, "model.vocab_size", model.vocab_size, "does not fit the shards' 16-bit ids; at most 65536")
    require(model.embed_dim <= model.model_dim, "model.embed_dim", model.embed_dim, f"exceeds model.model_dim={model.model_dim}")
    divides(model.num_heads, model.model_dim, "model.num_heads", "model.model_dim")
    divides(model.num_kv_heads, model.num_heads, "model.num_kv_heads", "model.num_heads")
    head_dim = model.model_dim // model.num_heads
    rope = model.partial_rope_dims
    require(rope % 2 == 0 and 2 <= rope <= head_dim, "model.partial_rope_dims", rope, f"must be even, from 2 to the head width {head_dim}")
    longest = max(train.train_seq_len, evaluation.eval_seq_len)
    require(model.yarn_max_len >= longest, "model.yarn_max_len", model.yarn_max_len, f"is below the longest window {longest}")
    require(0 <= model.xsa_layers <= model.num_layers, "model.xsa_layers", model.xsa_layers, f"must be 0 to {model.num_layers}")
    require(model.logit_softcap > 0, "model.logit_softcap", model.logit_softcap, "must be positive")
    require(engram.engram_buckets >= 0, "engram.engram_buckets", engram.engram_buckets, "must be 0 (no memory) or more")
    require(train.loss_chunk_tokens >= 0, "train.loss_chunk_tokens", train.loss_chunk_tokens, "must be 0 (all at once) or more")
    if engram.engram_buckets:
        encoder = model.num_layers // 2
        require(0 <= engram.engram_layer <= encoder, "engram.engram_layer", engram.engram_layer, f"is outside the encoder, 0 to {encoder}")
        require(1 <= engram.engram_orders <= 3, "engram.engram_orders", engram.engram_orders, "must be 1, 2 or 3")
        require(
            engram.engram_heads > 0 and engram.engram_row_dim > 0,
            "engram.engram_heads",
            engram.engram_heads,
            "and engram_row_dim must be positive",
        )
    check_engram(config, require)
    require(2 <= quant.matrix_bits <= 8, "quant.matrix_bits", quant.matrix_bits, "must be 2 to 8")
    for name in ("embed_bits", "engram_bits", "scalar_bits"):
        require(getattr(quant, name) in (1, 2, 3, 4, 5, 6, 7, 8, 16), f"quant.{name}", getattr(quant, name), "must be 1 to 8, or 16")
    for name in ("int_clip", "engram_clip", "scalar_clip"):
        require(getattr(quant, name) > 0, f"quant.{name}", getattr(quant, name), "must be positive")
    require(0 <= quant.scale_steps <= 256, "quant.scale_steps", quant.scale_steps, "must be 0 (16-bit floats) to 256")
    require(quant.bitnet_group_size > 0, "quant.bitnet_group_size", quant.bitnet_group_size, "must be positive")
    require(0 < quant.ternary_threshold < 2, "quant.ternary_threshold", quant.ternary_threshold, "must lie between 0 and 2")
    for name in ("warmup_fraction", "warmdown_fraction", "min_lr", "ema_start_fraction"):
        require(0 <= getattr(train, name) <= 1, f"train.{name}", getattr(train, name), "must lie between 0 and 1")
    require(
        0 <= quant.full_precision_fraction < 1,
        "quant.full_precision_fraction",
        quant.full_precision_fraction,
        "must be at least 0 and below 1",
    )
    require(0 <= train.ema_decay < 1, "train.ema_decay", train.ema_decay, "must be at least 0 and below 1")
    require(train.iterations > 0, "train.iterations", train.iterations, "must be positive")
    require(train.log_every > 0, "train.log_every", train.log_every, "must be positive")
    require(
        train.train_seq_len > 1 and train.grad_accum_steps > 0,
        "train.train_seq_len",
        train.train_seq_len,
        "and grad_accum_steps must be positive",
    )
    step = world_size * train.grad_accum_steps * train.train_seq_len
    near = " or ".join(map(str, nearest_multiples(train.train_batch_tokens, step)))
    require(
        train.train_batch_tokens > 0 and train.train_batch_tokens % step == 0,
        "train.train_batch_tokens",
        train.train_batch_tokens,
        f"is not a multiple of world_size*grad_accum_steps*train_seq_len = {step}; nearest {near}",
    )
    check_phases(config, world_size)
    held = config.compress.calibration_tokens
    require(
        not config.compress.allocate or held > 2 * train.train_seq_len,
        "compress.calibration_tokens",
        held,
        f"are too few for compress.allocate, which measures on them; more than {2 * train.train_seq_len} are needed",
    )
    require(config.compress.model_bytes_cap >= 0, "compress.model_bytes_cap", config.compress.model_bytes_cap, "must not be negative")
    cap, calibration = config.track.train_seconds, config.compress.calibration_seconds if config.compress.calibration_evals else 0.0
    require(
        not cap or 0 < train.max_wallclock_seconds <= cap - calibration,
        "train.max_wallclock_seconds",
        train.max_wallclock_seconds,
        f"exceeds what the track leaves: {cap} less compress.calibration_seconds={calibration} is {cap - calibration}",
    )
    stride = evaluation.eval_stride
    require(0 < stride <= evaluation.eval_seq_len, "eval.eval_stride", stride, f"must be 1 to eval.eval_seq_len={evaluation.eval_seq_len}")
    segment, band, trained = evaluation.eval_segment_tokens, evaluation.eval_seq_len, train.train_seq_len
    reason = f"must be 0 (overlapping windows) or more than eval.eval_seq_len={band}"
    require(not segment or segment > band, "eval.eval_segment_tokens", segment, reason)
    # Its length is all that tells a segment from a training window, and attention is one function for both.
    reason = f"is below train.train_seq_len={trained}: eval.eval_segment_tokens would limit attention in training too; at least {trained}"
    require(not segment or band >= trained, "eval.eval_seq_len", band, reason)
    for name in ("eval_batch_seqs", "eval_chunk_tokens", "memory_chunk_tokens", "eval_engram_orders", "eval_engram_slots"):
        require(getattr(evaluation, name) > 0, f"eval.{name}", getattr(evaluation, name), "must be positive")
    for name in ("ngram_order", "eval_engram_buckets", "eval_engram_entropy", "memory_lr", "ttt_lr"):
        require(getattr(evaluation, name) >= 0, f"eval.{name}", getattr(evaluation, name), "must not be negative")
    least = 4 * model.vocab_size
    if evaluation.ngram_order:
        nodes = evaluation.ngram_nodes
        require(least <= nodes <= 2**30, "eval.ngram_nodes", nodes, f"must be at least 4 * vocab_size = {least} and at most {2**30}")
    if hasattr(config.arch, "layer_map"):
        check_layer_map(config)
    if evaluation.ttt_scope != "none":
        for name in ("ttt_clip", "ttt_epochs", "ttt_lora_rank"):
            require(getattr(evaluation, name) > 0, f"eval.{name}", getattr(evaluation, name), "must be positive")
        require(0 <= evaluation.ttt_momentum < 1, "eval.ttt_momentum", evaluation.ttt_momentum, "must be at least 0 and below 1")
        scope_specs(load_arch(model.name).param_specs(config), evaluation.ttt_scope)
    kernel = train.attention_kernel
    if kernel == "flash":
        reason = "takes 16-bit floats; set train.compute_dtype=bfloat16"
        require(train.compute_dtype == "bfloat16", "train.attention_kernel", kernel, reason)
    reason = "has no mask for model.isolate_documents; set it to sdpa"
    require(kernel == "sdpa" or not model.isolate_documents, "train.attention_kernel", kernel, reason)
    if train.fp8:
        check_fp8(config, require)
    for spec in load_arch(model.name).param_specs(config):
        if spec.scheme != "fp16" and group_layout(spec)[2] and (spec.rotate or (train.compile and spec.group_size <= spec.shape[-1])):
            name = "quant.bitnet_group_size" if spec.group == "matrix" else "quant.embed_group_size"
            # torch 2.13 compiles the mean of a group that is padded inside its row wrong on CPU: NaN in the first step.
            why = "a rotation" if spec.rotate else "a compiled step"
            reason = f"does not divide the rows of {spec.name} ({spec.shape[-1]}), which {why} needs"
            require(False, name, spec.group_size, f"{reason}; choose a divisor of every width, or train.compile=false")
