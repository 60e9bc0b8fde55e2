//! The table of architectures: what a `model_type` means. A new family is a row, a name map and a fixture.

/// Which projections carry a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionBias {
    /// `attention_bias` of config.json says, for q, k, v and o alike.
    Configured,
    /// q, k and v always, o never.
    Qkv,
    /// None.
    Never,
}

/// Which layers look back over a sliding window only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// None.
    Never,
    /// All, if config.json gives a `sliding_window`.
    Always,
    /// If `use_sliding_window` says so, those from `max_window_layers` on.
    Upper,
}

/// A row.
#[derive(Debug)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Biases of the attention projections.
    pub attention_bias: AttentionBias,
    /// Whether `mlp_bias` of config.json is read.
    pub mlp_bias: bool,
    /// Sliding windows.
    pub window: Window,
}

/// All rows.
pub const FAMILIES: &[Family] = &[
    Family {
        model_type: "llama",
        attention_bias: AttentionBias::Configured,
        mlp_bias: true,
        window: Window::Never,
    },
    Family {
        model_type: "mistral",
        attention_bias: AttentionBias::Never,
        mlp_bias: false,
        window: Window::Always,
    },
    Family {
        model_type: "qwen2",
        attention_bias: AttentionBias::Qkv,
        mlp_bias: false,
        window: Window::Upper,
    },
];

/// The row for `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type)
}

/// Tensor names, relative to `model.layers.N.` for those of a layer.
pub mod names {
    /// The embedding table: (vocab, hidden).
    pub const EMBED: &str = "model.embed_tokens.weight";
    /// The last norm: (hidden).
    pub const NORM: &str = "model.norm.weight";
    /// The head, absent when tied: (vocab, hidden).
    pub const HEAD: &str = "lm_head.weight";
    /// Norm before attention: (hidden).
    pub const ATTENTION_NORM: &str = "input_layernorm.weight";
    /// Norm before the MLP: (hidden).
    pub const MLP_NORM: &str = "post_attention_layernorm.weight";
    /// Queries: (heads * head_dim, hidden).
    pub const Q: &str = "self_attn.q_proj";
    /// Keys: (kv_heads * head_dim, hidden).
    pub const K: &str = "self_attn.k_proj";
    /// Values: (kv_heads * head_dim, hidden).
    pub const V: &str = "self_attn.v_proj";
    /// Attention output: (hidden, heads * head_dim).
    pub const O: &str = "self_attn.o_proj";
    /// MLP gate: (intermediate, hidden).
    pub const GATE: &str = "mlp.gate_proj";
    /// MLP up: (intermediate, hidden).
    pub const UP: &str = "mlp.up_proj";
    /// MLP down: (hidden, intermediate).
    pub const DOWN: &str = "mlp.down_proj";
}
