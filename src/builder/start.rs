//! How a session that generates is started: its weights are loaded, its threads run.

use std::sync::Arc;

use super::Builder;
use super::parts::Parts;
use crate::backend::Backend;
use crate::chat;
use crate::engine::intake::{Defaults, Intake, Vocabulary};
use crate::engine::masks::Masks;
use crate::engine::models::{Model, Models};
use crate::engine::worker::Worker;
use crate::error::{Error, Result};
use crate::memory::BufferLimits;
use crate::memory::thread::{self, Depth};
use crate::memory_plan::MemoryPlan;
use crate::model::arch::Arch;
use crate::model::decoder::{Decoder, Limits};
use crate::model_info::ModelInfo;
use crate::note::Note;
use crate::privacy::Alias;
use crate::sample::defaults;
use crate::session::Session;
use crate::source::CheckpointSource;
use crate::weights::progress::Progress;

impl Builder {
    pub(super) fn start<B: Backend + 'static>(
        mut self,
        (parts, draft): (Parts, Option<Parts>),
        (memory, buffers): (MemoryPlan, BufferLimits),
        backend: impl Fn() -> Result<B>,
    ) -> Result<Session>
    where
        B::Weight: 'static,
    {
        let (limits, model_type) = (parts.limits, Alias::new(parts.arch.family.model_type)?);
        let kv_cache = self.cache_type(parts.weights.dtype());
        let mut notes = Vec::new();
        let mut defaults = self.defaults(&parts.source, &parts.arch, limits, &mut notes)?;
        let (context, vocab) = (limits.context, defaults.vocab);
        let mut text = parts.source.text(parts.arch.vocab)?;
        let templates = parts.source.templates()?;
        if let Some(text) = &mut text {
            let known = |end: &u32| (*end as usize) < parts.arch.vocab && !defaults.eos.contains(end);
            let end = text.end_token().filter(known);
            defaults.eos.extend(end);
            text.protect(&defaults.eos, |token| templates.as_ref().is_some_and(|all| all.mention(token)));
        }
        let text = text.map(Arc::new);
        let about = ModelInfo::of(&parts.source, &parts.arch, &parts.weights, &[])?;
        let adapters = defaults.adapters.clone();
        // while weights are read; it holds nothing of a request, so it need not be `confined`
        let vocabulary = text.clone().map(|text| {
            let (vocab, eos) = (defaults.vocab, defaults.eos.clone());
            let build = move || Vocabulary::new(text.pieces(), vocab, &eos);
            thread::builder("amnesic-vocabulary", Depth::Parsers).spawn(build).map_err(Error::Thread)
        });
        let vocabulary = vocabulary.transpose()?;
        let all = [Some(&parts), draft.as_ref()].into_iter().flatten();
        let mut progress =
            Progress { done_bytes: 0, total_bytes: all.map(|parts| parts.weights.file_bytes()).sum() };
        let mut load = |parts: Parts| {
            let plan = parts.plan::<B>(buffers)?;
            let Parts { arch, weights, limits, .. } = parts;
            let loaded = |bytes| {
                progress.done_bytes += bytes;
                self.progress.iter().for_each(|call| call(progress));
            };
            let mut backend = backend()?;
            let decoder = Decoder::new(arch, &weights, plan, self.quantize, &mut backend, loaded)?;
            let arithmetic = backend.arithmetic();
            Ok::<_, Error>((backend.name(), Model::new(backend, decoder, limits), arithmetic))
        };
        let (device, main, arithmetic) = load(parts)?;
        let draft = draft.map(|parts| load(parts).map(|(_, model, _)| model)).transpose()?;
        let identity = self.identity(arithmetic, vocab)?;
        let models = Models::new(main, draft);
        let vocabulary = vocabulary.map(|thread| {
            thread
                .join()
                .map_err(|_| Error::Thread(std::io::Error::other("the vocabulary's thread panicked")))
        });
        let (opening, receipts) = self.opening(&device, model_type, kv_cache)?;
        let evidence = receipts.evidence().clone();
        #[cfg_attr(
            not(any(feature = "testing", feature = "debug-sampler")),
            expect(unused_mut, reason = "only tests ask for faults, only the feature brings a sampler")
        )]
        let mut worker = Worker::new(
            models,
            text.clone(),
            vocab,
            limits,
            opening.shell(receipts),
            Masks::start(opening.worker.clone())?,
        );
        #[cfg(feature = "testing")]
        {
            worker.faults = self.faults;
        }
        #[cfg(feature = "debug-sampler")]
        {
            worker.debug_sampler = self.debug_sampler;
        }
        #[cfg_attr(not(feature = "testing"), expect(unused_mut, reason = "only tests count"))]
        let mut vocabulary = vocabulary.transpose()?;
        #[cfg(feature = "testing")]
        {
            vocabulary.iter_mut().for_each(|vocabulary| vocabulary.count_compiled(&opening.shared.compiled));
        }
        let intake = Intake {
            vocabulary,
            longest_token: text.as_deref().map_or(1, |text| text.pieces().longest()),
            edges: text.as_deref().map_or(Vec::new(), |text| chat::edges(text.control_texts())),
            text: text.clone(),
            templates,
            defaults,
            shared: opening.shared.clone(),
            clock: opening.clock.clone(),
            worker: opening.worker.clone(),
            session: opening.telemetry.session,
        };
        let most = intake.defaults.max_requests;
        let read = move |ask, arrived| intake.read(ask, arrived);
        let (client, worker) = opening.start(read, most, worker, Some(identity))?;
        Ok(Session {
            client,
            worker: Some(worker),
            memory,
            context,
            vocab,
            text,
            device,
            fell_back: None,
            notes,
            evidence,
            model: about,
            adapters,
        })
    }

    /// What `generation_config.json` says; its sampling only where it says `do_sample`.
    fn defaults(
        &self,
        source: &CheckpointSource,
        arch: &Arch,
        limits: Limits,
        notes: &mut Vec<Note>,
    ) -> Result<Defaults> {
        let json = source.generation_config()?;
        let mut eos = arch.eos.clone();
        eos.extend(json.token_ids("eos_token_id")?);
        eos.sort_unstable();
        eos.dedup();
        Ok(Defaults {
            sampling: defaults::sampling(&json, notes)?,
            eos,
            vocab: arch.vocab,
            tokenizer_file: source.tokenizer_file(),
            parser: self.tool_call_parser,
            draft: self.draft.is_some(),
            adapters: self.adapters.iter().map(|(name, _)| name.clone()).collect(),
            max_requests: self.max_requests,
            limits,
        })
    }
}
