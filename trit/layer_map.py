"""What a layer map may say: checked before a run, never shipped."""

from dataclasses import fields

from trit.layers.attention import AttentionConfig
from trit.layers.backbone import mixers_of
from trit.layers.capsules import CapsuleConfig, check_capsules
from trit.layers.experts import ExpertConfig, check_experts
from trit.layers.feedback import FeedbackConfig, check_feedback
from trit.layers.koopman import KoopmanConfig, check_koopman
from trit.layers.skc import SkcConfig, check_skc


def check_layer_map(config):
    """ValueError where the layer map is none, a mixer's settings cannot be, or layers that are none should recur."""
    layer_map, layers = config.arch.layer_map, config.model.num_layers
    mixers = {"a": ("attention", AttentionConfig), "k": ("Koopman", KoopmanConfig), "s": ("SKC", SkcConfig)}
    letters = [letter for letter, (_, settings) in mixers.items() if isinstance(config.arch, settings)]
    known = " or ".join(f"{letter} ({mixers[letter][0]})" for letter in letters)
    if not layer_map or set(layer_map) - set(letters) or len(layer_map) != 2 and layers % len(layer_map):
        reason = f"must be one letter for each of model.num_layers={layers} layers, or a pattern that repeats: one for even and one for odd"
        raise ValueError(f"arch.layer_map={layer_map!r} {reason} layers, or one that divides them; letters: {known}")
    for letter in set(letters) - set(layer_map):
        mixer, settings = mixers[letter]
        for field in fields(settings):
            if getattr(config.arch, field.name) != field.default:
                reason = f"sets the {mixer} mixer, but arch.layer_map={layer_map!r} has no {letter}"
                raise ValueError(f"arch.{field.name}={getattr(config.arch, field.name)} {reason}")
    blocks, letters = config.arch.shared_blocks, mixers_of(config)
    fewest = min(letters.count(letter) for letter in set(letters))
    possible = [len(set(letters)) * each for each in range(1, fewest + 1)]
    if blocks and blocks not in possible:
        near = " or ".join(map(str, possible))
        reason = f"must be 0 (none shared) or, as many for each mixer and none idle in {''.join(letters)}, {near}"
        raise ValueError(f"arch.shared_blocks={blocks} {reason}")
    recurrent, visits = config.arch.recurrent_layers, config.arch.recurrence
    if len(set(recurrent)) < len(recurrent) or not set(recurrent) <= set(range(layers)):
        raise ValueError(f"arch.recurrent_layers={recurrent} must be different layers, 0 to {layers - 1}")
    if visits < 1:
        raise ValueError(f"arch.recurrence={visits} must be 1 (every layer once) or more")
    check_parts(config)
    if "k" in layer_map:
        check_koopman(config)
    if "s" in layer_map:
        check_skc(config)


def check_parts(config):
    """ValueError where a part that any architecture may have has settings that cannot be, or that nothing reads."""
    rank, reads = config.arch.capsule_rank, config.arch.capsules or "s" in config.arch.layer_map
    if rank < 0:
        raise ValueError(f"arch.capsule_rank={rank} must be 0 (no coupling) or more")
    for switch, settings, check in (
        ("capsules", CapsuleConfig, check_capsules),
        ("feedback_passes", FeedbackConfig, check_feedback),
        ("experts", ExpertConfig, check_experts),
    ):
        if getattr(config.arch, switch):
            check(config)
            continue
        for field in fields(settings):
            value = getattr(config.arch, field.name)
            if value != field.default and not (field.name == "capsule_rank" and reads):
                raise ValueError(f"arch.{field.name}={value} does nothing while arch.{switch}=0")
