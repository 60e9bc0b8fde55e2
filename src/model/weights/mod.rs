//! The tensors of a checkpoint, found under their family's names and of the right shapes, before a backend takes them in.
//!
//! [`parts`] has what they are grouped into, [`find`] and [`layers`] find them, [`adapters`] has what an adapter changes or
//! adds, and [`inventory`] says how many bytes all of them take.

mod adapters;
mod find;
mod inventory;
mod layers;
mod parts;

use std::cell::RefCell;

use self::find::{Finder, MANY, base};
use super::arch::Arch;
use crate::error::Result;
use crate::weights::Tensor;
use crate::weights::adapter::Adapter;
use crate::weights::tensors::Tensors;

pub use self::adapters::{AdapterNeeds, AdapterWeights, Addition, Additions, Site};
pub use self::parts::{
    FeedWeights, LatentWeights, LayerWeights, LinearWeights, MixtureWeights, MlpWeights, NormWeights,
    PositionTypeWeights, StepWeights,
};

/// How tensors are taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Tensors that nobody reads are no error.
    pub extra: bool,
    /// Quantized matrices become bf16.
    pub dequantize: bool,
    /// No logits are wanted: heads are not read.
    pub encodes: bool,
    /// Becomes a part of the weights.
    pub merged: Option<&'a Adapter>,
    /// Are taken beside them.
    pub beside: &'a [Adapter],
}

/// See the module.
#[derive(Debug)]
pub struct Weights {
    pub embed: Tensor,
    pub position_type: PositionTypeWeights,
    /// (buckets, heads)
    pub relative_bias: Option<Tensor>,
    pub layers: Vec<LayerWeights>,
    pub norm: Option<NormWeights>,
    /// What a checkpoint for classifying texts has behind its layers.
    pub classifier: Vec<StepWeights>,
    pub head: Option<Tensor>,
    pub head_bias: Option<Tensor>,
    /// What each adapter adds.
    pub adapters: Vec<AdapterWeights>,
}

impl Weights {
    /// Finds every tensor that `arch` asks for.
    ///
    /// # Errors
    /// Tensors are missing, or of another shape or type, or nobody reads them though they are not known to be needless;
    /// the error names the first ones.
    pub fn find(arch: &Arch, checkpoint: &dyn Tensors, options: Options<'_>) -> Result<Self> {
        let names = &arch.family.names;
        let problems = RefCell::default();
        let base = base(checkpoint, names.embed);
        let finder = Finder { arch, checkpoint, options, base, problems: &problems, layer: String::new() };
        let table = [arch.vocab, arch.hidden];
        if checkpoint.is_empty() {
            checkpoint.tensor(&format!("{}.weight", names.embed), &table)?;
        }
        let embed = finder.matrix(names.embed, arch.vocab, arch.hidden);
        let position_type = arch.position_type.map(|shape| finder.position_type(shape)).unwrap_or_default();
        let position_type =
            PositionTypeWeights { norm: finder.norm_if(names.position_type.norm), ..position_type };
        let relative_bias = arch
            .buckets
            .map(|buckets| finder.tensor(&format!("{}.weight", names.relative_bias), &[buckets, arch.heads]));
        let headed = !options.encodes;
        let tied = match arch.tied {
            Some(true) => !headed || !finder.has_head_of_its_own(),
            Some(false) => false,
            None => !finder.has_matrix(names.head),
        };
        let head = match (headed, tied) {
            (false, _) => None,
            (true, false) => Some(finder.matrix(names.head, arch.vocab, arch.hidden)),
            (true, true) => finder.untied(),
        };
        let head_bias =
            (headed && arch.head_bias).then(|| finder.tensor(&format!("{}.bias", names.head), &[arch.vocab]));
        let norm = finder.norm_if(names.norm);
        let classifier = arch.classifier.as_ref().filter(|_| options.encodes);
        let classifier = classifier.map(|shape| finder.classifier(shape)).unwrap_or_default();
        let layers = arch.shapes.iter().enumerate().map(|(layer, shape)| {
            let norm = arch.family.first_norm || layer > 0;
            Finder { layer: format!("{}{layer}.", names.layers), ..finder }.layer(shape, norm)
        });
        let layers = layers.take_while(|_| problems.borrow().count < MANY).collect();
        if !options.extra {
            finder.refuse_unread();
        }
        let adapters = options.beside.iter().map(|adapter| finder.beside(adapter)).collect::<Result<_>>()?;
        problems.into_inner().into_result(checkpoint)?;
        if let Some(adapter) = options.merged {
            adapter.refuse_unread()?;
        }
        Ok(Self { adapters, embed, position_type, relative_bias, layers, norm, classifier, head, head_bias })
    }
}
