//! How large a session is: its limits, the memory that these take, and what is refused.

use super::parts::{EncoderParts, Found, Parts};
use super::{Builder, KvCache};
use crate::backend::cuda::driver::Driver;
use crate::backend::{BLOCK, Backend, KvType};
use crate::error::{Error, Result};
use crate::memory::BufferLimits;
use crate::memory_plan::MemoryPlan;
use crate::model::arch::Arch;
use crate::model::decoder::{Limits, blocks_for};
use crate::model::sentence_transformers::SentenceTransformersConfig;
use crate::model::weights::StepWeights;
use crate::weights::Dtype;

/// What there is of memory.
pub(super) struct Room {
    /// None where nobody says.
    bytes: Option<u64>,
    whose: String,
    /// What it wants of buffers.
    pub(super) buffers: BufferLimits,
}

impl Builder {
    pub(super) fn limits(&self, arch: &Arch) -> Result<Limits> {
        const DEFAULT_KV_TOKENS: usize = 8192;
        const MAX_TOKENS: usize = 1 << 31;
        const MAX_BATCH: usize = 1 << 16;
        /// Rows of logits beyond one for each sequence: for guesses, and for prompts whose log probabilities are asked.
        const SPARE_OUTPUTS: usize = 32;
        let within = |field, value: usize, max: usize| match (1..=max).contains(&value) {
            true => Ok(value),
            false => Err(Error::request(field, format!("from 1 to {max}"))),
        };
        let context =
            self.context.map(|tokens| within("context_length", tokens, arch.context)).transpose()?;
        let kv_tokens = self.kv_tokens.unwrap_or(context.unwrap_or(1).max(DEFAULT_KV_TOKENS));
        let blocks = blocks_for(within("kv_tokens", kv_tokens, MAX_TOKENS)?);
        let held = blocks * BLOCK;
        if context.is_some_and(|context| context > held) {
            return Err(Error::request("context_length", format!("at most kv_tokens, {held}")));
        }
        let sequences = within("max_sequences", self.sequences, MAX_BATCH)?;
        let step_tokens = within("step_tokens", self.step_tokens, MAX_BATCH)?.max(sequences);
        let outputs = (sequences + SPARE_OUTPUTS).min(step_tokens);
        let context = context.unwrap_or(arch.context.min(held));
        Ok(Limits { step_tokens, sequences, outputs, blocks, context })
    }

    /// Tokens and texts of a step: a text is computed in one.
    pub(super) fn encoder_limits(
        &self,
        arch: &Arch,
        sentence: &SentenceTransformersConfig,
    ) -> Result<Limits> {
        /// Longer texts take memory that few want: asked for, they are computed too.
        const MOST_BY_DEFAULT: usize = 8192;
        /// Tokens of a step for each text that it can have.
        const TOKENS_EACH: usize = 8;
        const MAX_TOKENS: usize = 1 << 20;
        let most = arch.context.min(MAX_TOKENS);
        let context = match self.context {
            Some(tokens) if (1..=most).contains(&tokens) => tokens,
            Some(_) => return Err(Error::request("context_length", format!("from 1 to {most}"))),
            None => sentence.max_tokens.unwrap_or(MOST_BY_DEFAULT).min(most).min(MOST_BY_DEFAULT),
        };
        if !(1..=MAX_TOKENS).contains(&self.step_tokens) {
            return Err(Error::request("step_tokens", format!("from 1 to {MAX_TOKENS}")));
        }
        let step_tokens = self.step_tokens.max(context);
        let sequences = step_tokens.div_ceil(TOKENS_EACH);
        // each text begins a block
        let blocks = blocks_for(step_tokens) + sequences;
        Ok(Limits { step_tokens, sequences, outputs: 0, blocks, context })
    }

    pub(super) fn cache_type(&self, checkpoint: Dtype) -> KvType {
        match (self.kv_cache, checkpoint) {
            (KvCache::Int8, _) => KvType::Int8,
            (KvCache::Bf16, _) | (KvCache::Checkpoint, Dtype::Bf16 | Dtype::Q8 | Dtype::Q4 | Dtype::F8) => {
                KvType::Bf16
            }
            (KvCache::Checkpoint, Dtype::F16) => KvType::F16,
            (KvCache::Checkpoint, Dtype::F32) => KvType::F32,
        }
    }

    /// What the memory goes to on `B`.
    pub(super) fn memory_plan<B: Backend>(&self, found: &Found, buffers: BufferLimits) -> Result<MemoryPlan> {
        let (parts, draft) = match found {
            Found::Encoder(parts) => {
                let EncoderParts { weights, steps, limits, .. } = &**parts;
                let plan = parts.plan::<B>(buffers)?;
                let of_steps = steps.iter().flat_map(StepWeights::iter);
                let steps_bytes: u64 = of_steps.map(|tensor| B::weight_bytes(tensor, None)).sum();
                return Ok(MemoryPlan {
                    weights_bytes: weights.bytes::<B>(self.quantize) + steps_bytes,
                    kv_bytes: plan.kv_bytes(),
                    workspace_bytes: plan.bytes() - plan.kv_bytes() + B::scratch_bytes(None),
                    kv_tokens: limits.blocks * BLOCK,
                });
            }
            Found::Decoder(parts) => (&parts.0, parts.1.as_ref()),
        };
        let mut memory = MemoryPlan {
            weights_bytes: 0,
            kv_bytes: 0,
            workspace_bytes: 0,
            kv_tokens: parts.limits.blocks * BLOCK,
        };
        for parts in [parts].into_iter().chain(draft) {
            let (Parts { weights, arch, limits, .. }, plan) = (parts, parts.plan::<B>(buffers)?);
            memory.weights_bytes += weights.bytes::<B>(self.quantize);
            memory.kv_bytes += plan.kv_bytes();
            let scratch_bytes = B::scratch_bytes(Some((limits.outputs, arch.vocab)));
            memory.workspace_bytes += plan.bytes() - plan.kv_bytes() + scratch_bytes;
        }
        Ok(memory)
    }

    /// # Errors
    /// The plan is over budget, or more than there is.
    pub(super) fn check_memory(&self, memory: &MemoryPlan, room: &Room) -> Result<()> {
        let (needed, what) = (memory.total_bytes(), "weights, KV cache, workspace");
        if let Some(budget) = self.budget
            && needed > budget
        {
            return Err(Error::Memory { needed, what, limit: format!("the budget is {budget}") });
        }
        // All of it is written or locked, so all must be there: asking for more would end some process, not this call.
        if let Some(available) = room.bytes
            && needed > available
        {
            let limit = format!("{} has {available} available", room.whose);
            return Err(Error::Memory { needed, what, limit });
        }
        Ok(())
    }

    pub(crate) fn thread_count(&self) -> Result<usize> {
        const MAX_THREADS: usize = 1024;
        match self.threads {
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)),
            Some(count) if (1..=MAX_THREADS).contains(&count) => Ok(count),
            Some(_) => Err(Error::request("threads", format!("from 1 to {MAX_THREADS}"))),
        }
    }
}

pub(super) fn host_memory() -> Room {
    Room { bytes: available_bytes(), whose: "the system".into(), buffers: BufferLimits::default() }
}

pub(super) fn device_memory(driver: &impl Driver) -> Room {
    let (bytes, whose) = (Some(driver.free_bytes()), driver.name().into());
    Room { bytes, whose, buffers: BufferLimits::default() }
}

/// Memory that the system can give without swapping, where it says so.
fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}
