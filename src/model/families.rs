//! The table of architectures: what a `model_type` means. A new family is a row, its names and a fixture.

use crate::backend::{Activation, NormKind, Pooling};
use crate::error::Result;
use crate::weights::json::Json;

/// Whether something has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// No.
    Never,
    /// Yes.
    Always,
    /// This field of config.json says it; where it is absent, this value holds.
    If(&'static str, bool),
}

/// How many heads keys and values have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvHeads {
    /// As many as the field says; without it, as queries.
    Field(&'static str),
    /// One.
    One,
    /// As many as queries.
    All,
}

/// Where the norms of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x += branch(norm(x))`.
    Pre,
    /// `x += norm(branch(x))`.
    Post,
    /// `x += post(branch(pre(x)))`.
    Both,
    /// `x = norm(x + branch(x))`.
    After,
    /// `x += attention(norm(x)) + mlp(norm(x))`, one norm for both.
    Parallel,
    /// Attention and MLP read the same input through two norms.
    ParallelTwo,
}

impl NormPlacement {
    /// Whether attention and MLP are given the same residual stream.
    pub fn is_parallel(self) -> bool {
        matches!(self, Self::Parallel | Self::ParallelTwo)
    }
}

/// Where the norms are, as config.json says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// Always there.
    Always(NormPlacement),
    /// If this flag is set (by default: this), there; else [`NormPlacement::Pre`].
    If(&'static str, bool, NormPlacement),
}

/// A norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNorm {
    /// None.
    Never,
    /// A norm of each head, with one weight for all: (head_dim).
    Head,
    /// A norm of each head, with one weight for all, where this flag is set.
    HeadIf(&'static str),
    /// A norm of each head with weights of its own, where this flag is set: (heads, head_dim).
    Heads(&'static str),
    /// A norm of each head in a tensor of its own, where this flag is set: (head_dim).
    HeadsApart(&'static str),
    /// A norm of each head with one weight and one bias for all, where this flag is set: (head_dim).
    HeadBiased(&'static str),
    /// One norm over all heads together: (heads * head_dim).
    Whole,
}

/// Which layers look back over a sliding window only, where config.json has no `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// None.
    Never,
    /// All, if config.json gives a `sliding_window`.
    Always,
    /// If `use_sliding_window` says so, those from `max_window_layers` on.
    Upper,
    /// All but each last of so many: those of the field (empty: there is none), or this number.
    Pattern(&'static str, usize),
    /// All but each first of so many, as above; the window is half of what the second field says, or of this number,
    /// on both sides.
    Local { every: (&'static str, usize), field: &'static str, both_sides: usize },
}

/// Whether rows see what is behind them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Causal {
    /// Yes.
    Always,
    /// They see all of their text, and a window reaches as far ahead.
    Never,
    /// They see all of their text if this flag is set; then the window is half as wide as the config says, on both sides.
    Unless(&'static str),
}

/// Tables that are added to embeddings.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// One row for each position; empty for none.
    pub positions: &'static str,
    /// Whether the table starts with rows for what is no position: as many as `pad_token_id` says, and one.
    pub behind_pad: bool,
    /// One row for each part of a pair of texts: `type_vocab_size`; empty for none.
    pub types: &'static str,
    /// The norm of the sum; empty for none.
    pub norm: &'static str,
}

/// What a checkpoint for classifying texts has behind its layers.
#[derive(Clone, Copy, Debug)]
pub struct Classifier {
    /// Which rows count, where the field does not say `cls` or `mean`; empty: there is no such field.
    pub pooling: (&'static str, Pooling),
    /// The last one gives the scores.
    pub steps: &'static [HeadStep],
}

/// A step behind the layers. Names are whole.
#[derive(Clone, Copy, Debug)]
pub enum HeadStep {
    /// A matrix, its bias, and an activation.
    Dense { name: &'static str, bias: Bias, activation: Option<Activation> },
    /// A norm as the layers have.
    Norm(&'static str),
}

/// Which layers rotate queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayers {
    /// All.
    All,
    /// Those with a sliding window; all where none has one.
    Sliding,
    /// None.
    Never,
    /// The list `no_rope_layers` says it (1: rotates), or all rotate but each last of `no_rope_layer_interval`.
    Listed,
}

/// What scores are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// `1 / sqrt(head_dim)`.
    HeadDim,
    /// `1 / sqrt(field)`.
    RootOf(&'static str),
    /// The field.
    Field(&'static str),
}

/// What logits are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsScale {
    /// Nothing.
    One,
    /// The field.
    Times(&'static str),
    /// One over the field.
    Over(&'static str),
}

/// What embeddings are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedScale {
    /// Nothing.
    One,
    /// `sqrt(hidden_size)`.
    RootOfHidden,
    /// The field.
    Field(&'static str),
}

/// How a norm is computed and what it has.
#[derive(Clone, Copy, Debug)]
pub struct NormRow {
    /// What is divided by.
    pub kind: NormKind,
    /// The field of config.json with what is added below the root; empty for none.
    pub eps_field: &'static str,
    /// Its default.
    pub eps: f64,
    /// Whether one is added to stored weights.
    pub plus_one: bool,
    /// Whether there are weights.
    pub weight: bool,
    /// Whether there are biases.
    pub bias: bool,
}

/// Names of tensors, those of a layer relative to `{layers}{index}.`, without `.weight` and `.bias`.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    pub layers: &'static str,
    pub embed: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    pub attention_norm: &'static str,
    pub attention_post: &'static str,
    pub mlp_norm: &'static str,
    pub mlp_post: &'static str,
    pub qkv: Qkv,
    pub head_norms: [&'static str; 2],
    pub o: &'static str,
    pub inner: Inner,
    pub down: &'static str,
    /// What a head can attend to besides positions; empty: nothing.
    pub sinks: &'static str,
    /// (buckets, heads): what is added to scores by T5's buckets of distances, the same in all layers; with its whole
    /// name, empty for none.
    pub distances: &'static str,
    pub lookup: Lookup,
}

/// Where q, k and v are.
#[derive(Clone, Copy, Debug)]
pub enum Qkv {
    /// In three matrices.
    Apart([&'static str; 3]),
    /// In one: all of q, then of k, then of v.
    Joined(&'static str),
    /// In one: for each key head its queries, its keys, its values.
    ByHead(&'static str),
    /// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values come from a latent that all heads
    /// share, and queries may come from another.
    Latent {
        /// The projection of queries, where they have no latent.
        q: &'static str,
        /// The projections of queries that have one: to the latent, its norm, from it.
        q_latent: [&'static str; 3],
        /// The projections of keys and values: to the latent and to what of the key turns, its norm, from it.
        kv_latent: [&'static str; 3],
    },
}

/// Where the first matrices of an MLP are.
#[derive(Clone, Copy, Debug)]
pub enum Inner {
    /// Gate and up.
    Gated([&'static str; 2]),
    /// In one: all of the gate, then of up.
    Joined(&'static str),
    /// In one: all of up, then of the gate.
    JoinedUpFirst(&'static str),
    /// There is no gate.
    Plain(&'static str),
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct MixtureRow {
    /// The fields with how many experts there are, how many a token goes to, and how wide they are; the first that is
    /// there counts.
    pub experts: &'static [&'static str],
    pub per_token: &'static [&'static str],
    pub inner: &'static [&'static str],
    pub scoring: Score,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalized: Bias,
    /// The field that they are multiplied by.
    pub scaled: Option<&'static str>,
    /// Whether experts are chosen from the best groups only (`n_group`, `topk_group`), and how many experts a group's
    /// score is the sum of.
    pub groups: Option<usize>,
    pub layers: MixtureLayers,
    /// Names of tensors, as in [`Names`].
    pub router: &'static str,
    pub router_bias: bool,
    /// What is added to scores where experts are chosen; with its whole name, empty for none.
    pub correction: &'static str,
    /// Whether that has a dimension of 1 before.
    pub correction_in_row: bool,
    pub weights: Experts,
    pub shared: Shared,
    /// Empty: what the shared expert gives is added as it is.
    pub shared_gate: &'static str,
}

/// How a router's logits become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Their softmax.
    Softmax,
    /// The softmax of the chosen ones.
    Chosen,
    /// Their sigmoid.
    Sigmoid,
    /// The sparse mixer; the field has its noise.
    Mixer(&'static str),
}

/// Which layers have experts; others have one MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixtureLayers {
    /// All.
    All,
    /// The list `mlp_layer_types` says it (`dense` or `sparse`), or all from the number in this field on.
    From(&'static str),
    /// Each last of `decoder_sparse_step`, but for those in `mlp_only_layers`.
    Steps,
    /// Each last of `moe_layer_interval`, from `moe_layer_start_index` to `moe_layer_end_index`.
    Between,
}

/// Where the matrices of experts are.
#[derive(Clone, Copy, Debug)]
pub enum Experts {
    /// Below `{prefix}{expert}.`: gate, up and down, and whether they have biases.
    Apart { prefix: &'static str, names: [&'static str; 3], biased: bool },
    /// In two tensors: (experts, 2 * inner, hidden) with gate before up, and (experts, hidden, inner).
    Joined { both: &'static str, down: &'static str },
    /// The layout of gpt-oss, with biases (experts, 2 * inner) and (experts, hidden); gate and up take turns.
    InTurn { both: &'static str, down: &'static str },
}

/// An expert that all tokens go to.
#[derive(Clone, Copy, Debug)]
pub enum Shared {
    /// None.
    Never,
    /// It is as wide as the field says.
    Field { field: &'static str, names: (Inner, &'static str) },
    /// It is as wide as so many others; there is none for none.
    Times { field: &'static str, names: (Inner, &'static str) },
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Fields of config.json that go by another name here: ours, then its.
    pub fields: &'static [(&'static str, &'static str)],
    pub names: Names,
    pub causal: Causal,
    /// Whether it gives embeddings only: there is no head.
    pub encodes: bool,
    /// The classifier of checkpoints `ForSequenceClassification`.
    pub classifier: Option<Classifier>,
    /// Whether the first layer's attention has a norm before it.
    pub first_norm: bool,
    pub norm: NormRow,
    pub places: Places,
    pub head_norm: HeadNorm,
    /// Whether that comes after the rotation.
    pub head_norm_last: bool,
    pub kv_heads: KvHeads,
    /// The field with the width of the MLP; if there is none, so many times `hidden_size`, or an error for 0.
    pub inner: (&'static str, usize),
    pub qkv_bias: Bias,
    pub o_bias: Bias,
    pub mlp_bias: Bias,
    /// The bias of gate and up, where that differs from the last matrix's.
    pub up_bias: Option<Bias>,
    pub head_bias: Bias,
    /// The fields that name the activation, the first that is there; by default, this.
    pub activation: (&'static [&'static str], Activation),
    pub window: Window,
    pub rotates: RopeLayers,
    /// Whether neighbours turn together.
    pub interleaved: bool,
    /// The part of a head that turns, where config.json has no `partial_rotary_factor`.
    pub partial: f64,
    /// The base of the frequencies, where config.json has no `rope_theta`; in layers with a window, if that differs.
    pub theta: (f64, Option<f64>),
    /// Whether `max_position_embeddings` counts positions after the rope's scaling, whatever its kind.
    pub context_is_scaled: bool,
    pub scale: Scale,
    /// The field that bounds queries, keys and values.
    pub qkv_limit: Option<&'static str>,
    /// Fields of the soft-caps of scores and of logits.
    pub caps: [Option<&'static str>; 2],
    pub embed_scale: EmbedScale,
    /// The field that branches are multiplied by.
    pub residual_scale: Option<&'static str>,
    pub logits_scale: LogitsScale,
    /// Whether the head is the embedding table, where config.json does not say.
    pub tied: bool,
    /// Experts instead of one MLP.
    pub mixture: Option<MixtureRow>,
    /// What else config.json changes in the row.
    pub variant: Option<fn(&Json, &mut Family) -> Result<()>>,
}

const LLAMA_NAMES: Names = Names {
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
    distances: "",
    lookup: Lookup { positions: "", behind_pad: false, types: "", norm: "" },
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

const RMS: NormRow = NormRow {
    kind: NormKind::Rms,
    eps_field: "rms_norm_eps",
    eps: 1e-6,
    plus_one: false,
    weight: true,
    bias: false,
};

const GEMMA_RMS: NormRow = NormRow { plus_one: true, ..RMS };

const LAYER_NORM: NormRow =
    NormRow { kind: NormKind::Layer, eps_field: "layer_norm_eps", eps: 1e-5, bias: true, ..RMS };

const CONFIGURED: Bias = Bias::If("attention_bias", false);

const LLAMA: Family = Family {
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

const MISTRAL: Family = Family {
    model_type: "mistral",
    qkv_bias: Bias::Never,
    o_bias: Bias::Never,
    mlp_bias: Bias::Never,
    window: Window::Always,
    ..LLAMA
};

const QWEN2: Family =
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

const GRANITE: Family = Family {
    model_type: "granite",
    scale: Scale::Field("attention_multiplier"),
    embed_scale: EmbedScale::Field("embedding_multiplier"),
    residual_scale: Some("residual_multiplier"),
    logits_scale: LogitsScale::Over("logits_scaling"),
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

const ERNIE: Family = Family {
    model_type: "ernie4_5",
    norm: NormRow { eps: 1e-5, ..RMS },
    qkv_bias: Bias::If("use_bias", false),
    o_bias: Bias::If("use_bias", false),
    mlp_bias: Bias::If("use_bias", false),
    interleaved: true,
    tied: true,
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    head_norm: HeadNorm::Head,
    mlp_bias: Bias::Never,
    window: Window::Upper,
    ..LLAMA
};

const ABSOLUTE: Lookup = Lookup {
    positions: "bert.embeddings.position_embeddings",
    behind_pad: false,
    types: "bert.embeddings.token_type_embeddings",
    norm: "bert.embeddings.LayerNorm",
};

const TANH: Option<Activation> = Some(Activation::Tanh);

const BERT: Family = Family {
    model_type: "bert",
    names: Names {
        layers: "bert.encoder.layer.",
        embed: "bert.embeddings.word_embeddings",
        norm: "",
        head: "",
        attention_norm: "",
        attention_post: "attention.output.LayerNorm",
        mlp_norm: "",
        mlp_post: "output.LayerNorm",
        qkv: Qkv::Apart(["attention.self.query", "attention.self.key", "attention.self.value"]),
        o: "attention.output.dense",
        inner: Inner::Plain("intermediate.dense"),
        down: "output.dense",
        lookup: ABSOLUTE,
        ..LLAMA_NAMES
    },
    causal: Causal::Never,
    encodes: true,
    classifier: Some(Classifier {
        pooling: ("", Pooling::First),
        steps: &[
            HeadStep::Dense { name: "bert.pooler.dense", bias: Bias::Always, activation: TANH },
            HeadStep::Dense { name: "classifier", bias: Bias::Always, activation: None },
        ],
    }),
    norm: NormRow { eps: 1e-12, ..LAYER_NORM },
    places: Places::Always(NormPlacement::After),
    qkv_bias: Bias::Always,
    o_bias: Bias::Always,
    mlp_bias: Bias::Always,
    activation: (&["hidden_act"], Activation::Gelu),
    rotates: RopeLayers::Never,
    tied: true,
    variant: Some(absolute),
    ..LLAMA
};

/// Two steps, as RoBERTa has them.
const ROBERTA_STEPS: &[HeadStep] = &[
    HeadStep::Dense { name: "classifier.dense", bias: Bias::Always, activation: TANH },
    HeadStep::Dense { name: "classifier.out_proj", bias: Bias::Always, activation: None },
];

const ROBERTA: Family = Family {
    model_type: "roberta",
    names: Names {
        layers: "roberta.encoder.layer.",
        embed: "roberta.embeddings.word_embeddings",
        lookup: Lookup {
            positions: "roberta.embeddings.position_embeddings",
            behind_pad: true,
            types: "roberta.embeddings.token_type_embeddings",
            norm: "roberta.embeddings.LayerNorm",
        },
        ..BERT.names
    },
    classifier: Some(Classifier { pooling: ("", Pooling::First), steps: ROBERTA_STEPS }),
    ..BERT
};

/// What a BERT with rotary embeddings and a gated MLP has.
const fn gte_names(
    embed: &'static str,
    layers: &'static str,
    types: &'static str,
    norm: &'static str,
) -> Names {
    Names {
        layers,
        embed,
        attention_post: "attn_ln",
        mlp_post: "mlp_ln",
        qkv: Qkv::Joined("attention.qkv_proj"),
        o: "attention.o_proj",
        inner: Inner::JoinedUpFirst("mlp.up_gate_proj"),
        down: "mlp.down_proj",
        lookup: Lookup { positions: "", behind_pad: false, types, norm },
        ..BERT.names
    }
}

const GTE: Family = Family {
    model_type: "gte",
    names: gte_names(
        "gte.embeddings.word_embeddings",
        "gte.encoder.layer.",
        "gte.embeddings.token_type_embeddings",
        "gte.embeddings.LayerNorm",
    ),
    classifier: Some(Classifier {
        pooling: ("", Pooling::First),
        steps: &[
            HeadStep::Dense { name: "gte.pooler.dense", bias: Bias::Always, activation: TANH },
            HeadStep::Dense { name: "classifier", bias: Bias::Always, activation: None },
        ],
    }),
    up_bias: Some(Bias::Never),
    rotates: RopeLayers::All,
    theta: (160_000.0, None),
    variant: None,
    ..BERT
};

/// GTE's encoder with the `config.json` of its authors.
const NEW: Family = Family {
    model_type: "new",
    names: gte_names(
        "new.embeddings.word_embeddings",
        "new.encoder.layer.",
        "new.embeddings.token_type_embeddings",
        "new.embeddings.LayerNorm",
    ),
    classifier: Some(Classifier {
        pooling: ("", Pooling::First),
        steps: &[
            HeadStep::Dense { name: "new.pooler.dense", bias: Bias::Always, activation: TANH },
            HeadStep::Dense { name: "classifier", bias: Bias::Always, activation: None },
        ],
    }),
    theta: (10_000.0, None),
    variant: Some(new),
    ..GTE
};

/// All rows.
pub const FAMILIES: &[Family] = &[
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
    BERT,
    ROBERTA,
    Family { model_type: "xlm-roberta", ..ROBERTA },
    Family { model_type: "camembert", ..ROBERTA },
    Family {
        model_type: "electra",
        names: Names {
            layers: "electra.encoder.layer.",
            embed: "electra.embeddings.word_embeddings",
            lookup: Lookup {
                positions: "electra.embeddings.position_embeddings",
                behind_pad: false,
                types: "electra.embeddings.token_type_embeddings",
                norm: "electra.embeddings.LayerNorm",
            },
            ..BERT.names
        },
        classifier: Some(Classifier {
            pooling: ("", Pooling::First),
            steps: &[
                HeadStep::Dense {
                    name: "classifier.dense",
                    bias: Bias::Always,
                    activation: Some(Activation::Gelu),
                },
                HeadStep::Dense { name: "classifier.out_proj", bias: Bias::Always, activation: None },
            ],
        }),
        variant: Some(electra),
        ..BERT
    },
    Family {
        model_type: "distilbert",
        fields: &[
            ("hidden_size", "dim"),
            ("num_hidden_layers", "n_layers"),
            ("num_attention_heads", "n_heads"),
            ("intermediate_size", "hidden_dim"),
            ("hidden_act", "activation"),
        ],
        names: Names {
            layers: "distilbert.transformer.layer.",
            embed: "distilbert.embeddings.word_embeddings",
            attention_post: "sa_layer_norm",
            mlp_post: "output_layer_norm",
            qkv: Qkv::Apart(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
            o: "attention.out_lin",
            inner: Inner::Plain("ffn.lin1"),
            down: "ffn.lin2",
            lookup: Lookup {
                positions: "distilbert.embeddings.position_embeddings",
                behind_pad: false,
                types: "",
                norm: "distilbert.embeddings.LayerNorm",
            },
            ..BERT.names
        },
        classifier: Some(Classifier {
            pooling: ("", Pooling::First),
            steps: &[
                HeadStep::Dense {
                    name: "pre_classifier",
                    bias: Bias::Always,
                    activation: Some(Activation::Relu),
                },
                HeadStep::Dense { name: "classifier", bias: Bias::Always, activation: None },
            ],
        }),
        norm: NormRow { eps_field: "", ..BERT.norm },
        variant: None,
        ..BERT
    },
    Family {
        model_type: "mpnet",
        names: Names {
            layers: "mpnet.encoder.layer.",
            embed: "mpnet.embeddings.word_embeddings",
            attention_post: "attention.LayerNorm",
            qkv: Qkv::Apart(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
            o: "attention.attn.o",
            distances: "mpnet.encoder.relative_attention_bias",
            lookup: Lookup {
                positions: "mpnet.embeddings.position_embeddings",
                behind_pad: true,
                types: "",
                norm: "mpnet.embeddings.LayerNorm",
            },
            ..BERT.names
        },
        classifier: Some(Classifier { pooling: ("", Pooling::First), steps: ROBERTA_STEPS }),
        variant: None,
        ..BERT
    },
    Family {
        model_type: "modernbert",
        names: Names {
            embed: "model.embeddings.tok_embeddings",
            norm: "model.final_norm",
            head: "",
            attention_norm: "attn_norm",
            mlp_norm: "mlp_norm",
            qkv: Qkv::Joined("attn.Wqkv"),
            o: "attn.Wo",
            inner: Inner::Joined("mlp.Wi"),
            down: "mlp.Wo",
            lookup: Lookup { norm: "model.embeddings.norm", ..LLAMA_NAMES.lookup },
            ..LLAMA_NAMES
        },
        causal: Causal::Never,
        encodes: true,
        classifier: Some(Classifier {
            pooling: ("classifier_pooling", Pooling::First),
            steps: &[
                HeadStep::Dense {
                    name: "head.dense",
                    bias: Bias::If("classifier_bias", false),
                    activation: Some(Activation::Gelu),
                },
                HeadStep::Norm("head.norm"),
                HeadStep::Dense { name: "classifier", bias: Bias::Always, activation: None },
            ],
        }),
        first_norm: false,
        norm: NormRow { eps_field: "norm_eps", bias: false, ..LAYER_NORM },
        fields: &[("rope_theta", "global_rope_theta"), ("rope_local_base_freq", "local_rope_theta")],
        activation: (&["hidden_activation"], Activation::Gelu),
        window: Window::Local {
            every: ("global_attn_every_n_layers", 3),
            field: "local_attention",
            both_sides: 128,
        },
        theta: (160_000.0, Some(10_000.0)),
        tied: true,
        variant: Some(modernbert),
        ..LLAMA
    },
    Family {
        model_type: "nomic_bert",
        fields: &[
            ("hidden_size", "n_embd"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
            ("intermediate_size", "n_inner"),
            ("max_position_embeddings", "n_positions"),
            ("layer_norm_eps", "layer_norm_epsilon"),
        ],
        names: Names {
            layers: "nomic_bert.encoder.layers.",
            embed: "nomic_bert.embeddings.word_embeddings",
            attention_post: "norm1",
            mlp_post: "norm2",
            qkv: Qkv::Joined("attn.Wqkv"),
            o: "attn.out_proj",
            inner: Inner::Gated(["mlp.fc12", "mlp.fc11"]),
            down: "mlp.fc2",
            lookup: Lookup {
                positions: "",
                behind_pad: false,
                types: "nomic_bert.embeddings.token_type_embeddings",
                norm: "nomic_bert.emb_ln",
            },
            ..BERT.names
        },
        classifier: Some(Classifier {
            pooling: ("", Pooling::First),
            steps: &[
                HeadStep::Dense { name: "nomic_bert.pooler.dense", bias: Bias::Always, activation: TANH },
                HeadStep::Dense { name: "classifier", bias: Bias::Always, activation: None },
            ],
        }),
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        activation: (&["hidden_act"], Activation::Silu),
        theta: (1000.0, None),
        variant: Some(nomic),
        ..GTE
    },
    GTE,
    NEW,
    Family {
        model_type: "eurobert",
        causal: Causal::Never,
        encodes: true,
        classifier: None,
        norm: NormRow { eps: 1e-5, ..RMS },
        ..LLAMA
    },
];

/// BERT and its like know other tables of positions.
fn absolute(json: &Json, _: &mut Family) -> Result<()> {
    match json.text("position_embedding_type")? {
        None | Some("absolute") => Ok(()),
        _ => Err(json.wrong("position_embedding_type", "absolute")),
    }
}

/// ELECTRA's smallest ones have narrower embeddings.
fn electra(json: &Json, row: &mut Family) -> Result<()> {
    absolute(json, row)?;
    let hidden = json.size("hidden_size", usize::MAX)?;
    match json.size("embedding_size", usize::MAX)? {
        size if size.is_none() || size == hidden => Ok(()),
        _ => Err(json.wrong("embedding_size", "the same as hidden_size")),
    }
}

/// The authors' code knows more than their models have.
fn new(json: &Json, _: &mut Family) -> Result<()> {
    if let Some(name) = json.text("layer_norm_type")?.filter(|&name| name != "layer_norm") {
        return Err(json.wrong("layer_norm_type", format!("layer_norm, not {name}")));
    }
    match json.text("position_embedding_type")? {
        Some("rope") => Ok(()),
        _ => Err(json.wrong("position_embedding_type", "rope")),
    }
}

/// The config.json of its authors knows more than their models have.
fn nomic(json: &Json, _: &mut Family) -> Result<()> {
    for field in ["prenorm", "use_rms_norm", "qkv_proj_bias", "rotary_emb_interleaved"] {
        if json.flag(field, false)? {
            return Err(json.wrong(field, "false"));
        }
    }
    match json.text("activation_function")? {
        None | Some("swiglu") => Ok(()),
        Some(_) => Err(json.wrong("activation_function", "swiglu")),
    }
}

/// Whether norms and the head have biases.
fn modernbert(json: &Json, row: &mut Family) -> Result<()> {
    row.norm.bias = json.flag("norm_bias", false)?;
    Ok(())
}

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

/// The row for `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type)
}
