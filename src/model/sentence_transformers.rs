//! What a checkpoint of sentence-transformers says beside its weights: `modules.json`, and the files that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::backend::{Activation, Pooling};
use crate::error::{Error, Result};
use crate::weights::gguf::Gguf;
use crate::weights::json::{self, Json, whole};
use crate::weights::store;

/// No module of a checkpoint is wider.
const MAX_WIDTH: usize = 1 << 20;
const MAX_TOKENS: usize = 1 << 31;

/// How a text becomes an embedding. Without `modules.json` as sentence-transformers takes such a checkpoint: the mean of
/// all rows, not normalised.
#[derive(Debug)]
pub struct SentenceTransformersConfig {
    /// Where config.json, the weights and the tokenizer are; or a GGUF file.
    pub folder: PathBuf,
    /// Which rows become one; weights of positions start with 1.
    pub pooling: Pooling,
    /// Whether the rows of a prompt count.
    pub include_prompt: bool,
    pub dense: Vec<DenseShape>,
    /// Whether embeddings have length one.
    pub normalize: bool,
    /// Tokens of a text, special ones included.
    pub max_tokens: Option<usize>,
    pub lower_case: bool,
    /// By name, what is put before a text.
    pub prompts: BTreeMap<String, String>,
    /// The one that is used where nothing else is asked for.
    pub default_prompt: Option<String>,
    /// Whether there is a `modules.json`.
    pub found: bool,
}

/// A matrix behind the pooling.
#[derive(Debug)]
pub struct DenseShape {
    /// Where its weights are.
    pub folder: PathBuf,
    /// The tensor that it is in a GGUF file; none in a folder.
    pub tensor: Option<&'static str>,
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    pub activation: Option<Activation>,
}

/// The fields of old files, and the mode each stands for.
const OLD_MODES: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// What has the length of texts; the first that is there.
const CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Tokens of a text as one of [`CONFIGS`] says.
fn max_tokens(json: &Json) -> Result<Option<usize>> {
    if let Some(tokens) = json.size("max_seq_length", MAX_TOKENS)? {
        return Ok(Some(tokens));
    }
    for field in ["processor_kwargs", "tokenizer_args"] {
        if let Some(arguments) = json.object(field)?
            && let Some(tokens) = arguments.size("model_max_length", MAX_TOKENS)?
        {
            return Ok(Some(tokens));
        }
    }
    Ok(None)
}

/// The limit that the tokenizer has, but no more than the model has positions before a rope's scaling: sentence-transformers cuts
/// there. Tokenizers without a limit are written with one of 1e30.
fn tokenizer_tokens(folder: &Path) -> Result<Option<usize>> {
    let tokenizer = Json::open_if_there(&folder.join("tokenizer_config.json"))?;
    let limit = tokenizer.field("model_max_length").and_then(Value::as_f64);
    let limit = limit.filter(|limit| (1.0..=MAX_TOKENS as f64).contains(limit));
    let config = Json::open_if_there(&folder.join("config.json"))?;
    let positions = config.field("max_position_embeddings").and_then(whole);
    let positions = positions.and_then(|positions| usize::try_from(positions).ok());
    Ok(limit
        .map(|limit| limit as usize)
        .into_iter()
        .chain(positions.filter(|&positions| positions > 0))
        .min())
}

impl SentenceTransformersConfig {
    /// What a GGUF file says: how rows become one, and the matrices behind that. Embeddings have length one, as llama.cpp gives
    /// them where nothing else is asked for.
    ///
    /// # Errors
    /// A value is another than it must be.
    pub fn of(gguf: &Gguf) -> Result<Self> {
        let mut this = Self { normalize: true, ..Self::plain(&gguf.file) };
        let kind = gguf.number("pooling_type");
        this.found = kind.is_some_and(|kind| kind != 0.0);
        this.pooling = match kind {
            None | Some(0.0 | 1.0) => Pooling::Mean,
            Some(2.0) => Pooling::First,
            Some(3.0) => Pooling::Last,
            Some(_) => {
                let key = format!("{}.pooling_type", gguf.text("general.architecture")?.unwrap_or_default());
                return Err(
                    gguf.wrong(&key, "1 (mean), 2 (cls) or 3 (last): rerankers are read from safetensors")
                );
            }
        };
        for tensor in ["dense_2.weight", "dense_3.weight"] {
            if let Some(&[outputs, inputs]) = gguf.shape(tensor) {
                this.dense.push(DenseShape {
                    folder: gguf.file.clone(),
                    tensor: Some(tensor),
                    inputs,
                    outputs,
                    bias: false,
                    activation: None,
                });
            }
        }
        Ok(this)
    }

    fn plain(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            pooling: Pooling::Mean,
            include_prompt: true,
            dense: Vec::new(),
            normalize: false,
            max_tokens: None,
            lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
            found: false,
        }
    }

    /// Reads `modules.json` of `folder`, if it is there.
    ///
    /// # Errors
    /// A file is malformed, or asks for what this library does not do; the error names it.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut this = Self::plain(folder);
        let file = folder.join("modules.json");
        if store::exists(&file) {
            this.found = true;
            this.modules(folder, &file)?;
        }
        this.prompts(&folder.join("config_sentence_transformers.json"))?;
        let files = CONFIGS.map(|name| this.folder.join(name));
        let file = files.iter().find(|file| store::exists(file)).unwrap_or(&files[0]);
        let json = Json::open_if_there(file)?;
        this.max_tokens = match max_tokens(&json)? {
            Some(tokens) => Some(tokens),
            None => tokenizer_tokens(&this.folder)?,
        };
        this.lower_case = json.flag("do_lower_case", false)?;
        Ok(this)
    }

    fn modules(&mut self, folder: &Path, file: &Path) -> Result<()> {
        let wrong = |expected: String| Error::config(file, "", expected);
        let list: Value = serde_json::from_str(&json::read(file)?).map_err(|error| {
            wrong(format!("a JSON list (line {}, column {})", error.line(), error.column()))
        })?;
        let list = list.as_array().ok_or_else(|| wrong("a JSON list".into()))?;
        for (index, module) in list.iter().enumerate() {
            let kind = module["type"].as_str().and_then(|name| name.rsplit('.').next()).unwrap_or_default();
            let path = module["path"].as_str().unwrap_or_default();
            if Path::new(path).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                return Err(wrong(format!(
                    "a list of modules, each with a `path` inside the folder: {index}"
                )));
            }
            let inside = folder.join(path);
            match (index, kind) {
                (0, "Transformer") => self.folder = inside,
                (1, "Pooling") => self.pooling(&Json::open(&inside.join("config.json"))?)?,
                (2.., "Dense") if !self.normalize => self.dense(inside)?,
                (2.., "Normalize") => self.normalize = true,
                _ => {
                    return Err(wrong(format!(
                        "Transformer, Pooling, then any of Dense, then Normalize; module {index} is another"
                    )));
                }
            }
        }
        if list.len() < 2 {
            return Err(wrong("at least Transformer and Pooling".into()));
        }
        Ok(())
    }

    fn pooling(&mut self, json: &Json) -> Result<()> {
        let mut modes = Vec::new();
        match json.field("pooling_mode") {
            Some(Value::Array(list)) => {
                modes.extend(list.iter().map(|mode| mode.as_str().unwrap_or_default()))
            }
            Some(mode) => modes.push(mode.as_str().unwrap_or_default()),
            None => {
                for (field, mode) in OLD_MODES {
                    if json.flag(field, false)? {
                        modes.push(mode);
                    }
                }
            }
        }
        self.pooling = match modes[..] {
            ["cls"] => Pooling::First,
            ["lasttoken"] => Pooling::Last,
            [] | ["mean"] => Pooling::Mean,
            ["mean_sqrt_len_tokens"] => Pooling::MeanSqrtLen,
            ["max"] => Pooling::Max,
            ["weightedmean"] => Pooling::Weighted { from: 1 },
            _ => {
                let known = OLD_MODES.map(|(_, mode)| mode).join(", ");
                return Err(json.wrong("pooling_mode", format!("one of {known}")));
            }
        };
        self.include_prompt = json.flag("include_prompt", true)?;
        Ok(())
    }

    fn dense(&mut self, folder: PathBuf) -> Result<()> {
        let json = Json::open(&folder.join("config.json"))?;
        for field in ["module_input_name", "module_output_name"] {
            if json.text(field)?.is_some_and(|name| name != "sentence_embedding") {
                return Err(json.wrong(field, "sentence_embedding"));
            }
        }
        let (field, known) = ("activation_function", "Identity, Tanh, GELU, ReLU or SiLU of torch.nn");
        let activation = match json.text(field)?.and_then(|name| name.rsplit('.').next()) {
            Some("Identity") => None,
            None | Some("Tanh") => Some(Activation::Tanh),
            Some("GELU") => Some(Activation::Gelu),
            Some("ReLU") => Some(Activation::Relu),
            Some("SiLU") => Some(Activation::Silu),
            Some(_) => return Err(json.wrong(field, known)),
        };
        self.dense.push(DenseShape {
            inputs: json.required_size("in_features", MAX_WIDTH)?,
            outputs: json.required_size("out_features", MAX_WIDTH)?,
            bias: json.flag("bias", true)?,
            activation,
            folder,
            tensor: None,
        });
        Ok(())
    }

    fn prompts(&mut self, file: &Path) -> Result<()> {
        let json = Json::open_if_there(file)?;
        if let Some(prompts) = json.object("prompts")? {
            for name in prompts.names() {
                let prompt = prompts.text(name)?.unwrap_or_default();
                self.prompts.insert(name.to_owned(), prompt.to_owned());
            }
        }
        self.default_prompt = json.text("default_prompt_name")?.map(str::to_owned);
        match &self.default_prompt {
            Some(name) if !self.prompts.contains_key(name) => {
                Err(json.wrong("default_prompt_name", "the name of one of the prompts"))
            }
            _ => Ok(()),
        }
    }
}
