//! Adapters of low rank (LoRA, Hu et al. 2021) in folders as PEFT writes them: `adapter_config.json` and
//! `adapter_model.safetensors`. A matrix W acts as `W + scale * B * A`, with A of (rank, inputs) and B of (outputs, rank).

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::checkpoint::{Checkpoint, Raw, Tensor};
use super::coded::{Coded, Row};
use super::dtype::Dtype;
use super::json::Json;
use crate::error::{Error, Result};

/// No adapter has a larger rank.
const MAX_RANK: usize = 1 << 12;

/// What PEFT puts before a module's name.
const BEFORE: &str = "base_model.model.";

/// See the module.
#[derive(Debug)]
pub struct Adapter {
    tensors: Checkpoint,
    alpha: f32,
    /// Whether alpha is divided by the root of the rank.
    rooted: bool,
    /// By the end of a module's name.
    alphas: Vec<(String, f32)>,
}

/// What is added to one matrix.
#[derive(Clone, Debug)]
pub struct Delta {
    /// (rank, inputs)
    pub a: Tensor,
    /// (outputs, rank)
    pub b: Tensor,
    pub scale: f32,
}

impl Adapter {
    /// Reads the folder.
    ///
    /// # Errors
    /// A file is missing or malformed, or asks for another kind of adapter; the error names the field.
    pub fn open(folder: &Path) -> Result<Self> {
        let json = Json::open(&folder.join("adapter_config.json"))?;
        let expected = [("peft_type", "LORA"), ("bias", "none")];
        for (field, name) in expected {
            if json.text(field)?.is_some_and(|found| found != name) {
                return Err(json.wrong(field, name));
            }
        }
        for field in ["use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "alora_invocation_tokens"] {
            match json.field(field) {
                None | Some(Value::Bool(false)) => {}
                Some(_) => return Err(json.wrong(field, "false or null: this kind of LoRA is not supported")),
            }
        }
        for field in ["modules_to_save", "trainable_token_indices", "target_parameters"] {
            let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
            if json.field(field).is_some_and(|value| !empty(value)) {
                return Err(json.wrong(field, "empty or null: adapters change linear layers only"));
            }
        }
        json.required_size("r", MAX_RANK)?; // each module's own is in its tensors
        let alpha = json.positive("lora_alpha")?.unwrap_or(8.0) as f32;
        let mut alphas = Vec::new();
        if let Some(patterns) = json.object("alpha_pattern")? {
            for name in patterns.names() {
                let plain = name
                    .chars()
                    .all(|character| character.is_ascii_alphanumeric() || "._".contains(character));
                match patterns.positive(name)? {
                    Some(alpha) if plain => alphas.push((name.to_owned(), alpha as f32)),
                    _ => {
                        return Err(
                            json.wrong("alpha_pattern", "ends of names of modules, not other patterns")
                        );
                    }
                }
            }
        }
        let tensors = Checkpoint::open_file(folder, "adapter_model.safetensors")?;
        Ok(Self { tensors, alpha, rooted: json.flag("use_rslora", false)?, alphas })
    }

    /// What it adds to the matrix (rows, cols) of a module; none where that is nothing.
    ///
    /// # Errors
    /// Half of it is missing, or of another shape.
    pub fn delta(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Delta>> {
        let name = |part: &str| format!("{BEFORE}{module}.lora_{part}.weight");
        let (a, b) = (name("A"), name("B"));
        let rank = match (self.tensors.shape(&a), self.tensors.shape(&b)) {
            (None, None) => return Ok(None),
            (Some([rank, _]), _) | (_, Some([_, rank])) if (1..=MAX_RANK).contains(rank) => *rank,
            _ => return Err(Error::tensor(self.tensors.folder(), &a, format!("have shape [rank, {cols}]"))),
        };
        let is_of = |end: &str| module == end || module.ends_with(&format!(".{end}"));
        let alpha = self.alphas.iter().find(|(end, _)| is_of(end)).map_or(self.alpha, |(_, alpha)| *alpha);
        let divisor = if self.rooted { (rank as f32).sqrt() } else { rank as f32 };
        Ok(Some(Delta {
            a: self.tensors.tensor(&a, &[rank, cols])?,
            b: self.tensors.tensor(&b, &[rows, rank])?,
            scale: alpha / divisor,
        }))
    }

    /// After all modules were asked for: those that the model does not have, or where no adapter is supported.
    ///
    /// # Errors
    /// There are any; the error names the first ones.
    pub fn refuse_unread(&self) -> Result<()> {
        let unread = self.tensors.unread();
        let Some((first, file)) = unread.first() else { return Ok(()) };
        let expected = "belong to a linear layer of the model's attention or MLP";
        match unread.len() {
            1 => Err(Error::tensor(file, first, expected)),
            count => Err(Error::Tensors {
                folder: self.tensors.folder().to_owned(),
                count,
                first: unread
                    .iter()
                    .take(3)
                    .map(|(name, _)| format!("`{name}` must {expected}"))
                    .collect::<Vec<_>>()
                    .join("; "),
            }),
        }
    }
}

/// A matrix whose rows are worked out from others': W + scale * B * A, or the same values in another type.
#[derive(Debug)]
struct Made {
    from: Tensor,
    /// A's values, B's rows, the scale.
    delta: Option<(Vec<f32>, Tensor, f32)>,
}

impl Coded for Made {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let mut values = vec![0.0; out.cols()];
        self.from.dtype.read_all(&self.from.row(row), &mut values);
        if let Some((a, b, scale)) = &self.delta {
            let mut weights = vec![0.0; b.shape[1]];
            b.dtype.read_all(&b.row(row), &mut weights);
            // in double precision: the sum is rounded once
            let mut sums: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
            for (weight, a) in weights.iter().zip(a.chunks_exact(values.len())) {
                let weight = f64::from(*weight) * f64::from(*scale);
                sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += weight * f64::from(*a));
            }
            values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum as f32);
        }
        out.values(|first, group| group.copy_from_slice(&values[first..][..group.len()]));
    }

    fn parts(&self) -> Vec<&Raw> {
        Vec::new()
    }
}

/// The matrix with what the adapter adds. Whole numbers become bf16.
pub fn merged(tensor: Tensor, delta: &Delta) -> Result<Tensor> {
    let dtype = tensor.dtype.dequantized();
    let delta = Some((delta.a.finite_values()?, delta.b.clone(), delta.scale));
    Ok(Tensor::made(Arc::new(Made { from: tensor.clone(), delta }), &tensor, dtype))
}

/// The same values, rounded to `dtype`.
pub fn rounded(tensor: &Tensor, dtype: Dtype) -> Tensor {
    Tensor::made(Arc::new(Made { from: tensor.clone(), delta: None }), tensor, dtype)
}

/// A matrix of values that were worked out before.
#[derive(Debug)]
pub struct Values(pub Vec<f32>);

impl Coded for Values {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let values = &self.0[row * out.cols()..][..out.cols()];
        out.values(|first, group| group.copy_from_slice(&values[first..][..group.len()]));
    }

    fn parts(&self) -> Vec<&Raw> {
        Vec::new()
    }
}
