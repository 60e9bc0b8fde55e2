//! How a session that embeds texts or scores them is started.

use std::path::Path;
use std::sync::Arc;

use super::Builder;
use super::parts::EncoderParts;
use crate::backend::{Backend, Pooling};
use crate::engine::encode;
use crate::engine::encode::reader::{EncodeReader, Settings};
use crate::error::{Error, Result};
use crate::memory::BufferLimits;
use crate::memory_plan::MemoryPlan;
use crate::model::encoder::Encoder;
use crate::model::weights::StepWeights;
use crate::model_info::ModelInfo;
use crate::privacy::Alias;
use crate::session::Session;
use crate::weights::Tensor;
use crate::weights::json::Json;
use crate::weights::progress::Progress;

impl Builder {
    pub(super) fn start_encoder<B: Backend + 'static>(
        mut self,
        parts: EncoderParts,
        (memory, buffers): (MemoryPlan, BufferLimits),
        mut backend: B,
    ) -> Result<Session>
    where
        B::Weight: 'static,
    {
        let plan = parts.plan::<B>(buffers)?;
        let EncoderParts { source, arch, sentence, weights, steps, limits, .. } = parts;
        let about = ModelInfo::of(&source, &arch, &weights, &steps)?;
        let kv_cache = self.cache_type(weights.dtype());
        let of_steps: Vec<&Tensor> = steps.iter().flat_map(StepWeights::iter).collect();
        let total_bytes = weights.file_bytes() + of_steps.iter().map(|tensor| tensor.bytes()).sum::<u64>();
        let (model_type, vocab, hidden) = (Alias::new(arch.family.model_type)?, arch.vocab, arch.hidden);
        let text = source.text_to_read(vocab)?.map(Arc::new);
        let pooling = arch.classifier.as_ref().map_or(sentence.pooling, |classifier| classifier.pooling);
        let pooling = match pooling {
            Pooling::Weighted { .. } if !sentence.include_prompt => {
                let file = sentence.folder.join("modules.json");
                return Err(Error::config(&file, "include_prompt", "true where positions have weights"));
            }
            pooling => pooling,
        };
        let labels = arch.classifier.as_ref().map(|classifier| classifier.labels);
        let sigmoid = match labels {
            Some(1) => sigmoid(&source.config_file())?,
            _ => false,
        };
        let mut progress = Progress { done_bytes: 0, total_bytes };
        let loaded = |bytes| {
            progress.done_bytes += bytes;
            self.progress.iter().for_each(|call| call(progress));
        };
        let encoder = Encoder::new(arch, (&weights, &steps), plan, self.quantize, &mut backend, loaded)?;
        drop((weights, steps));
        let device = backend.name();
        let (opening, receipts) = self.opening(&device, model_type, kv_cache)?;
        let evidence = receipts.evidence().clone();
        let reader = EncodeReader {
            text,
            settings: Settings {
                tokenizer_file: source.tokenizer_file(),
                vocab,
                context: limits.context,
                width: labels.is_none().then(|| encoder.width()),
                hidden,
                normalize: sentence.normalize,
                labels: labels.unwrap_or(0),
                sigmoid,
                include_prompt: sentence.include_prompt,
                lower_case: sentence.lower_case,
                prompts: sentence.prompts,
                default_prompt: sentence.default_prompt,
            },
            shared: opening.shared.clone(),
            clock: opening.clock.clone(),
            worker: opening.worker.clone(),
            session: opening.telemetry.session,
        };
        let text_gap = reader.text.as_ref().and_then(|text| text.not_covered());
        let read = move |ask, arrived| reader.read(ask, arrived);
        let mut worker =
            encode::worker::EncodeWorker::new((backend, encoder, pooling), limits, opening.shell(receipts));
        worker.text_gap = text_gap;
        #[cfg(feature = "testing")]
        {
            worker.faults = self.faults;
        }
        let (client, worker) = opening.start(read, self.max_requests, worker, None)?;
        let context = limits.context;
        Ok(Session {
            client,
            worker: Some(worker),
            memory,
            context,
            vocab,
            text: None,
            device,
            fell_back: None,
            notes: Vec::new(),
            evidence,
            model: about,
            adapters: Vec::new(),
        })
    }
}

/// Whether a score goes through a sigmoid: yes, unless the checkpoint says otherwise, as in sentence-transformers.
fn sigmoid(file: &Path) -> Result<bool> {
    let json = Json::open(file)?;
    let nested = json.object("sentence_transformers")?;
    let (old, new) = ("sbert_ce_default_activation_function", "activation_fn");
    let (json, field) = match &nested {
        Some(nested) if nested.field(new).is_some() => (nested, new),
        _ => (&json, old),
    };
    match json.text(field)?.map(|name| name.rsplit('.').next().unwrap_or(name)) {
        None | Some("Sigmoid") => Ok(true),
        Some("Identity") => Ok(false),
        Some(_) => Err(json.wrong(field, "Sigmoid or Identity of torch.nn")),
    }
}
