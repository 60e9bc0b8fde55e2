//! Families that embed texts or score them.

use super::dense::{LAYER_NORM, LLAMA, LLAMA_NAMES, RMS};
use super::schema::{
    Bias, Causal, Classifier, Family, HeadStep, Inner, Names, NormPlacement, NormRow, Places,
    PositionTypeNames, Qkv, RopeLayers, Window,
};
use crate::backend::{Activation, Pooling};
use crate::error::Result;
use crate::weights::json::Json;

const ABSOLUTE: PositionTypeNames = PositionTypeNames {
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
        position_type: ABSOLUTE,
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
        position_type: PositionTypeNames {
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
        position_type: PositionTypeNames { positions: "", behind_pad: false, types, norm },
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

/// The rows.
pub(super) const TABLE: &[Family] = &[
    BERT,
    ROBERTA,
    Family { model_type: "xlm-roberta", ..ROBERTA },
    Family { model_type: "camembert", ..ROBERTA },
    Family {
        model_type: "electra",
        names: Names {
            layers: "electra.encoder.layer.",
            embed: "electra.embeddings.word_embeddings",
            position_type: PositionTypeNames {
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
            position_type: PositionTypeNames {
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
            relative_bias: "mpnet.encoder.relative_attention_bias",
            position_type: PositionTypeNames {
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
            position_type: PositionTypeNames { norm: "model.embeddings.norm", ..LLAMA_NAMES.position_type },
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
            position_type: PositionTypeNames {
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
