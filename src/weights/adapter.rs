//! Adapters of low rank (LoRA, Hu et al. 2021) in folders as PEFT writes them: `adapter_config.json` and
//! `adapter_model.safetensors`. A matrix W acts as `W + scale * B * A`, with A of (rank, inputs) and B of (outputs, rank).
//! DoRA (Liu et al. 2024) gives the rows of the sum lengths of their own. Beside that an adapter may have modules that it
//! was trained with as a whole (`modules_to_save`): those stand in for the model's.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::checkpoint::{Checkpoint, Tensor};
use super::json::Json;
use super::patterns::Pattern;
use super::{names, shards, store};
use crate::error::{Error, Result};

pub use super::merged::{Values, factors, merged, rounded, transposed};

/// No adapter has a larger rank.
const MAX_RANK: usize = 1 << 12;

/// What PEFT puts before a module's name.
const BEFORE: &str = "base_model.model.";

/// See the module.
#[derive(Debug)]
pub struct Adapter {
    tensors: Checkpoint,
    /// Names of the modules that it has something of, and of those that they are in.
    modules: HashSet<String>,
    alpha: f32,
    /// Whether alpha is divided by the root of the rank.
    rooted: bool,
    dora: bool,
    /// By the names of modules.
    alphas: Vec<(Pattern, f32)>,
    /// Ends of the names of modules that it has as a whole.
    saved: Vec<String>,
    /// Whether a head that is the embedding table stays that.
    ties: bool,
}

/// What is added to one matrix.
#[derive(Clone, Debug)]
pub struct Delta {
    /// (rank, inputs)
    pub a: Tensor,
    /// (outputs, rank)
    pub b: Tensor,
    pub scale: f32,
    /// What a DoRA adapter trains beside its matrices.
    pub magnitude: Option<Magnitude>,
}

/// How long DoRA makes the sum.
#[derive(Clone, Debug)]
pub enum Magnitude {
    /// Each row.
    Rows(Vec<f32>),
    /// Each column: of an embedding table, whose columns are outputs.
    Cols(Vec<f32>),
}

impl Adapter {
    /// Reads the folder.
    ///
    /// # Errors
    /// A file is missing or malformed, or asks for another kind of adapter; the error names the field.
    pub fn open(folder: &Path) -> Result<Self> {
        let json = Json::open(&folder.join("adapter_config.json"))?;
        check_kind(&json)?;
        json.required_size("r", MAX_RANK)?; // each module's own is in its tensors
        let alpha = json.positive("lora_alpha")?.unwrap_or(8.0) as f32;
        const FILE: &str = "adapter_model.safetensors";
        if !store::exists(&folder.join(FILE))
            && let Some(error) = shards::instead(folder)
        {
            return Err(error);
        }
        let tensors = Checkpoint::open_file(folder, FILE, plain)?;
        let saved = saved(&json)?;
        if saved.iter().any(|end| !tensors.names().any(|name| is_of(name, end))) {
            return Err(json.wrong("modules_to_save", format!("names of modules that are in {FILE}")));
        }
        let starts =
            |name: &str| name.match_indices('.').map(|(at, _)| name[..at].to_owned()).collect::<Vec<_>>();
        Ok(Self {
            modules: tensors.names().flat_map(starts).collect(),
            tensors,
            alpha,
            rooted: json.flag("use_rslora", false)?,
            dora: json.flag("use_dora", false)?,
            alphas: alphas(&json)?,
            saved,
            ties: json.flag("ensure_weight_tying", false)?,
        })
    }

    /// What it adds to the matrix (rows, cols) of a module; none where that is nothing.
    ///
    /// # Errors
    /// A part of it is missing, or of another shape.
    pub fn delta(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Delta>> {
        let name = |part: &str| format!("{module}.lora_{part}.weight");
        let (a, b) = (name("A"), name("B"));
        let rank = match (self.tensors.shape(&a), self.tensors.shape(&b)) {
            (None, None) => return Ok(None),
            (Some([rank, _]), _) | (_, Some([_, rank])) if (1..=MAX_RANK).contains(rank) => *rank,
            _ => return Err(Error::tensor(self.tensors.folder(), &a, format!("have shape [rank, {cols}]"))),
        };
        Ok(Some(Delta {
            a: self.tensors.tensor(&a, &[rank, cols])?,
            b: self.tensors.tensor(&b, &[rows, rank])?,
            scale: self.scale(module, rank),
            magnitude: self.magnitude(module, rows)?.map(Magnitude::Rows),
        }))
    }

    /// The [`Adapter::delta`] of a module that is an embedding table (rows, cols): there A is (rank, rows), B (cols, rank).
    ///
    /// # Errors
    /// Returns the errors of [`Adapter::delta`].
    pub fn embedding_delta(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Delta>> {
        let name = |part: &str| format!("{module}.lora_embedding_{part}");
        let (a, b) = (name("A"), name("B"));
        let rank = match (self.tensors.shape(&a), self.tensors.shape(&b)) {
            (None, None) => return Ok(None),
            (Some([rank, _]), _) | (_, Some([_, rank])) if (1..=MAX_RANK).contains(rank) => *rank,
            _ => return Err(Error::tensor(self.tensors.folder(), &a, format!("have shape [rank, {rows}]"))),
        };
        Ok(Some(Delta {
            a: transposed(&self.tensors.tensor(&b, &[cols, rank])?)?,
            b: transposed(&self.tensors.tensor(&a, &[rank, rows])?)?,
            scale: self.scale(module, rank),
            magnitude: self.magnitude(module, cols)?.map(Magnitude::Cols),
        }))
    }

    fn scale(&self, module: &str, rank: usize) -> f32 {
        let alpha = self.alphas.iter().find(|(pattern, _)| pattern.matches(module));
        let alpha = alpha.map_or(self.alpha, |(_, alpha)| *alpha);
        alpha / if self.rooted { (rank as f32).sqrt() } else { rank as f32 }
    }

    fn magnitude(&self, module: &str, count: usize) -> Result<Option<Vec<f32>>> {
        match self.dora {
            true => {
                self.tensors.tensor(&format!("{module}.{MAGNITUDE}"), &[count])?.finite_values().map(Some)
            }
            false => Ok(None),
        }
    }

    /// The tensor that stands in for the model's `name`; none where there is none.
    ///
    /// # Errors
    /// It is of another shape or type.
    pub fn replacement(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        // the matrix below an adapter, which is saved with it where the vocabulary grew
        let below = name.rsplit_once('.').map(|(module, end)| format!("{module}.base_layer.{end}"));
        let names = [Some(name.to_owned()), below];
        let found = names.into_iter().flatten().find(|name| self.tensors.has(name));
        found.map(|name| self.tensors.tensor(&name, shape)).transpose()
    }

    /// The matrix (rows, cols) below an adapter of a module, which PEFT saves with those of a table or a head; none where it is
    /// not there.
    ///
    /// # Errors
    /// It is of another shape or type.
    pub fn below(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Tensor>> {
        let name = format!("{module}.base_layer.weight");
        self.tensors.has(&name).then(|| self.tensors.tensor(&name, &[rows, cols])).transpose()
    }

    /// The error that a tensor of it cannot stay beside the weights.
    pub fn only_merged(file: &Path, name: &str) -> Error {
        let expected = "be merged into the weights, by `Builder::merge_adapter`: beside them an adapter adds to linear \
                        layers, the embedding table and the head, and replaces none";
        Error::tensor(file, name, expected)
    }

    /// Whether it has anything of a module.
    pub fn has(&self, module: &str) -> bool {
        self.modules.contains(module)
    }

    /// Whether a module was trained as a whole: then it is no part of another one any more.
    pub fn saves(&self, module: &str) -> bool {
        self.saved.iter().any(|end| module.ends_with(end.as_str()))
    }

    /// Whether a head that is the embedding table changes with it.
    pub fn ties(&self) -> bool {
        self.ties
    }

    /// Counts what it has of a module as read.
    pub fn ask(&self, module: &str) {
        for name in self.tensors.names().filter(|name| is_of(name, module)) {
            self.tensors.ask(name);
        }
    }

    /// Before what it adds is asked for.
    ///
    /// # Errors
    /// It has what cannot stay beside the weights; the error names the first tensor.
    pub fn refuse_beside(&self) -> Result<()> {
        let unread = self.tensors.unread();
        let adds = |name: &str| ADDS.iter().any(|end| name.ends_with(end));
        // a head that is the table would change with it
        let tied = |name: &str| self.ties && name.contains(".lora_embedding_");
        match unread.into_iter().find(|tensor| !adds(tensor.name) || tied(tensor.name)) {
            Some(other) => Err(Self::only_merged(other.file, other.stored_name)),
            None => Ok(()),
        }
    }

    /// After all modules were asked for: those that the model does not have, or where no adapter is supported.
    ///
    /// # Errors
    /// There are any; the error names the first ones.
    pub fn refuse_unread(&self) -> Result<()> {
        let unread = self.tensors.unread();
        let Some(first) = unread.first() else { return Ok(()) };
        let expected = "belong to a module of the model that an adapter can change";
        match unread.len() {
            1 => Err(Error::tensor(first.file, first.stored_name, expected)),
            count => Err(Error::Tensors {
                folder: self.tensors.folder().to_owned(),
                count,
                first: unread
                    .iter()
                    .take(3)
                    .map(|tensor| format!("`{}` must {expected}", tensor.stored_name))
                    .collect::<Vec<_>>()
                    .join("; "),
            }),
        }
    }
}

/// How names end of what stays beside the weights.
const ADDS: [&str; 5] =
    [".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector"];

/// The end of a name of DoRA's.
const MAGNITUDE: &str = "lora_magnitude_vector";

/// A name without what PEFT, and what wrapped the model, put into it.
fn plain(name: &str) -> Cow<'_, str> {
    let name = names::plain(name.strip_prefix(BEFORE).unwrap_or(name));
    let name = match name.contains("modules_to_save.") {
        true => name.replace("modules_to_save.default.", "").replace("modules_to_save.", "").into(),
        false => name,
    };
    match name.strip_suffix(".weight").filter(|start| start.ends_with(MAGNITUDE)) {
        Some(start) => start.to_owned().into(),
        None => name,
    }
}

/// Whether a tensor is of a module with this name, or with one that ends so.
fn is_of(tensor: &str, end: &str) -> bool {
    let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
    let starts = |start: &str| start == end || start.ends_with(&format!(".{end}"));
    module.match_indices('.').map(|(at, _)| &module[..at]).chain([module]).any(starts)
}

fn check_kind(json: &Json) -> Result<()> {
    for (field, name) in [("peft_type", "LORA"), ("bias", "none")] {
        if json.text(field)?.is_some_and(|found| found != name) {
            return Err(json.wrong(field, name));
        }
    }
    let others = [
        "lora_bias",
        "fan_in_fan_out",
        "use_qalora",
        "use_bdlora",
        "kasa_config",
        "arrow_config",
        "layer_replication",
        "alora_invocation_tokens",
    ];
    for field in others {
        match json.field(field) {
            None | Some(Value::Bool(false)) => {}
            Some(_) => return Err(json.wrong(field, "false or null: this kind of LoRA is not supported")),
        }
    }
    for field in ["trainable_token_indices", "target_parameters"] {
        let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        if json.field(field).is_some_and(|value| !empty(value)) {
            return Err(json.wrong(field, "empty or null: adapters change whole modules only"));
        }
    }
    Ok(())
}

fn saved(json: &Json) -> Result<Vec<String>> {
    let Some(value) = json.field("modules_to_save") else { return Ok(Vec::new()) };
    let names = value.as_array().map(|list| list.iter().map(|name| name.as_str().map(str::to_owned)));
    let names: Option<Vec<String>> = names.and_then(Iterator::collect);
    names.ok_or_else(|| json.wrong("modules_to_save", "a list of names of modules"))
}

fn alphas(json: &Json) -> Result<Vec<(Pattern, f32)>> {
    let Some(patterns) = json.object("alpha_pattern")? else { return Ok(Vec::new()) };
    let one = |name: &str| -> Result<(Pattern, f32)> {
        let alpha = patterns.positive(name)?.ok_or_else(|| patterns.wrong(name, "a number above 0"))?;
        let pattern = Pattern::new(name).map_err(|reason| json.wrong("alpha_pattern", reason))?;
        Ok((pattern, alpha as f32))
    };
    patterns.names().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors_and_modules() {
        for (stored, expected) in [
            (
                "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
                "model.layers.0.mlp.up_proj.lora_A.weight",
            ),
            ("base_model.model.lm_head.modules_to_save.weight", "lm_head.weight"),
            ("base_model.model.model.embed_tokens.lora_embedding_A", "model.embed_tokens.lora_embedding_A"),
            ("base_model.model.x.lora_magnitude_vector.weight", "x.lora_magnitude_vector"),
            ("base_model.model._orig_mod.model.norm.weight", "model.norm.weight"),
            ("base_model.model.model.language_model.norm.weight", "norm.weight"),
        ] {
            assert_eq!(plain(stored), expected);
        }
        assert!(is_of("lm_head.weight", "lm_head") && is_of("model.lm_head.base_layer.weight", "lm_head"));
        assert!(!is_of("model.my_lm_head.weight", "lm_head") && !is_of("lm_head.weight", "head"));
    }
}
