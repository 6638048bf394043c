"""Every setting that can change a trained model or its score: frozen dataclasses, one line of help a field.

`Config` holds static settings: they fold into the counted file as literals. `RunArgs` holds facts of one run (paths, seed).
Environment names are the field names in capitals unless `env` says otherwise, so they are unique across sections.
"""

from dataclasses import dataclass

from trit.setting import setting


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network: what every architecture reads. `ArchConfig` holds what is one architecture's own."""

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
    """The hashed n-gram memory inside the model."""

    engram_buckets: int = setting(0, "rows of each hashed n-gram table; 0 switches the memory off", env="BIGRAM_HASH_BUCKETS")
    engram_heads: int = setting(2, "hash functions for each n-gram order", env="ENGRAM_NUM_HEADS")
    engram_orders: int = setting(2, "n-gram orders: 1 bigrams, 2 adds trigrams, 3 adds 4-grams", env="ENGRAM_NUM_ORDERS")
    engram_row_dim: int = setting(32, "width of one table row")
    engram_layer: int = setting(0, "encoder layer before which the memory is added", env="ENGRAM_INJECT_LAYER")
    gate_bias_init: float = setting(0.0, "bias of the memory's gate at the start; 1.5 opens it early", env="ENG_GATE_BIAS_INIT")
    write_every: int = setting(1, "optimiser steps from one that trains the tables to the next", env="ENG_WRITE_EVERY")


@dataclass(frozen=True)
class QuantConfig:
    """How every kind of tensor is stored, in training as in the artifact: `param_specs` writes it into the table."""

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
    """Batches, the clock, schedules, optimisers, arithmetic. Shares of the budget run from 0 at the start to 1 at the end."""

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
    ladder: str = setting(
        "", "what an architecture lets training begin with, rung by rung to its full value; spectral_lm: cutoffs, as 0.125,0.25,0.5,1"
    )
    ladder_window: int = setting(50, "steps whose losses say whether a rung has nothing more to give; more where they are noisy")
    ladder_gain: float = setting(0.005, "least share by which the loss must fall from the first half of them to the second to stay")
    ladder_end: float = setting(0.5, "share of the clock at which the last rung begins, if it has not by then")
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
    """From trained arrays to the artifact: calibration on held-out training text, allocation, pruning, coders. Sizes in bytes."""

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
    """How text is scored and what learns from scored text. Lengths in tokens, losses in nats."""

    eval_seq_len: int = setting(256, "tokens in an evaluation window")
    eval_stride: int = setting(64, "tokens newly scored in each window; eval_seq_len itself gives plain chunks")
    eval_segment_tokens: int = setting(
        0, "evaluate in one pass: segments of this many tokens, attention limited to the last eval_seq_len; 0 is overlapping windows"
    )
    eval_batch_seqs: int = setting(32, "windows evaluated together; the score does not depend on it")
    eval_compile: bool = setting(False, "compile the evaluator's forward: pays for overlapping windows over long texts")
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
    """Limits of a contest category; configs/tracks.toml gives those that are not set."""

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
    fit_clock: bool = setting(
        False, "time one compression before the clock starts, and end training earlier by what it takes on this machine"
    )


SECTIONS = {
    "model": ModelConfig,
    "engram": EngramConfig,
    "quant": QuantConfig,
    "train": TrainConfig,
    "compress": CompressConfig,
    "eval": EvalConfig,
    "track": TrackConfig,
}
