//! Families of decoders with one MLP in each layer, and [`LLAMA`], from which all rows begin.

use super::schema::{
    Bias, Causal, Classifier, EmbedScale, Family, HeadNorm, HeadStep, Inner, KvHeads, LogitsScale, Names,
    NormPlacement, NormRow, Places, PositionTypeNames, Qkv, RopeLayers, Scale, Window,
};
use crate::backend::{Activation, NormKind, Pooling};
use crate::error::Result;
use crate::weights::json::Json;

pub(super) const LLAMA_NAMES: Names = Names {
    layers: "model.layers.",
    embed: "model.embed_tokens",
    norm: "model.norm",
    head: "lm_head",
    attention_norm: "input_layernorm",
    attention_post: "",
    mlp_norm: "post_attention_layernorm",
    mlp_post: "",
    qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    o: "self_attn.o_proj",
    inner: Inner::Gated(["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    sinks: "",
    relative_bias: "",
    position_type: PositionTypeNames { positions: "", behind_pad: false, types: "", norm: "" },
};

/// The branches' norms behind them.
const POST_NAMES: Names = Names {
    attention_norm: "",
    attention_post: "post_attention_layernorm",
    mlp_norm: "",
    mlp_post: "post_feedforward_layernorm",
    ..LLAMA_NAMES
};

/// Before and behind.
const SANDWICH_NAMES: Names =
    Names { attention_norm: "input_layernorm", mlp_norm: "pre_feedforward_layernorm", ..POST_NAMES };

pub(super) const RMS: NormRow = NormRow {
    kind: NormKind::Rms,
    eps_field: "rms_norm_eps",
    eps: 1e-6,
    plus_one: false,
    weight: true,
    bias: false,
};

const GEMMA_RMS: NormRow = NormRow { plus_one: true, ..RMS };

pub(super) const LAYER_NORM: NormRow =
    NormRow { kind: NormKind::Layer, eps_field: "layer_norm_eps", eps: 1e-5, bias: true, ..RMS };

const CONFIGURED: Bias = Bias::If("attention_bias", false);

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    fields: &[],
    names: LLAMA_NAMES,
    causal: Causal::Always,
    encodes: false,
    classifier: Some(Classifier {
        pooling: ("", Pooling::Last),
        steps: &[HeadStep::Dense { name: "score", bias: Bias::Never, activation: None }],
    }),
    first_norm: true,
    norm: RMS,
    places: Places::Always(NormPlacement::Pre),
    head_norm: HeadNorm::Never,
    head_norm_last: false,
    kv_heads: KvHeads::Field("num_key_value_heads"),
    inner: ("intermediate_size", 0),
    qkv_bias: CONFIGURED,
    o_bias: CONFIGURED,
    mlp_bias: Bias::If("mlp_bias", false),
    up_bias: None,
    head_bias: Bias::Never,
    activation: (&["hidden_act"], Activation::Silu),
    window: Window::Never,
    rotates: RopeLayers::All,
    interleaved: false,
    partial: 1.0,
    theta: (10_000.0, None),
    context_is_scaled: false,
    scale: Scale::HeadDim,
    qkv_limit: None,
    caps: [None, None],
    embed_scale: EmbedScale::One,
    residual_scale: None,
    logits_scale: LogitsScale::One,
    tied: false,
    mixture: None,
    variant: None,
};

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    qkv_bias: Bias::Never,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    window: Window::Always,
    ..LLAMA
};

pub(super) const QWEN2: Family =
    Family { model_type: "qwen2", qkv_bias: Bias::Always, window: Window::Upper, ..MISTRAL };

const GEMMA: Family = Family {
    model_type: "gemma",
    norm: GEMMA_RMS,
    mlp_bias: Bias::Never,
    activation: (&["hidden_activation"], Activation::GeluTanh),
    embed_scale: EmbedScale::RootOfHidden,
    tied: true,
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    names: SANDWICH_NAMES,
    places: Places::Always(NormPlacement::Both),
    window: Window::Pattern("", 2),
    scale: Scale::RootOf("query_pre_attn_scalar"),
    caps: [Some("attn_logit_softcapping"), Some("final_logit_softcapping")],
    ..GEMMA
};

const OLMO2: Family = Family {
    model_type: "olmo2",
    names: POST_NAMES,
    norm: NormRow { eps: 1e-5, ..RMS },
    places: Places::Always(NormPlacement::Post),
    head_norm: HeadNorm::Whole,
    mlp_bias: Bias::Never,
    ..LLAMA
};

const PHI3: Family = Family {
    model_type: "phi3",
    names: Names {
        qkv: Qkv::Joined("self_attn.qkv_proj"),
        inner: Inner::Joined("mlp.gate_up_proj"),
        ..LLAMA_NAMES
    },
    norm: NormRow { eps: 1e-5, ..RMS },
    ..MISTRAL
};

const GLM: Family = Family {
    model_type: "glm",
    names: Names { inner: Inner::Joined("mlp.gate_up_proj"), ..LLAMA_NAMES },
    norm: NormRow { eps: 1.5625e-7, ..RMS },
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    interleaved: true,
    partial: 0.5,
    ..LLAMA
};

const COHERE: Family = Family {
    model_type: "cohere",
    norm: NormRow { bias: false, ..LAYER_NORM },
    places: Places::Always(NormPlacement::Parallel),
    head_norm: HeadNorm::Heads("use_qk_norm"),
    mlp_bias: Bias::Never,
    interleaved: true,
    logits_scale: LogitsScale::Times("logit_scale"),
    tied: true,
    ..LLAMA
};

pub(super) const GRANITE: Family = Family {
    model_type: "granite",
    scale: Scale::Field("attention_multiplier"),
    embed_scale: EmbedScale::Field("embedding_multiplier"),
    residual_scale: Some("residual_multiplier"),
    logits_scale: LogitsScale::Over("logits_scaling"),
    ..LLAMA
};

pub(super) const ERNIE: Family = Family {
    model_type: "ernie4_5",
    norm: NormRow { eps: 1e-5, ..RMS },
    qkv_bias: Bias::If("use_bias", false),
    o_bias: Bias::If("use_bias", false),
    mlp_bias: Bias::If("use_bias", false),
    interleaved: true,
    tied: true,
    ..LLAMA
};

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    head_norm: HeadNorm::Head,
    mlp_bias: Bias::Never,
    window: Window::Upper,
    ..LLAMA
};

/// The rows.
pub(super) const TABLE: &[Family] = &[
    LLAMA,
    MISTRAL,
    Family { model_type: "ministral", ..MISTRAL },
    QWEN2,
    QWEN3,
    GEMMA,
    GEMMA2,
    Family {
        model_type: "gemma3_text",
        causal: Causal::Unless("use_bidirectional_attention"),
        head_norm: HeadNorm::Head,
        window: Window::Pattern("sliding_window_pattern", 6),
        context_is_scaled: true,
        ..GEMMA2
    },
    PHI3,
    Family {
        model_type: "phi",
        names: Names {
            norm: "model.final_layernorm",
            head_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"],
            o: "self_attn.dense",
            inner: Inner::Plain("mlp.fc1"),
            down: "mlp.fc2",
            ..LLAMA_NAMES
        },
        norm: LAYER_NORM,
        places: Places::Always(NormPlacement::Parallel),
        head_norm: HeadNorm::HeadBiased("qk_layernorm"),
        qkv_bias: Bias::Always,
        o_bias: Bias::Always,
        mlp_bias: Bias::Always,
        head_bias: Bias::Always,
        activation: (&["hidden_act"], Activation::GeluTanh),
        partial: 0.5,
        ..LLAMA
    },
    Family {
        model_type: "olmo",
        norm: NormRow { kind: NormKind::Layer, eps_field: "", eps: 1e-5, weight: false, ..RMS },
        mlp_bias: Bias::Never,
        qkv_limit: Some("clip_qkv"),
        ..LLAMA
    },
    OLMO2,
    Family { model_type: "olmo3", window: Window::Pattern("", 4), ..OLMO2 },
    Family { model_type: "smollm3", rotates: RopeLayers::Listed, window: Window::Upper, tied: true, ..LLAMA },
    GRANITE,
    Family {
        model_type: "starcoder2",
        names: Names { inner: Inner::Plain("mlp.c_fc"), down: "mlp.c_proj", ..LLAMA_NAMES },
        norm: NormRow { eps_field: "norm_epsilon", ..LAYER_NORM },
        qkv_bias: Bias::If("use_bias", true),
        o_bias: Bias::If("use_bias", true),
        mlp_bias: Bias::If("use_bias", true),
        activation: (&["hidden_act"], Activation::GeluTanh),
        window: Window::Always,
        tied: true,
        ..LLAMA
    },
    Family {
        model_type: "stablelm",
        names: Names { head_norms: ["self_attn.q_layernorm", "self_attn.k_layernorm"], ..LLAMA_NAMES },
        norm: LAYER_NORM,
        places: Places::If("use_parallel_residual", false, NormPlacement::Parallel),
        head_norm: HeadNorm::HeadsApart("qk_layernorm"),
        qkv_bias: Bias::If("use_qkv_bias", false),
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        partial: 0.25,
        ..LLAMA
    },
    Family {
        model_type: "gpt_neox",
        names: Names {
            layers: "gpt_neox.layers.",
            embed: "gpt_neox.embed_in",
            norm: "gpt_neox.final_layer_norm",
            head: "embed_out",
            qkv: Qkv::ByHead("attention.query_key_value"),
            o: "attention.dense",
            inner: Inner::Plain("mlp.dense_h_to_4h"),
            down: "mlp.dense_4h_to_h",
            ..LLAMA_NAMES
        },
        norm: LAYER_NORM,
        places: Places::If("use_parallel_residual", true, NormPlacement::ParallelTwo),
        qkv_bias: Bias::If("attention_bias", true),
        o_bias: Bias::If("attention_bias", true),
        mlp_bias: Bias::Always,
        activation: (&["hidden_act"], Activation::Gelu),
        partial: 0.25,
        ..LLAMA
    },
    COHERE,
    Family {
        model_type: "cohere2",
        head_norm: HeadNorm::Never,
        window: Window::Pattern("sliding_window_pattern", 4),
        rotates: RopeLayers::Sliding,
        ..COHERE
    },
    GLM,
    Family {
        model_type: "glm4",
        names: Names {
            attention_post: "post_self_attn_layernorm",
            mlp_norm: "post_attention_layernorm",
            mlp_post: "post_mlp_layernorm",
            ..GLM.names
        },
        norm: NormRow { eps: 1e-5, ..RMS },
        places: Places::Always(NormPlacement::Both),
        ..GLM
    },
    Family {
        model_type: "exaone4",
        names: POST_NAMES,
        norm: NormRow { eps: 1e-5, ..RMS },
        places: Places::Always(NormPlacement::Post),
        head_norm: HeadNorm::Head,
        window: Window::Pattern("sliding_window_pattern", 4),
        rotates: RopeLayers::Sliding,
        ..MISTRAL
    },
    Family {
        model_type: "nemotron",
        names: Names { inner: Inner::Plain("mlp.up_proj"), ..LLAMA_NAMES },
        norm: NormRow { eps_field: "norm_eps", plus_one: true, ..LAYER_NORM },
        activation: (&["hidden_act"], Activation::ReluSquared),
        partial: 0.5,
        ..LLAMA
    },
    Family {
        model_type: "arcee",
        names: Names { inner: Inner::Plain("mlp.up_proj"), ..LLAMA_NAMES },
        norm: NormRow { eps: 1e-5, ..RMS },
        activation: (&["hidden_act"], Activation::ReluSquared),
        ..LLAMA
    },
    ERNIE,
    Family {
        model_type: "seed_oss",
        qkv_bias: Bias::If("attention_bias", true),
        o_bias: Bias::If("attention_out_bias", false),
        ..LLAMA
    },
    Family {
        model_type: "helium",
        norm: NormRow { eps: 1e-8, ..RMS },
        o_bias: Bias::Never,
        interleaved: true,
        ..LLAMA
    },
    Family {
        model_type: "hunyuan_v1_dense",
        names: Names { head_norms: ["self_attn.query_layernorm", "self_attn.key_layernorm"], ..LLAMA_NAMES },
        norm: NormRow { eps: 1e-5, ..RMS },
        head_norm: HeadNorm::Head,
        head_norm_last: true,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    Family {
        model_type: "falcon",
        names: Names {
            layers: "transformer.h.",
            embed: "transformer.word_embeddings",
            norm: "transformer.ln_f",
            qkv: Qkv::ByHead("self_attention.query_key_value"),
            o: "self_attention.dense",
            inner: Inner::Plain("mlp.dense_h_to_4h"),
            down: "mlp.dense_4h_to_h",
            ..LLAMA_NAMES
        },
        norm: NormRow { eps_field: "layer_norm_epsilon", ..LAYER_NORM },
        places: Places::If("parallel_attn", true, NormPlacement::Parallel),
        inner: ("ffn_hidden_size", 4),
        qkv_bias: Bias::If("bias", false),
        o_bias: Bias::If("bias", false),
        mlp_bias: Bias::If("bias", false),
        activation: (&["activation"], Activation::Gelu),
        tied: true,
        variant: Some(falcon),
        ..LLAMA
    },
];

/// The three shapes of Falcon: with heads of keys for groups of queries, with one for all, and with one for each.
fn falcon(json: &Json, row: &mut Family) -> Result<()> {
    if json.flag("alibi", false)? {
        return Err(json.wrong("alibi", "false: biases by distance are not supported"));
    }
    row.kv_heads = if json.flag("new_decoder_architecture", false)? {
        let two = json.size("num_ln_in_parallel_attn", 2)?.unwrap_or(2) == 2;
        if two {
            row.places = Places::Always(NormPlacement::ParallelTwo);
            row.names = Names { attention_norm: "ln_attn", mlp_norm: "ln_mlp", ..row.names };
        }
        KvHeads::Field("num_kv_heads")
    } else if json.flag("multi_query", true)? {
        KvHeads::One
    } else {
        KvHeads::All
    };
    Ok(())
}
