//! How tensors are found: under which names, and what is wrong where they are not there or others are.

use std::borrow::Cow;
use std::cell::RefCell;

use super::{Options, PositionTypeWeights, StepWeights};
use crate::error::{Error, Result};
use crate::model::arch::{Arch, ClassifierShape, PositionTypeShape};
use crate::model::families::HeadStep;
use crate::weights::Tensor;
use crate::weights::checkpoint::Unread;
use crate::weights::tensors::Tensors;

/// Tensors that some checkpoints have and nobody reads: buffers that old versions of transformers stored.
const NOT_READ: [&str; 5] = [
    ".rotary_emb.inv_freq",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.original_inv_freq",
    "embeddings.position_ids",
];

/// With so many problems the rest of the layers is not looked at.
pub(super) const MANY: usize = 10_000;

/// How many problems an error shows.
const SHOWN: usize = 3;

/// Finds tensors below a prefix. What is missing or wrong it notes, and goes on with another tensor in its place.
#[derive(Clone)]
pub(super) struct Finder<'a> {
    pub(super) arch: &'a Arch,
    pub(super) checkpoint: &'a dyn Tensors,
    pub(super) options: Options<'a>,
    pub(super) problems: &'a RefCell<Problems>,
    /// What names of the table begin with, and those of the checkpoint do not.
    pub(super) base: &'static str,
    pub(super) layer: String,
}

/// Models are stored as a part of one with a head, or alone: then names lack the part's own.
pub(super) fn base(checkpoint: &dyn Tensors, embed: &'static str) -> &'static str {
    let Some(dot) = embed.find('.') else { return "" };
    let (base, rest) = embed.split_at(dot + 1);
    let has = |name: &str| checkpoint.has(&format!("{name}.weight"));
    if !has(embed) && has(rest) { base } else { "" }
}

impl Finder<'_> {
    /// A name of the table as the checkpoint has it.
    pub(super) fn name<'n>(&self, name: &'n str) -> Cow<'n, str> {
        let name = name.strip_prefix(self.base).unwrap_or(name);
        // as TensorFlow called them
        let old = [(".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")];
        for (new, old) in old {
            if let Some(start) = name.strip_suffix(new)
                && !self.checkpoint.has(name)
                && self.checkpoint.has(&format!("{start}{old}"))
            {
                return format!("{start}{old}").into();
            }
        }
        name.into()
    }

    /// What `find` finds, and the tensor itself where that is wrong: the problem is noted.
    pub(super) fn or_noted(&self, tensor: Tensor, find: impl FnOnce(&Tensor) -> Result<Tensor>) -> Tensor {
        find(&tensor).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            tensor
        })
    }

    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Tensor {
        let own = &*self.name(name);
        let found = self.checkpoint.tensor(own, shape).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            self.checkpoint.stand_in(own, shape)
        });
        match (self.options.merged, name.rsplit_once('.')) {
            (Some(adapter), Some((module, end))) => {
                let module = self.in_adapter(adapter, module);
                self.replace(adapter, &format!("{module}.{end}"), found)
            }
            _ => found,
        }
    }

    pub(super) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Tensor {
        let own = &*self.name(name);
        let found = self.checkpoint.matrix(own, rows, cols).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            self.checkpoint.stand_in(own, &[rows, cols])
        });
        let found = if self.options.dequantize { found.dequantized() } else { found };
        match self.options.merged {
            Some(adapter) => self.merge(adapter, name, found),
            None => found,
        }
    }

    pub(super) fn gpt_oss(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Vec<Tensor> {
        let name = &*self.name(name);
        let found = self.checkpoint.gpt_oss(name, experts, rows, cols).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            (0..experts).map(|_| self.checkpoint.stand_in(name, &[rows, cols])).collect()
        });
        let dequantize = self.options.dequantize;
        found.into_iter().map(|tensor| if dequantize { tensor.dequantized() } else { tensor }).collect()
    }

    /// Whether there is a matrix `name`, stored or quantized.
    pub(super) fn has_matrix(&self, name: &str) -> bool {
        self.checkpoint.has_below(&self.name(name))
    }

    /// Whether there is a head though config.json says that it is the embedding table, and it has other values: then it is
    /// not, as transformers takes it.
    pub(super) fn has_head_of_its_own(&self) -> bool {
        let (arch, names) = (self.arch, &self.arch.family.names);
        if !self.has_matrix(names.head) {
            return false;
        }
        let find = |name| self.checkpoint.matrix(&self.name(name), arch.vocab, arch.hidden);
        let (Ok(embed), Ok(head)) = (find(names.embed), find(names.head)) else { return false };
        let rows = 0..embed.rows();
        let differs = |row| match embed.dtype == head.dtype {
            true => embed.row(row) != head.row(row),
            false => embed.row_values(row) != head.row_values(row),
        };
        let found = rows.clone().any(differs);
        embed.forget(rows.clone());
        head.forget(rows);
        found
    }

    pub(super) fn position_type(&self, shape: PositionTypeShape) -> PositionTypeWeights {
        let (names, hidden) = (self.arch.family.names.position_type, self.arch.hidden);
        let table = |name: &str, rows: usize| self.tensor(&format!("{name}.weight"), &[rows, hidden]);
        PositionTypeWeights {
            positions: shape.positions.map(|positions| {
                let all = table(names.positions, shape.skipped + positions);
                all.part(shape.skipped, positions, positions, positions)
            }),
            types: shape.types.map(|types| table(names.types, types)),
            norm: None,
        }
    }

    pub(super) fn classifier(&self, shape: &ClassifierShape) -> Vec<StepWeights> {
        let steps = self.arch.family.classifier.map_or(&[][..], |row| row.steps);
        let (hidden, last) = (self.arch.hidden, steps.len() - 1);
        let step = |(index, step): (usize, &HeadStep)| match *step {
            HeadStep::Dense { name, activation, .. } => {
                let rows = if index == last { shape.labels } else { hidden };
                StepWeights::Dense(self.linear(name, rows, hidden, shape.biases[index]), activation)
            }
            HeadStep::Norm(name) => StepWeights::Norm(self.norm(name)),
        };
        steps.iter().enumerate().map(step).collect()
    }

    /// Whatever nobody asked for may mean that the model is another than we take it for.
    pub(super) fn refuse_unread(&self) {
        let head = format!("{}.weight", self.arch.family.names.head); // some tied ones have it twice
        let names = &self.arch.family.names;
        let base = match names.embed.find('.') {
            Some(dot) if self.base.is_empty() => &names.embed[..=dot],
            _ => "",
        };
        // of a model without a head, what is of none of its parts, and a pooler that nobody asked for
        let of_heads = |name: &str| {
            let rest = name.strip_prefix(base);
            self.options.encodes && rest.is_none_or(|rest| rest.starts_with("pooler."))
        };
        for Unread { name, stored_name, file } in self.checkpoint.unread() {
            if name != head
                && !self.of_further_layers(name)
                && !of_heads(name)
                && !NOT_READ.iter().any(|end| name.ends_with(end))
            {
                let expected = "not be there: a model of this config.json does not read it";
                self.problems.borrow_mut().add(Error::tensor(file, stored_name, expected));
            }
        }
    }

    /// Whether a tensor is of one of the layers that guess further tokens: they stand behind the others.
    fn of_further_layers(&self, name: &str) -> bool {
        let layers = self.name(self.arch.family.names.layers);
        let layer = name.strip_prefix(&*layers).and_then(|rest| rest.split_once('.'));
        let layer = layer.and_then(|(layer, _)| layer.parse::<usize>().ok());
        let first = self.arch.layers;
        layer.is_some_and(|layer| (first..first + self.arch.further_layers).contains(&layer))
    }
}

/// What is wrong with a checkpoint's tensors.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) count: usize,
    /// The first ones.
    first: Vec<Error>,
}

impl Problems {
    fn add(&mut self, problem: Error) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(problem);
        }
    }

    pub(super) fn into_result(mut self, checkpoint: &dyn Tensors) -> Result<()> {
        let shown = self.first.iter().map(|problem| match problem {
            Error::Tensor { tensor, expected, .. } => format!("`{tensor}` must {expected}"),
            other => other.to_string(),
        });
        match self.count {
            0 => Ok(()),
            1 => Err(self.first.remove(0)),
            count => Err(Error::Tensors {
                folder: checkpoint.folder().to_owned(),
                count,
                first: shown.collect::<Vec<_>>().join("; "),
            }),
        }
    }
}
