//! The types of a row: names of tensors, and switches for all in which architectures differ.

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
    /// The field says how many there are; without it there are as many as queries.
    Field(&'static str),
    /// One.
    One,
    /// There are as many as queries.
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
pub struct PositionTypeNames {
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
    pub relative_bias: &'static str,
    pub position_type: PositionTypeNames,
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
