//! What a checkpoint has, known before a device is chosen: its weights are found and checked, not yet read.

use std::path::Path;

use super::Builder;
use crate::backend::{Backend, KvType};
use crate::error::{Error, Result};
use crate::memory::BufferLimits;
use crate::model::arch::Arch;
use crate::model::decoder::{Limits, Plan};
use crate::model::encoder::{self, EncoderPlan};
use crate::model::families;
use crate::model::sentence_transformers::SentenceTransformersConfig;
use crate::model::weights::{Options, StepWeights, Weights};
use crate::source::CheckpointSource;
use crate::weights::adapter::Adapter;
use crate::weights::{shards, store};

/// What a folder has.
pub(super) enum Found {
    Encoder(Box<EncoderParts>),
    /// And a draft model.
    Decoder(Box<(Parts, Option<Parts>)>),
}

/// What loading hands to the device, of a checkpoint that embeds texts or scores them.
pub(crate) struct EncoderParts {
    pub source: CheckpointSource,
    pub arch: Arch,
    pub sentence: SentenceTransformersConfig,
    pub weights: Weights,
    pub steps: Vec<StepWeights>,
    pub cache: KvType,
    pub limits: Limits,
}

impl EncoderParts {
    /// Its memory on a device.
    ///
    /// # Errors
    /// The sizes overflow, or a buffer is larger than the device's can be.
    pub fn plan<B: Backend>(&self, device: BufferLimits) -> Result<EncoderPlan> {
        EncoderPlan::new::<B>(&self.arch, self.cache, self.limits, &self.steps, device)
    }
}

/// What loading hands to the device.
pub(crate) struct Parts {
    pub source: CheckpointSource,
    pub arch: Arch,
    pub weights: Weights,
    pub cache: KvType,
    pub limits: Limits,
}

impl Parts {
    /// Its memory on a device.
    ///
    /// # Errors
    /// The sizes overflow, or a buffer is larger than the device's can be.
    pub fn plan<B: Backend>(&self, device: BufferLimits) -> Result<Plan> {
        Plan::new::<B>(&self.arch, self.cache, self.limits, self.weights.adapters_need(), device)
    }
}

impl Builder {
    /// What is known before a device is chosen.
    #[cfg(any(test, feature = "forensics"))]
    pub(crate) fn parts(&self) -> Result<Parts> {
        self.parts_from(CheckpointSource::open(&self.folder)?)
    }

    pub(super) fn parts_from(&self, source: CheckpointSource) -> Result<Parts> {
        let arch = source.arch()?;
        let limits = self.limits(&arch)?;
        self.parts_of(&self.folder, source, arch, limits)
    }

    /// What is known of a checkpoint that embeds texts or scores them: an encoder, one with `modules.json`, one that
    /// classifies texts. The source alone, which need not be read again, where it generates.
    pub(crate) fn encoder_parts(&self) -> Result<std::result::Result<EncoderParts, CheckpointSource>> {
        let (source, sentence) = match CheckpointSource::open(&self.folder)? {
            CheckpointSource::Folder(folder) => {
                let sentence = SentenceTransformersConfig::open(&folder)?;
                let source = CheckpointSource::Folder(sentence.folder.clone());
                if !store::exists(&source.config_file())
                    && let Some(error) = shards::instead(&sentence.folder)
                {
                    return Err(error);
                }
                (source, sentence)
            }
            CheckpointSource::Gguf(gguf) => {
                let sentence = SentenceTransformersConfig::of(&gguf)?;
                (CheckpointSource::Gguf(gguf), sentence)
            }
        };
        let arch = source.arch()?;
        if !(arch.family.encodes || sentence.found || arch.classifier.is_some()) {
            return Ok(Err(source));
        }
        if self.draft.is_some() {
            return Err(Error::request("draft", "none: this checkpoint does not generate"));
        }
        let limits = self.encoder_limits(&arch, &sentence)?;
        let checkpoint = source.checkpoint()?;
        // read after the model's own tensors
        sentence.dense.iter().filter_map(|shape| shape.tensor).for_each(|tensor| checkpoint.ask(tensor));
        if !self.adapters.is_empty() {
            return Err(Error::request("adapter", "merged, where the checkpoint does not generate"));
        }
        let merged = self.merged.as_deref().map(Adapter::open).transpose()?;
        let options = Options { encodes: true, merged: merged.as_ref(), ..self.options() };
        let mut weights = Weights::find(&arch, &checkpoint, options)?;
        let steps = encoder::steps(&arch, &mut weights, &checkpoint, &sentence)?;
        let cache = self.cache_type(weights.dtype());
        Ok(Ok(EncoderParts { source, arch, sentence, weights, steps, cache, limits }))
    }

    fn parts_of(&self, folder: &Path, source: CheckpointSource, arch: Arch, limits: Limits) -> Result<Parts> {
        let names = self.adapters.iter().map(|(name, _)| name);
        if names.clone().collect::<std::collections::BTreeSet<_>>().len() != names.count() {
            return Err(Error::request("adapter", "one of each name"));
        }
        let adapters = if folder == self.folder { &self.adapters[..] } else { &[] }; // a draft has none
        let merged = self.merged.as_deref().filter(|_| folder == self.folder);
        let adapts = merged.is_some() || !adapters.is_empty();
        // converters permute the rows of queries and keys of some architectures
        let own = families::find(arch.family.model_type).map(|family| family.interleaved);
        if adapts && matches!(source, CheckpointSource::Gguf(_)) && own != Some(arch.interleaved) {
            let expected = "beside the safetensors of the model: a GGUF file of this architecture has the rows of queries and \
                            keys in another order than adapters have them";
            return Err(Error::request("adapter", expected));
        }
        let merged = merged.map(Adapter::open).transpose()?;
        let beside = adapters.iter().map(|(_, folder)| Adapter::open(folder)).collect::<Result<Vec<_>>>()?;
        let options = Options { merged: merged.as_ref(), beside: &beside, ..self.options() };
        let weights = Weights::find(&arch, &source.checkpoint()?, options)?;
        let cache = self.cache_type(weights.dtype());
        Ok(Parts { source, arch, weights, cache, limits })
    }

    fn options(&self) -> Options<'static> {
        Options { extra: self.extra_tensors, dequantize: self.dequantize, ..Options::default() }
    }

    /// The draft checkpoint, within the main one's limits.
    pub(super) fn draft_parts(&self, main: &Parts) -> Result<Option<Parts>> {
        let Some(folder) = &self.draft else { return Ok(None) };
        let source = CheckpointSource::open(folder)?;
        let (file, arch) = (source.config_file(), source.arch()?);
        if arch.vocab != main.arch.vocab {
            let expected = format!("that of the checkpoint it drafts for, {}", main.arch.vocab);
            return Err(Error::config(&file, "vocab_size", expected));
        }
        if arch.context < main.limits.context {
            let expected = format!("at least the session's context, {}", main.limits.context);
            return Err(Error::config(&file, "max_position_embeddings", expected));
        }
        self.parts_of(folder, source, arch, main.limits).map(Some)
    }
}
