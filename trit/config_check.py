"""What settings may say together: `validate` names the first that cannot be, its value and what would be right."""

import dataclasses
import math

from trit.compress.quantize import group_layout
from trit.eval.ttt import scope_specs
from trit.layer_map import check_layer_map
from trit.models import load_arch
from trit.train.check_phases import check_phases


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
    if hasattr(load_arch(model.name), "check_settings"):
        load_arch(model.name).check_settings(config)
    if evaluation.ttt_scope != "none":
        for name in ("ttt_clip", "ttt_epochs", "ttt_lora_rank"):
            require(getattr(evaluation, name) > 0, f"eval.{name}", getattr(evaluation, name), "must be positive")
        require(0 <= evaluation.ttt_momentum < 1, "eval.ttt_momentum", evaluation.ttt_momentum, "must be at least 0 and below 1")
        try:
            scope_specs(load_arch(model.name).param_specs(config), evaluation.ttt_scope)
        except ValueError as fault:
            raise ValueError(f"model.name={model.name}: {fault}") from None
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
