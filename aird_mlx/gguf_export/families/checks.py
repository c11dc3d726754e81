"""What is refused because llama.cpp computes something else, and what is said because it does so only in part."""

from __future__ import annotations

import math
from collections.abc import Callable

from aird_mlx.gguf_export.families.rope import is_longrope
from aird_mlx.gguf_export.hyperparameters import Hyperparameters, require

Requirement = Callable[[Hyperparameters], None]


def layer_notes(h: Hyperparameters) -> list[str]:
    """llama.cpp has no sliding window for this architecture: attention is full at any length."""
    notes = []
    if h.scaling == "dynamic":
        notes.append(f"MLX stretches the rope beyond {h.context_length} tokens, llama.cpp does not: equal up to there")
    window = h.get("sliding_window") if h.get("use_sliding_window", default=True) else None
    if window is not None and "sliding_attention" in (h.given.get("layer_types") or []):
        # Without layer_types MLX attends to everything too.
        notes.append(
            f"attention is full in llama.cpp; the config has a sliding window of {window} tokens: equal up to there"
        )
    return notes


def always_long(h: Hyperparameters) -> list[str]:
    """MLX rotates by the long factors at any length."""
    if not is_longrope(h):
        return []
    original = h.global_rope.get("original_max_position_embeddings")
    return [f"MLX always takes the long rope factors, llama.cpp only when opened for more than {original} tokens"]


def full_in_mlx(h: Hyperparameters) -> list[str]:
    """MLX attends to everything where llama.cpp looks back over a window."""
    window = h.get("sliding_window")
    return [] if window is None else [
        f"llama.cpp keeps to the sliding window of {window} tokens in some blocks, MLX does not: equal up to there"
    ]  # fmt: skip


def limited_steps(h: Hyperparameters) -> list[str]:
    """MLX clips the time step."""
    low, high = h.get("time_step_limit", default=(0.0, float("inf")))
    if low == 0 and high == float("inf"):
        return []
    return [f"MLX keeps time steps between {low:g} and {high:g}, llama.cpp does not: equal within"]


def scale_is_head_dim(h: Hyperparameters) -> None:
    """Gemma's query scale, which llama.cpp takes from the head."""
    largest = h.blocks == {"gemma2": 46, "gemma3": 62}.get(h.architecture)
    usual = h.hidden / h.heads if largest else h.head_dim
    given = h.get("query_pre_attn_scalar", default=usual)
    require(given == usual, f"query_pre_attn_scalar {given}", f"llama.cpp computes {h.model_type} with {usual:g}")


def plain_rope(h: Hyperparameters) -> None:
    """MLX's model ignores what llama.cpp would compute."""
    require(not h.get("rope_traditional", "rope_interleaved"), "rope_traditional is true",
            "llama.cpp's converter order assumes the split-half form")  # fmt: skip


def whole_rotation(h: Hyperparameters) -> None:
    """llama.cpp rotates whole heads here."""
    share = float(h.global_rope.get("partial_rotary_factor") or 1.0)
    require(share == 1.0, f"partial_rotary_factor {share}", f"only 1.0 can be exported for {h.model_type}")


def usual_yarn(h: Hyperparameters) -> None:
    """MLX reads only some of yarn's settings; with the others changed, the runtimes would differ."""
    if h.scaling != "yarn":
        return
    rope = h.global_rope
    attention = 0.1 * math.log(max(float(rope.get("factor") or 1), 1)) + 1  # some configs say what is computed anyway
    usual = {"attention_factor": attention, "mscale": 1, "mscale_all_dim": 0}
    changed = [name for name, value in usual.items() if not math.isclose(rope.get(name) or value, value, rel_tol=1e-6)]
    require(
        not changed,
        f"yarn scaling sets {', '.join(changed)}",
        "only factor, original_max_position_embeddings, beta_fast and beta_slow can be exported",
    )


def scaling_is_complete(h: Hyperparameters) -> None:
    """Required numbers of a scaling."""
    needed = {"linear": ("factor",), "llama3": ("factor",), "yarn": ("factor", "original_max_position_embeddings")}
    for name in needed.get(h.scaling, ()):
        require(h.global_rope.get(name) is not None, f"rope scaling {h.scaling!r} has no {name}", "the export needs it")


def pattern_is(period: int, name: str = "sliding_window_pattern") -> Requirement:
    """Refuses another period than the one that llama.cpp is made for."""

    def check(h: Hyperparameters) -> None:
        found = h.get(name, default=period)
        require(found == period, f"{name} {found}", f"llama.cpp computes {h.model_type} with {period}")

    return check


def smollm_layers(h: Hyperparameters) -> None:
    """llama.cpp leaves out the rotation of every fourth block."""
    layers = h.get("no_rope_layers", default=[])
    usual = [int((block + 1) % 4 != 0) for block in range(h.blocks)]
    require(list(layers) in ([], usual), f"no_rope_layers {layers}", "llama.cpp leaves out each fourth block")


def norms_of_large_cohere(h: Hyperparameters) -> None:
    """llama.cpp knows the norms of Command R+ by its 64 blocks alone."""
    found = bool(h.get("use_qk_norm"))
    require(
        found == (h.blocks >= 64),
        f"{h.blocks} blocks with use_qk_norm {str(found).lower()}",
        "llama.cpp computes cohere with it exactly from 64 blocks on",
    )


def full_exaone(h: Hyperparameters) -> None:
    """llama.cpp knows the hybrid window of EXAONE 4 by its 64 blocks alone."""
    hybrid = bool(h.given.get("sliding_window_pattern"))
    require(
        hybrid == (h.blocks == 64),
        f"{h.blocks} blocks {'with' if hybrid else 'without'} a sliding_window_pattern",
        "llama.cpp looks back over a window exactly in models of 64 blocks",
    )


def mistral_yarn(h: Hyperparameters) -> None:
    """MLX multiplies the queries as llama.cpp does, if the config has the number."""
    require(h.scaling == "yarn", f"rope scaling {h.scaling!r}", "llama.cpp computes ministral3 with yarn")
    for name in ("llama_4_scaling_beta", "mscale_all_dim", "original_max_position_embeddings", "factor"):
        require(h.global_rope.get(name) is not None, f"rope_parameters have no {name}", "the export needs it")


def no_shared_keys(h: Hyperparameters) -> None:
    """llama.cpp expects as many key-value heads as query heads."""
    require(h.kv_heads == h.heads, f"{h.kv_heads} key-value heads", f"llama.cpp computes {h.model_type} with {h.heads}")


def top_weights_sum_to_one(expected: bool) -> Requirement:
    """Refuses the other way of turning scores into weights than the one llama.cpp computes for this architecture."""

    def check(h: Hyperparameters) -> None:
        found = bool(h.get("norm_topk_prob", default=expected))
        require(
            found == expected,
            f"norm_topk_prob {str(found).lower()}",
            f"llama.cpp computes {h.model_type} with {str(expected).lower()}",
        )

    return check


def all_blocks_have_experts(h: Hyperparameters) -> None:
    """llama.cpp expects experts in every block."""
    require(
        h.get("decoder_sparse_step", default=1) == 1 and not h.get("mlp_only_layers", default=[]),
        f"decoder_sparse_step {h.get('decoder_sparse_step')} and mlp_only_layers {h.get('mlp_only_layers')}",
        f"llama.cpp computes {h.model_type} with experts in every block",
    )


def groups_by_best_two(h: Hyperparameters) -> None:
    """llama.cpp scores a group of experts by its two best; DeepSeek-V2 by its best."""
    grouped = (h.get("n_group", default=1) or 1) > 1 and h.get("topk_method") == "group_limited_greedy"
    require(
        not grouped, f"topk_method 'group_limited_greedy' with {h.get('n_group')} groups",
        "llama.cpp scores groups by their two best experts, DeepSeek-V2 by its best",
    )  # fmt: skip


def latent_attention(h: Hyperparameters) -> None:
    """What llama.cpp tells from the number of blocks, and yarn's two factors."""
    lite = h.blocks in (26, 27) or (h.blocks == 48 and h.get("vocab_size") == 128256)
    require(
        (h.get("q_lora_rank") is None) == lite,
        f"{h.blocks} blocks {'without' if h.get('q_lora_rank') is None else 'with'} q_lora_rank",
        "llama.cpp takes models of 26 or 27 blocks for those without it, and all others for those with it",
    )
    rope = h.global_rope
    if h.scaling != "default":
        require(
            rope.get("mscale", 1) == rope.get("mscale_all_dim", 0),
            f"rope scaling with mscale {rope.get('mscale', 1)} and mscale_all_dim {rope.get('mscale_all_dim', 0)}",
            "llama.cpp computes them as one",
        )


def ernie_blocks(h: Hyperparameters) -> None:
    """llama.cpp knows where the experts begin, not where they stop."""
    step, end = h.get("moe_layer_interval", default=1), h.get("moe_layer_end_index", default=h.blocks - 1)
    require(
        step == 1 and end in (h.blocks - 1, -1), f"moe_layer_interval {step} and moe_layer_end_index {end}",
        "llama.cpp computes experts in every block from moe_layer_start_index on",
    )  # fmt: skip
    require(h.get("moe_gate_act", default="softmax") == "softmax", f"moe_gate_act {h.get('moe_gate_act')!r}",
            "llama.cpp computes ernie4_5_moe with softmax")  # fmt: skip


def window_alternates(h: Hyperparameters) -> None:
    """gpt-oss: every second block attends to everything."""
    kinds = h.get("layer_types", default=[])
    usual = ["sliding_attention", "full_attention"] * ((h.blocks + 1) // 2)
    require(
        list(kinds) in ([], usual[: h.blocks]), f"layer_types {kinds}", "llama.cpp computes every second block whole"
    )


def router_bias_is_dropped(h: Hyperparameters) -> list[str]:
    """ERNIE's correction of the router, which mlx-lm leaves out."""
    if not h.get("moe_use_aux_free"):
        return []
    return ["llama.cpp corrects the router's scores where the folder has e_score_correction_bias, MLX does not"]


def one_group(name: str) -> Requirement:
    """Refuses what llama.cpp normalizes group by group and MLX as a whole."""

    def check(h: Hyperparameters) -> None:
        groups = int(h.get(name, default=1))
        require(groups == 1, f"{name} {groups}", "llama.cpp normalizes each group by itself, MLX all together")

    return check


def twice_as_wide(h: Hyperparameters) -> None:
    """llama.cpp's mamba."""
    inner = int(h.need("intermediate_size", "d_inner"))
    require(inner == 2 * h.hidden, f"intermediate_size {inner}", f"llama.cpp computes mamba with {2 * h.hidden}")


def usual_epsilon(h: Hyperparameters) -> None:
    """MLX's mamba has a fixed one."""
    epsilon = float(h.get("layer_norm_epsilon", "rms_norm_eps", default=1e-5))
    require(epsilon == 1e-5, f"layer_norm_epsilon {epsilon:g}", "MLX computes it with 1e-05 whatever the config says")


def norm_after_gate(h: Hyperparameters) -> None:
    """llama.cpp normalizes what the gate leaves."""
    if h.get("mamba_rms_norm"):
        require(
            not h.get("mamba_norm_before_gate"), "mamba_norm_before_gate true", "llama.cpp normalizes after the gate"
        )
        one_group("mamba_n_groups")(h)


def no_experts(h: Hyperparameters) -> None:
    """Jamba's router."""
    count = int(h.get("num_experts", default=1))
    require(count == 1, f"num_experts {count}", "MLX makes the weights of the chosen experts sum to 1, llama.cpp not")


def no_conv_bias(h: Hyperparameters) -> None:
    """llama.cpp's short convolution has none."""
    require(not h.get("conv_bias"), "conv_bias true", f"llama.cpp computes {h.model_type} without")


def lfm_router(h: Hyperparameters) -> None:
    """llama.cpp's router."""
    scale, norm = h.get("routed_scaling_factor", default=1.0), h.get("norm_topk_prob", default=True)
    require(scale == 1 and norm, f"routed_scaling_factor {scale} and norm_topk_prob {norm}",
            "llama.cpp computes lfm2_moe with 1 and true")  # fmt: skip


def delta_router(h: Hyperparameters) -> None:
    """llama.cpp's router, and experts in every block."""
    require(h.get("norm_topk_prob"), "norm_topk_prob false", f"llama.cpp computes {h.model_type} with true")
    all_blocks_have_experts(h)


def wide_heads(h: Hyperparameters) -> None:
    """llama.cpp's kernel."""
    width = int(h.need("head_size", "head_dim"))
    require(width % 64 == 0, f"head_dim {width}", "llama.cpp computes rwkv7 with heads of a multiple of 64")


def granite_positions(h: Hyperparameters) -> None:
    """llama.cpp's hybrid has none, its plain Granite has."""
    wanted = "nope" if h.architecture == "granitehybrid" else "rope"
    found = h.get("position_embedding_type", default="rope")
    require(
        found == wanted, f"position_embedding_type {found!r}", f"llama.cpp computes {h.architecture} with {wanted!r}"
    )
    if h.architecture == "granitehybrid":
        one_group("mamba_n_groups")(h)


ROPED: tuple[Requirement, ...] = (plain_rope, whole_rotation, usual_yarn, scaling_is_complete)
