//! Families of decoders with experts, and those that share DeepSeek's attention with them.

use super::dense::{ERNIE, GRANITE, LAYER_NORM, LLAMA, LLAMA_NAMES, MISTRAL, QWEN2, QWEN3, RMS};
use super::schema::{
    Bias, Experts, Family, HeadNorm, Inner, KvHeads, MixtureLayers, MixtureRow, Names, NormRow, Qkv, Score,
    Shared, Window,
};
use crate::backend::Activation;
use crate::error::Result;
use crate::weights::json::Json;

const GATE_UP_DOWN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

const MIXTRAL_EXPERTS: MixtureRow = MixtureRow {
    experts: &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"],
    per_token: &["num_experts_per_tok", "moe_k", "experts_per_token"],
    inner: &["moe_intermediate_size", "intermediate_size"],
    scoring: Score::Softmax,
    normalized: Bias::Always,
    scaled: None,
    groups: None,
    layers: MixtureLayers::All,
    router: "block_sparse_moe.gate",
    router_bias: false,
    correction: "",
    correction_in_row: false,
    weights: Experts::Apart { prefix: "block_sparse_moe.experts.", names: ["w1", "w3", "w2"], biased: false },
    shared: Shared::Never,
    shared_gate: "",
};

const QWEN_EXPERTS: MixtureRow = MixtureRow {
    normalized: Bias::If("norm_topk_prob", false),
    layers: MixtureLayers::Steps,
    router: "mlp.gate",
    weights: Experts::Apart { prefix: "mlp.experts.", names: GATE_UP_DOWN, biased: false },
    ..MIXTRAL_EXPERTS
};

const SHARED_NAMES: (Inner, &str) = (
    Inner::Gated(["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"]),
    "mlp.shared_experts.down_proj",
);

const DEEPSEEK3_EXPERTS: MixtureRow = MixtureRow {
    scoring: Score::Sigmoid,
    normalized: Bias::If("norm_topk_prob", true),
    scaled: Some("routed_scaling_factor"),
    groups: Some(2),
    layers: MixtureLayers::From("first_k_dense_replace"),
    correction: "mlp.gate.e_score_correction_bias",
    shared: Shared::Times { field: "n_shared_experts", names: SHARED_NAMES },
    ..QWEN_EXPERTS
};

const DEEPSEEK3: Family = Family {
    model_type: "deepseek_v3",
    names: Names {
        qkv: Qkv::Latent {
            q: "self_attn.q_proj",
            q_latent: ["self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"],
            kv_latent: ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj"],
        },
        ..LLAMA_NAMES
    },
    kv_heads: KvHeads::One,
    mlp_bias: Bias::Never,
    interleaved: true,
    mixture: Some(DEEPSEEK3_EXPERTS),
    variant: Some(interleave),
    ..LLAMA
};

const GRANITE_EXPERTS: MixtureRow = MixtureRow {
    scoring: Score::Chosen,
    normalized: Bias::Never,
    router: "block_sparse_moe.router.layer",
    weights: Experts::Joined {
        both: "block_sparse_moe.input_linear",
        down: "block_sparse_moe.output_linear",
    },
    ..MIXTRAL_EXPERTS
};

/// The rows.
pub(super) const TABLE: &[Family] = &[
    Family {
        model_type: "mixtral",
        mixture: Some(MIXTRAL_EXPERTS),
        norm: NormRow { eps: 1e-5, ..RMS },
        ..MISTRAL
    },
    Family {
        model_type: "qwen2_moe",
        qkv_bias: Bias::If("qkv_bias", true),
        mixture: Some(MixtureRow {
            shared: Shared::Field {
                field: "shared_expert_intermediate_size",
                names: (
                    Inner::Gated(["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"]),
                    "mlp.shared_expert.down_proj",
                ),
            },
            shared_gate: "mlp.shared_expert_gate",
            ..QWEN_EXPERTS
        }),
        ..QWEN2
    },
    Family { model_type: "qwen3_moe", mixture: Some(QWEN_EXPERTS), ..QWEN3 },
    Family {
        model_type: "phimoe",
        norm: NormRow { eps_field: "rms_norm_eps", ..LAYER_NORM },
        head_bias: Bias::If("lm_head_bias", false),
        mlp_bias: Bias::Never,
        window: Window::Always,
        mixture: Some(MixtureRow {
            scoring: Score::Mixer("router_jitter_noise"),
            normalized: Bias::Never,
            ..MIXTRAL_EXPERTS
        }),
        ..LLAMA
    },
    Family {
        model_type: "olmoe",
        norm: NormRow { eps: 1e-5, ..RMS },
        head_norm: HeadNorm::Whole,
        mlp_bias: Bias::Never,
        qkv_limit: Some("clip_qkv"),
        mixture: Some(MixtureRow { layers: MixtureLayers::All, ..QWEN_EXPERTS }),
        ..LLAMA
    },
    Family { model_type: "granitemoe", mlp_bias: Bias::Never, mixture: Some(GRANITE_EXPERTS), ..GRANITE },
    Family {
        model_type: "granitemoeshared",
        mlp_bias: Bias::Never,
        mixture: Some(MixtureRow {
            shared: Shared::Field {
                field: "shared_intermediate_size",
                names: (Inner::Joined("shared_mlp.input_linear"), "shared_mlp.output_linear"),
            },
            ..GRANITE_EXPERTS
        }),
        ..GRANITE
    },
    Family {
        model_type: "ernie4_5_moe",
        head_bias: Bias::If("use_bias", false),
        mixture: Some(MixtureRow {
            normalized: Bias::Always,
            layers: MixtureLayers::Between,
            correction: "mlp.moe_statics.e_score_correction_bias",
            correction_in_row: true,
            shared: Shared::Times { field: "moe_num_shared_experts", names: SHARED_NAMES },
            ..QWEN_EXPERTS
        }),
        ..ERNIE
    },
    Family {
        model_type: "glm4_moe",
        norm: NormRow { eps: 1e-5, ..RMS },
        head_norm: HeadNorm::HeadIf("use_qk_norm"),
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        partial: 0.5,
        mixture: Some(DEEPSEEK3_EXPERTS),
        ..LLAMA
    },
    Family {
        model_type: "deepseek_v2",
        mlp_bias: Bias::If("mlp_bias", false),
        mixture: Some(MixtureRow {
            scoring: Score::Softmax,
            normalized: Bias::Never,
            correction: "",
            ..DEEPSEEK3_EXPERTS
        }),
        variant: Some(deepseek2),
        ..DEEPSEEK3
    },
    DEEPSEEK3,
    Family { model_type: "kimi_k2", ..DEEPSEEK3 },
    Family { model_type: "glm4_moe_lite", norm: NormRow { eps: 1e-5, ..RMS }, ..DEEPSEEK3 },
    Family { model_type: "youtu", mixture: None, tied: true, ..DEEPSEEK3 },
    Family {
        model_type: "dots1",
        head_norm: HeadNorm::Head,
        mlp_bias: Bias::Never,
        window: Window::Upper,
        mixture: Some(MixtureRow { normalized: Bias::If("norm_topk_prob", false), ..DEEPSEEK3_EXPERTS }),
        ..LLAMA
    },
    Family {
        model_type: "gpt_oss",
        names: Names { sinks: "self_attn.sinks", ..LLAMA_NAMES },
        norm: NormRow { eps: 1e-5, ..RMS },
        qkv_bias: Bias::If("attention_bias", true),
        o_bias: Bias::If("attention_bias", true),
        activation: (&[], Activation::Clamped { alpha: 1.702, limit: 7.0 }),
        window: Window::Pattern("", 2),
        mixture: Some(MixtureRow {
            scoring: Score::Chosen,
            normalized: Bias::Never,
            router: "mlp.router",
            router_bias: true,
            weights: Experts::InTurn { both: "mlp.experts.gate_up_proj", down: "mlp.experts.down_proj" },
            ..MIXTRAL_EXPERTS
        }),
        ..LLAMA
    },
];

/// Whether neighbours turn together.
fn interleave(json: &Json, row: &mut Family) -> Result<()> {
    row.interleaved = json.flag("rope_interleave", true)?;
    Ok(())
}

/// How experts are chosen: from all, or from the groups with the best ones.
fn deepseek2(json: &Json, row: &mut Family) -> Result<()> {
    let groups = match json.text("topk_method")? {
        None | Some("greedy") => None,
        Some("group_limited_greedy") => Some(1),
        Some(_) => return Err(json.wrong("topk_method", "greedy or group_limited_greedy")),
    };
    row.mixture = row.mixture.map(|mixture| MixtureRow { groups, ..mixture });
    Ok(())
}
