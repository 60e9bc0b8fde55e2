#!/usr/bin/env python3
"""Write a tiny checkpoint of each family of decoders below tests/fixtures/families/, with transformers as the reference.

usage: python tools/fixture_families.py [NAME ...]

What a folder holds, and by which rule prompts are chosen: see tools/make_fixtures.py, whose functions these are. Each
family has one checkpoint with what it adds switched on; some have a second one, with other sizes of heads and another
rope. Switches have values that change the logits, which is checked.

needs: torch, transformers, safetensors
"""

import math
import os
import sys

import torch
import transformers as hf

import make_fixtures as base

COMMON = {
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "vocab_size": 112,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


def ramp(first, count):
    return [first + index / 8 for index in range(count)]


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)
LINEAR = rope("linear", factor=4.0)
DYNAMIC = rope("dynamic", factor=4.0)
MIXED = {"num_hidden_layers": 4, "sliding_window": 8, "intermediate_size": 56}
PATTERN = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

# name: (class of the config, what it has beyond COMMON, what is taken away to see whether it matters)
TABLE = {
    "llama_yarn": (hf.LlamaConfig, YARN | {"head_dim": 24}, rope("default")),
    "llama_linear": (hf.LlamaConfig, LINEAR | {"hidden_size": 60, "head_dim": 18}, rope("default")),
    "llama_dynamic": (hf.LlamaConfig, DYNAMIC, rope("default", rope_theta=100.0)),
    "ministral": (hf.MinistralConfig, {**MIXED, "head_dim": 24, "layer_types": PATTERN}, {"sliding_window": 999}),
    "qwen3": (hf.Qwen3Config, {"head_dim": 24} | YARN, rope("default")),
    "gemma": (hf.GemmaConfig, {"head_dim": 20}, {"hidden_act": "silu"}),
    "gemma2": (
        hf.Gemma2Config,
        {
            **MIXED,
            "head_dim": 24,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        {"attn_logit_softcapping": None},
    ),
    "gemma3_text": (
        hf.Gemma3TextConfig,
        {**MIXED, "head_dim": 24, "query_pre_attn_scalar": 20, "layer_types": PATTERN},
        {"sliding_window": 999},
    ),
    "phi3": (hf.Phi3Config, {"sliding_window": 8}, {"sliding_window": None}),
    "phi3_longrope": (
        hf.Phi3Config,
        {
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,
            **rope("longrope", short_factor=ramp(1.0, 8), long_factor=ramp(2.0, 8)),
        },
        {"original_max_position_embeddings": 2},
    ),
    "phi": (hf.PhiConfig, {}, {"hidden_act": "silu"}),
    "olmo2": (hf.Olmo2Config, YARN, rope("default")),
    "olmo3": (hf.Olmo3Config, MIXED, {"sliding_window": 999}),
    "smollm3": (hf.SmolLM3Config, {"num_hidden_layers": 4, "intermediate_size": 56}, {"no_rope_layers": [1] * 4}),
    "granite": (
        hf.GraniteConfig,
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.6,
            "attention_bias": True,
        },
        {"residual_multiplier": 1.0},
    ),
    "olmo": (hf.OlmoConfig, {"clip_qkv": 0.7}, {"clip_qkv": None}),
    "stablelm": (hf.StableLmConfig, {"use_qkv_bias": True}, rope("default", partial_rotary_factor=1.0)),
    "stablelm_parallel": (
        hf.StableLmConfig,
        {"use_parallel_residual": True, "qk_layernorm": True, **rope("default", partial_rotary_factor=0.5)},
        rope("default", partial_rotary_factor=1.0),
    ),
    "starcoder2": (hf.Starcoder2Config, {"sliding_window": 8}, {"sliding_window": None}),
    "gpt_neox": (hf.GPTNeoXConfig, {"num_key_value_heads": 4}, {"use_parallel_residual": False}),
    "gpt_neox_in_turn": (
        hf.GPTNeoXConfig,
        {"num_key_value_heads": 4, "use_parallel_residual": False, "hidden_act": "gelu_new"},
        {"use_parallel_residual": True},
    ),
    "cohere": (hf.CohereConfig, {"logit_scale": 0.7}, {"logit_scale": 1.0}),
    "cohere_norms": (hf.CohereConfig, {"use_qk_norm": True, "logit_scale": 1.3}, {"logit_scale": 1.0}),
    "cohere2": (hf.Cohere2Config, {**MIXED, "logit_scale": 1.0}, {"sliding_window": 999}),
    "glm": (hf.GlmConfig, {"head_dim": 24, "attention_bias": True}, rope("default", partial_rotary_factor=1.0)),
    "glm4": (hf.Glm4Config, {"head_dim": 16}, rope("default", partial_rotary_factor=1.0)),
    "exaone4": (hf.Exaone4Config, {**MIXED, "sliding_window_pattern": 4}, {"sliding_window": 999}),
    "nemotron": (hf.NemotronConfig, {}, {"hidden_act": "silu"}),
    "arcee": (hf.ArceeConfig, YARN, rope("default")),
    "ernie4_5": (hf.Ernie4_5Config, {"head_dim": 16, "use_bias": True}, rope("default", rope_theta=100.0)),
    "seed_oss": (hf.SeedOssConfig, {"head_dim": 24, "attention_out_bias": True}, rope("default", rope_theta=100.0)),
    "helium": (hf.HeliumConfig, {"head_dim": 16}, rope("default", rope_theta=100.0)),
}

# Second ones: three heads to a key, heads whose size is not hidden / heads, another rope.
OTHER = {"hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20}
LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
NO_ROPE_SCALING = rope("default", rope_theta=100.0)
TABLE |= {
    "mistral_other": (hf.MistralConfig, OTHER | {"sliding_window": 8}, {"sliding_window": None}),
    "ministral_other": (hf.MinistralConfig, OTHER | YARN, rope("default")),
    "qwen3_other": (hf.Qwen3Config, OTHER | LLAMA3 | {"attention_bias": True}, rope("default")),
    "gemma_other": (hf.GemmaConfig, OTHER | LINEAR, rope("default")),
    "gemma2_other": (hf.Gemma2Config, OTHER | {"final_logit_softcapping": None} | YARN, rope("default")),
    "gemma3_text_other": (
        hf.Gemma3TextConfig,
        {
            **OTHER,
            **MIXED,
            "layer_types": PATTERN,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 8.0},
            },
        },
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
            }
        },
    ),
    "phi_other": (
        hf.PhiConfig,
        {"qk_layernorm": True, "hidden_act": "gelu", **rope("default", partial_rotary_factor=0.75)},
        rope("default", partial_rotary_factor=1.0),
    ),
    "olmo_other": (hf.OlmoConfig, OTHER | LINEAR, rope("default")),
    "olmo2_other": (hf.Olmo2Config, OTHER | {"attention_bias": True}, NO_ROPE_SCALING),
    "olmo3_other": (hf.Olmo3Config, OTHER | MIXED | {"layer_types": PATTERN}, {"sliding_window": 999}),
    "smollm3_other": (
        hf.SmolLM3Config,
        OTHER | YARN | {"no_rope_layers": [0, 1], "attention_bias": True, "mlp_bias": True},
        {"no_rope_layers": [1, 1]},
    ),
    "granite_other": (
        hf.GraniteConfig,
        OTHER | LLAMA3 | {"mlp_bias": True, "embedding_multiplier": 0.5, "tie_word_embeddings": True},
        rope("default"),
    ),
    "starcoder2_other": (hf.Starcoder2Config, {"use_bias": False} | LINEAR, rope("default")),
    "cohere2_other": (hf.Cohere2Config, OTHER | MIXED | {"layer_types": PATTERN}, {"sliding_window": 999}),
    "glm_other": (hf.GlmConfig, OTHER | LINEAR, rope("default")),
    "glm4_other": (hf.Glm4Config, OTHER | LINEAR | {"attention_bias": True}, rope("default")),
    "exaone4_other": (hf.Exaone4Config, OTHER | {"sliding_window": None, "layer_types": ["full_attention"] * 2} | LLAMA3, rope("default")),
    "nemotron_other": (
        hf.NemotronConfig,
        OTHER | {"attention_bias": True, "mlp_bias": True},
        rope("default", partial_rotary_factor=1.0),
    ),
    "arcee_other": (hf.ArceeConfig, OTHER | {"attention_bias": True, "mlp_bias": True}, NO_ROPE_SCALING),
    "ernie4_5_other": (hf.Ernie4_5Config, OTHER | LINEAR, rope("default")),
    "seed_oss_other": (hf.SeedOssConfig, OTHER | YARN | {"attention_bias": False}, rope("default")),
    "helium_other": (
        hf.HeliumConfig,
        {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 12, "attention_bias": True},
        NO_ROPE_SCALING,
    ),
}

ROPE_100 = rope("default", rope_theta=100.0)
TABLE |= {
    "hunyuan_v1_dense": (hf.HunYuanDenseV1Config, {"head_dim": 24, **rope("dynamic", alpha=50.0, factor=1.0)}, ROPE_100),
    "hunyuan_v1_dense_other": (hf.HunYuanDenseV1Config, OTHER | {"attention_bias": True}, ROPE_100),
    "falcon": (hf.FalconConfig, {"multi_query": True, "bias": True}, ROPE_100),
    "falcon_groups": (hf.FalconConfig, {"new_decoder_architecture": True, "num_kv_heads": 2}, ROPE_100),
    "falcon_heads": (
        hf.FalconConfig,
        {"multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 80, "activation": "relu"},
        ROPE_100,
    ),
}

# Mixtures of experts.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ONE = {"num_experts_per_tok": 1}
TABLE |= {
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 6, "intermediate_size": 24}, ONE),
    "mixtral_other": (
        hf.MixtralConfig,
        OTHER | {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 24, "sliding_window": 8},
        {"sliding_window": None},
    ),
    "qwen2_moe": (
        hf.Qwen2MoeConfig,
        EXPERTS | {"num_experts": 6, "shared_expert_intermediate_size": 56, "decoder_sparse_step": 2},
        ONE,
    ),
    "qwen2_moe_other": (
        hf.Qwen2MoeConfig,
        EXPERTS
        | YARN
        | {
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "shared_expert_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
        },
        rope("default"),
    ),
    "qwen3_moe": (hf.Qwen3MoeConfig, EXPERTS | {"num_experts": 8, "head_dim": 24, "norm_topk_prob": True}, ONE),
    "qwen3_moe_other": (
        hf.Qwen3MoeConfig,
        OTHER | EXPERTS | YARN | {"num_experts": 6, "num_experts_per_tok": 3, "mlp_only_layers": [0]},
        rope("default"),
    ),
    "phimoe": (hf.PhimoeConfig, {"num_local_experts": 4, "intermediate_size": 24, "lm_head_bias": True}, {"router_jitter_noise": 0.5}),
    "phimoe_other": (
        hf.PhimoeConfig,
        {
            "num_local_experts": 6,
            "intermediate_size": 40,
            "attention_bias": True,
            "router_jitter_noise": 0.3,
            "sliding_window": 8,
        },
        {"router_jitter_noise": 0.01},
    ),
    "olmoe": (hf.OlmoeConfig, {"num_experts": 8, "intermediate_size": 24, "clip_qkv": 1.0}, {"clip_qkv": None}),
    "olmoe_other": (
        hf.OlmoeConfig,
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 40,
            "norm_topk_prob": True,
            "attention_bias": True,
            **LINEAR,
        },
        rope("default"),
    ),
    "granitemoe": (
        hf.GraniteMoeConfig,
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.6,
        },
        ONE,
    ),
    "granitemoe_other": (
        hf.GraniteMoeConfig,
        {"num_local_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 40, "attention_bias": True} | LINEAR,
        rope("default"),
    ),
    "granitemoeshared": (
        hf.GraniteMoeSharedConfig,
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "shared_intermediate_size": 40,
            "residual_multiplier": 0.6,
        },
        {"residual_multiplier": 1.0},
    ),
    "granitemoeshared_other": (
        hf.GraniteMoeSharedConfig,
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 3,
            "intermediate_size": 40,
            "shared_intermediate_size": 64,
            **LLAMA3,
        },
        rope("default"),
    ),
    "ernie4_5_moe": (
        hf.Ernie4_5_MoeConfig,
        {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 40, "moe_num_shared_experts": 2},
        rope("default", rope_theta=100.0),
    ),
    "ernie4_5_moe_other": (
        hf.Ernie4_5_MoeConfig,
        {
            "num_hidden_layers": 3,
            "moe_num_experts": 5,
            "moe_k": 3,
            "moe_intermediate_size": 32,
            "moe_num_shared_experts": 0,
            "moe_layer_start_index": 0,
            "moe_layer_interval": 2,
            "use_bias": True,
        },
        rope("default", rope_theta=100.0),
    ),
    "glm4_moe": (
        hf.Glm4MoeConfig,
        EXPERTS
        | {
            "n_routed_experts": 8,
            "head_dim": 24,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "routed_scaling_factor": 1.5,
        },
        {"routed_scaling_factor": 1.0},
    ),
    "glm4_moe_other": (
        hf.Glm4MoeConfig,
        EXPERTS
        | LINEAR
        | {
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "head_dim": 20,
            "first_k_dense_replace": 0,
            "attention_bias": True,
            "norm_topk_prob": False,
        },
        {"norm_topk_prob": True},
    ),
    "dots1": (
        hf.Dots1Config,
        EXPERTS | {"n_routed_experts": 6, "n_shared_experts": 1, "head_dim": 24, "norm_topk_prob": True},
        {"norm_topk_prob": False},
    ),
    "gpt_oss_other": (
        hf.GptOssConfig,
        {
            **MIXED,
            "head_dim": 24,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 40,
            "layer_types": PATTERN,
            "swiglu_limit": 1.5,
        },
        {"sliding_window": 999},
    ),
    "dots1_other": (
        hf.Dots1Config,
        EXPERTS
        | {
            **MIXED,
            "num_hidden_layers": 2,
            "n_routed_experts": 8,
            "n_group": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "layer_types": PATTERN[:2],
            "routed_scaling_factor": 2.5,
        },
        {"sliding_window": 999},
    ),
}

# Keys and values of a latent. Sizes are those of one: names of the table above say nothing here.
LATENT = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "intermediate_size": 72,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
MSCALES = rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=1.5)
TABLE |= {
    "deepseek_v2": (hf.DeepseekV2Config, LATENT | {"q_lora_rank": None, "routed_scaling_factor": 1.5} | MSCALES, ROPE_100),
    "deepseek_v2_other": (
        hf.DeepseekV2Config,
        LATENT
        | {
            "hidden_size": 72,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 14,
            "qk_rope_head_dim": 6,
            "v_head_dim": 32,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "attention_bias": True,
            "routed_scaling_factor": 2.0,
        },
        {"routed_scaling_factor": 1.0},
    ),
    "deepseek_v3": (
        hf.DeepseekV3Config,
        LATENT | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5} | MSCALES,
        ROPE_100,
    ),
    "deepseek_v3_other": (
        hf.DeepseekV3Config,
        LATENT
        | {
            "hidden_size": 72,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "kv_lora_rank": 48,
            "qk_nope_head_dim": 20,
            "qk_rope_head_dim": 10,
            "v_head_dim": 16,
            "q_lora_rank": None,
            "rope_interleave": False,
            "n_routed_experts": 6,
            "n_group": 1,
            "topk_group": 1,
            "attention_bias": True,
            "norm_topk_prob": False,
        },
        {"norm_topk_prob": True},
    ),
    "glm4_moe_lite": (
        hf.Glm4MoeLiteConfig,
        LATENT | {"n_routed_experts": 6, "v_head_dim": 32, "routed_scaling_factor": 1.5},
        {"routed_scaling_factor": 1.0},
    ),
    "glm4_moe_lite_other": (
        hf.Glm4MoeLiteConfig,
        LATENT | {"n_routed_experts": 6, "mlp_layer_types": ["sparse", "dense"], "attention_bias": True} | LINEAR,
        rope("default"),
    ),
    # without a token for padding: transformers makes its embedding zeros, whatever is stored
    "youtu": (hf.YoutuConfig, LATENT | {"kv_lora_rank": 16, "pad_token_id": None}, ROPE_100),
    "youtu_other": (
        hf.YoutuConfig,
        LATENT | {"pad_token_id": None, "q_lora_rank": None, "attention_bias": True, "rope_interleave": False} | YARN,
        rope("default"),
    ),
}

# In bf16 their logits are too far off for paths that are clear at each step.
HALF = {"gemma2", "gemma3_text", "glm4", "exaone4", "olmo3", "cohere2", "gemma", "smollm3"}
HALF |= {name + "_other" for name in HALF} | {"falcon_heads"}

# Outputs of branches: what they are added to must not drown them, nor they it.
OUTPUTS = ("o_proj", "down_proj", "dense_4h_to_h", "attention.dense", "self_attn.dense", "fc2", "c_proj")
TABLES = ("embed_tokens", "embed_in", "word_embeddings")
HEADS = ("lm_head", "embed_out")


@torch.no_grad()
def randomize(model, generator):
    """As `make_fixtures.randomize`, for all names. Norms that add one to their weights have weights near 0. Where
    embeddings are scaled, branches are larger too: by their last matrix, or by the norm behind it."""
    hidden, tied = model.config.hidden_size, model.config.tie_word_embeddings
    kind = model.config.model_type
    near = 0 if kind.startswith(("gemma", "nemotron")) else 1
    large = 6.0 if kind.startswith("gemma") else 1.0
    corrections = [(name, buffer) for name, buffer in model.named_buffers() if "correction" in name]
    for name, parameter in [*model.named_parameters(), *corrections]:
        noise = torch.randn(parameter.shape, generator=generator)
        if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
            post = kind in ("gemma2", "gemma3_text") and ("post_" in name)
            value = (large if post else near) + 0.2 * noise.clamp(-2, 2)
        elif "sinks" in name:
            value = noise
        elif kind == "gpt_oss" and ".experts." in name and not name.endswith("bias"):
            value = noise * 1.5 / math.sqrt(parameter.shape[1])
        elif "correction" in name:
            value = 0.1 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif any(part in name for part in TABLES):
            value = noise * (3 / math.sqrt(hidden) if tied else 1)
        elif any(part in name for part in HEADS):
            value = noise * 3 / math.sqrt(hidden)
        elif ".gate.weight" in name or ".router." in name:
            value = noise * 3 / math.sqrt(hidden)  # choices that rounding does not turn
        else:
            gain = 1.0
            if any(part in name for part in OUTPUTS):
                first, later = (5.0, 2.0) if tied else (1.0, 0.8)
                gain = large * (first if ".layers.0." in name else later)
            value = noise * gain / math.sqrt(parameter.shape[-1])
        parameter.copy_(value)


def find_prompt(reference, low, length, generator, ends):
    """As `make_fixtures.find_prompt`: the clearest of those paths that have at least six different ids."""
    vocab = reference.config.vocab_size
    for _ in range(8):
        prompts = torch.randint(3, vocab, (512, length), generator=generator)
        paths, least = base.greedy_paths(reference, prompts)
        kinds = torch.tensor([len(set(path)) if not ends & set(path) else 0 for path in paths.tolist()])
        least[kinds < 6] = 0
        for index in least.argsort(descending=True)[:6].tolist():
            prompt, path = prompts[index].tolist(), paths[index].tolist()
            if least[index] < 0.02:
                break
            exact, rounded = (base.teacher_forced(model, prompt, path) for model in (reference, low))
            best = exact.topk(2)
            margin = (best.values[:, 0] - best.values[:, 1]).min()
            low_max = (rounded - exact).abs().max()
            if margin > 2.05 * low_max and best.indices[:, 0].tolist() == path:
                if steady(reference, prompt, path, exact, 6 * low_max):
                    return prompt, path, exact, rounded
    return None


def steady(reference, prompt, path, exact, allowed):
    """Whether no other expert is chosen when every product is off by more than rounding to bf16 makes it."""
    routers = [module for module in reference.modules() if "Router" in type(module).__name__]
    if not routers:
        return True
    linears = [m for m in reference.modules() if type(m) is torch.nn.Linear or "Norm" in type(m).__name__]
    chosen = []
    hooks = [r.register_forward_hook(lambda _, __, out: chosen.append(out[2].sort().values)) for r in routers]

    def run(change):
        chosen.clear()
        changes = [module.register_forward_hook(change) for module in linears]
        logits = base.teacher_forced(reference, prompt, path)
        for hook in changes:
            hook.remove()
        return logits, torch.cat(chosen)

    _, choice = run(lambda _, __, out: out)
    same = True
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)

        def off(_, __, out):
            return out * (1 + torch.randn(out.shape, generator=generator).clamp(-2, 2) / 300)

        logits, other = run(off)
        same = same and bool((other == choice).all()) and (logits - exact).abs().max() <= allowed
    for hook in hooks:
        hook.remove()
    return same


def report(name, seed, folder, found, expected):
    """Prints the figures, and checks that what the fixture is about changes the logits."""
    prompt, path, exact, _ = found[-1]
    config = hf.AutoConfig.from_pretrained(folder)
    for key, value in TABLE[name][2].items():
        setattr(config, key, value)
    other = base.teacher_forced(base.load(folder, torch.float32, config=config), prompt, path)
    off, low = float((other - exact).abs().max()), max(expected["low_max_abs"])
    print(f"{name}: seed {seed}, low precision is off by {low:.3f}, without the switch {off:.3f}", flush=True)
    assert off > 5 * low, "the fixture does not test this"


def main():
    torch.set_num_threads(1)
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    base.FIXTURES = os.path.join(base.FIXTURES, "families")
    base.PROMPT_LENGTHS = [5, 37]
    base.randomize, base.find_prompt, base.report = randomize, find_prompt, report
    os.makedirs(base.FIXTURES, exist_ok=True)
    for name in sys.argv[1:] or TABLE:
        make, switches, _ = TABLE[name]
        dtype = torch.float16 if name in HALF else torch.bfloat16
        base.CHECKPOINTS[name] = (make(**(COMMON | switches)), dtype, 2, None)
        base.checkpoint(name)


if __name__ == "__main__":
    main()
