//! The handle: a session on a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use crate::backend::cpu::{Cpu, Isa, Reference};
use crate::backend::{Backend, Counters};
use crate::engine::mailbox::{Mailbox, Outbox};
use crate::engine::sequence::Defaults;
use crate::engine::worker::{Shared, Submission, Worker};
use crate::error::{Error, Result};
use crate::memory::ledger::ScrubReport;
use crate::memory::stack::THREAD_STACK_BYTES;
use crate::model::arch::Arch;
use crate::model::decoder::{Decoder, Limits, Plan, Weights, blocks_for};
use crate::model::json::Json;
use crate::request::Request;
use crate::response::{Piece, Reply};
use crate::sample::Sampling;
use crate::text::Text;
use crate::weights::{Checkpoint, Tensor};

/// Where a session computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The best there is: today the CPU.
    #[default]
    Auto,
    /// The CPU, with its best instruction set.
    Cpu,
    /// The CPU with one instruction set by name: `avx512`, `avx2`, `neon` or `portable`. All give the same bits.
    CpuWith(&'static str),
    /// The reference that the others are tested against: plain loops in double precision, very slow.
    Reference,
}

/// How far loading has come, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of weights read and checked.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// What a session's memory goes to, planned before anything is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The mapped weights: pages of the file, shared with other processes, evictable.
    pub weights_bytes: u64,
    /// The KV cache.
    pub kv_bytes: u64,
    /// Activations, logits and the table of rope angles.
    pub workspace_bytes: u64,
    /// Tokens that the KV cache holds, over all requests.
    pub kv_tokens: usize,
}

impl MemoryPlan {
    /// The sum.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_bytes + self.workspace_bytes
    }
}

type OnProgress = Box<dyn Fn(Progress) + Send + Sync>;

/// Settings of a session; [`Builder::open`] makes it.
pub struct Builder {
    folder: PathBuf,
    device: Device,
    threads: Option<usize>,
    context: Option<usize>,
    kv_tokens: Option<usize>,
    sequences: usize,
    step_tokens: usize,
    budget: Option<u64>,
    progress: Option<OnProgress>,
    #[cfg(feature = "testing")]
    pub(crate) faults: crate::testing::Faults,
}

impl Builder {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            device: Device::Auto,
            threads: None,
            context: None,
            kv_tokens: None,
            sequences: 32,
            step_tokens: 512,
            budget: None,
            progress: None,
            #[cfg(feature = "testing")]
            faults: crate::testing::Faults::default(),
        }
    }

    /// Where to compute.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Threads on the CPU; by default one for each processor that this process may use.
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = Some(count);
        self
    }

    /// Tokens, prompt and reply together, of one request; by default what the model was made for, or what the KV
    /// cache holds where that is less.
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Tokens that the KV cache holds over all requests that run at once; 8192 by default, or the context length if
    /// one is given and larger.
    pub fn kv_tokens(mut self, tokens: usize) -> Self {
        self.kv_tokens = Some(tokens);
        self
    }

    /// Requests that run at once; 32 by default. More wait.
    pub fn max_sequences(mut self, count: usize) -> Self {
        self.sequences = count;
        self
    }

    /// Tokens of one step: a longer prompt is computed in chunks of this size, and others decode between them. 512
    /// by default. Never changes a result.
    pub fn step_tokens(mut self, count: usize) -> Self {
        self.step_tokens = count;
        self
    }

    /// Refuses to open if weights, cache and workspace together need more than this many bytes.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Is called as loading goes on, from the threads that load.
    pub fn on_progress(mut self, call: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Box::new(call));
        self
    }

    /// Reads the checkpoint, checks all of it, and starts the session.
    ///
    /// # Errors
    /// A setting out of bounds; a file that is missing or malformed; weights that do not fit the config or are not
    /// finite; memory over budget or not to be had.
    pub fn open(self) -> Result<Session> {
        let threads = self.thread_count()?;
        let arch = Arch::open(&self.folder.join("config.json"))?;
        let checkpoint = Checkpoint::open(&self.folder)?;
        let weights = Weights::find(&arch, &checkpoint)?;
        let limits = self.limits(&arch)?;
        let plan = Plan::new(&arch, weights.dtype(), limits)?;
        let memory = MemoryPlan {
            weights_bytes: weights.bytes(),
            kv_bytes: plan.kv_bytes(),
            workspace_bytes: plan.bytes() - plan.kv_bytes(),
            kv_tokens: limits.blocks * crate::backend::BLOCK,
        };
        if let Some(budget) = self.budget
            && memory.total_bytes() > budget
        {
            let limit = format!("the budget is {budget}");
            return Err(Error::Memory {
                needed: memory.total_bytes(),
                what: "weights, KV cache, workspace",
                limit,
            });
        }
        // The arena is locked, so all of it must be there: asking for more would end some process, not this call.
        if let Some(available) = available_bytes()
            && plan.bytes() > available
        {
            let limit = format!("the system has {available} available");
            return Err(Error::Memory { needed: plan.bytes(), what: "KV cache and workspace", limit });
        }
        let defaults = self.defaults(&arch, limits.context)?;
        let text = match defaults.tokenizer_file.exists() {
            true => Some(Text::open(&self.folder, arch.vocab)?),
            false => None,
        };
        check_finite(&weights, threads, self.progress.as_deref())?;
        let parts = Parts { arch, weights, plan, text, defaults, limits, memory };
        let isa = match self.device {
            Device::Reference => return self.start(parts, Reference::default()),
            Device::Auto | Device::Cpu => Isa::best(),
            Device::CpuWith(name) => Isa::named(name).ok_or_else(|| {
                let names: Vec<_> = Isa::available().iter().map(|isa| isa.name).collect();
                Error::request("device", format!("an instruction set of this machine: {}", names.join(", ")))
            })?,
        };
        self.start(parts, Cpu::new(threads, isa)?)
    }

    fn thread_count(&self) -> Result<usize> {
        const MAX_THREADS: usize = 1024;
        match self.threads {
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)),
            Some(count) if (1..=MAX_THREADS).contains(&count) => Ok(count),
            Some(_) => Err(Error::request("threads", format!("from 1 to {MAX_THREADS}"))),
        }
    }

    fn limits(&self, arch: &Arch) -> Result<Limits> {
        const DEFAULT_KV_TOKENS: usize = 8192;
        const MAX_TOKENS: usize = 1 << 31;
        const MAX_BATCH: usize = 1 << 16;
        let within = |field, value: usize, max: usize| match (1..=max).contains(&value) {
            true => Ok(value),
            false => Err(Error::request(field, format!("from 1 to {max}"))),
        };
        let context =
            self.context.map(|tokens| within("context_length", tokens, arch.context)).transpose()?;
        let kv_tokens = self.kv_tokens.unwrap_or(context.unwrap_or(1).max(DEFAULT_KV_TOKENS));
        let blocks = blocks_for(within("kv_tokens", kv_tokens, MAX_TOKENS)?);
        let held = blocks * crate::backend::BLOCK;
        if context.is_some_and(|context| context > held) {
            return Err(Error::request("context_length", format!("at most kv_tokens, {held}")));
        }
        let sequences = within("max_sequences", self.sequences, MAX_BATCH)?;
        let step_tokens = within("step_tokens", self.step_tokens, MAX_BATCH)?.max(sequences);
        Ok(Limits { step_tokens, sequences, blocks, context: context.unwrap_or(arch.context.min(held)) })
    }

    /// What `generation_config.json` says; its sampling only where it says `do_sample`.
    fn defaults(&self, arch: &Arch, context: usize) -> Result<Defaults> {
        let json = Json::open_if_there(&self.folder.join("generation_config.json"))?;
        let mut eos = arch.eos.clone();
        eos.extend(json.token_ids("eos_token_id")?);
        eos.sort_unstable();
        eos.dedup();
        let mut sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
        if json.flag("do_sample", false)? {
            let number = |name: &str, default: f32, max: f32| {
                let value = json.positive(name)?.map_or(default, |value| value as f32);
                if value <= max { Ok(value) } else { Err(json.wrong(name, format!("at most {max}"))) }
            };
            sampling.temperature = number("temperature", 1.0, 2.0)?;
            sampling.top_p = number("top_p", 1.0, 1.0)?;
            if let Some(value) = json.field("top_k") {
                let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
                sampling.top_k = count.ok_or_else(|| json.wrong("top_k", "a whole number from 0"))?;
            }
            if json.field("min_p").is_some_and(|value| value.as_f64() != Some(0.0)) {
                sampling.min_p = number("min_p", 0.0, 1.0)?;
            }
        }
        let tokenizer_file = self.folder.join("tokenizer.json");
        Ok(Defaults { sampling, eos, context, vocab: arch.vocab, tokenizer_file })
    }

    fn start<B: Backend + 'static>(self, parts: Parts, mut backend: B) -> Result<Session>
    where
        B::Weight: 'static,
    {
        let Parts { arch, weights, plan, text, defaults, limits, memory } = parts;
        let decoder = Decoder::new(arch, &weights, plan, limits.context, &mut backend)?;
        let device = backend.name();
        let vocab = defaults.vocab;
        let shared = Arc::new(Shared::default());
        #[cfg_attr(not(feature = "testing"), expect(unused_mut, reason = "only tests ask for faults"))]
        let mut worker = Worker::new(backend, decoder, text, defaults, limits, shared.clone());
        #[cfg(feature = "testing")]
        {
            worker.faults = self.faults;
        }
        let (submissions, inbox): (_, Receiver<Submission>) = channel();
        let thread = std::thread::Builder::new()
            .name("amnesic-worker".into())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || worker.run(&inbox))
            .map_err(Error::Thread)?;
        let context = limits.context;
        Ok(Session {
            submissions: Some(submissions),
            thread: Some(thread),
            shared,
            memory,
            context,
            vocab,
            device,
        })
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("folder", &self.folder)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Memory that the system can give without swapping, where it says so.
fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What loading hands to the device.
struct Parts {
    arch: Arch,
    weights: Weights,
    plan: Plan,
    text: Option<Text>,
    defaults: Defaults,
    limits: Limits,
    memory: MemoryPlan,
}

/// Reads every weight once, on all threads: finds what is not finite, and brings the file in from disk.
fn check_finite(
    weights: &Weights,
    threads: usize,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<()> {
    const PIECE_BYTES: usize = 4 << 20;
    let pieces: Vec<(&Tensor, &[u8])> = weights
        .iter()
        .flat_map(|tensor| tensor.bytes().chunks(PIECE_BYTES).map(move |piece| (tensor, piece)))
        .collect();
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let total_bytes = weights.bytes();
    let check = || -> Option<&Tensor> {
        while let Some((tensor, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            if !tensor.dtype.all_finite(piece) {
                return Some(tensor);
            }
            let done_bytes = done.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
            progress.iter().for_each(|call| call(Progress { done_bytes, total_bytes }));
        }
        None
    };
    let bad = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(pieces.len())).map(|_| scope.spawn(check)).collect();
        let mine = check();
        others
            .into_iter()
            .filter_map(|other| other.join().ok().flatten())
            .chain(mine)
            .min_by_key(|bad| &bad.name)
    });
    match bad {
        None => Ok(()),
        Some(tensor) => Err(Error::tensor(&tensor.file, &tensor.name, "hold finite values only")),
    }
}

/// A loaded model that serves requests and forgets them.
///
/// `Send + Sync`: any thread may call it; requests that run at the same time share steps. One thread of its own
/// computes (with its team), and all that is derived from a request lives in memory that is overwritten before a
/// call returns: on success, error, cancellation and panic. [`Session::close`] reports it; dropping does the same
/// silently, and returns when all is scrubbed.
#[derive(Debug)]
pub struct Session {
    submissions: Option<Sender<Submission>>,
    thread: Option<JoinHandle<ScrubReport>>,
    shared: Arc<Shared>,
    memory: MemoryPlan,
    context: usize,
    vocab: usize,
    device: String,
}

impl Session {
    /// Opens the checkpoint in `folder` with default settings.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::builder(folder).open()
    }

    /// Settings for a session on the checkpoint in `folder`.
    pub fn builder(folder: impl AsRef<Path>) -> Builder {
        Builder::new(folder.as_ref())
    }

    /// Runs one request to its end.
    ///
    /// # Errors
    /// The request is wrong, or the session is poisoned.
    pub fn generate(&self, request: Request) -> Result<Reply> {
        self.submit(vec![request]).map_err(|(_, error)| error)?.remove(0).reply()
    }

    /// Runs requests together; replies come in the same order. Each reply is the one that its request gets alone.
    ///
    /// # Errors
    /// [`Error::InBatch`] if a request is wrong, before any has run; or the session is poisoned.
    pub fn generate_batch(&self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Reply>> {
        let requests: Vec<Request> = requests.into_iter().collect();
        let mailboxes = self.submit(requests).map_err(|(index, error)| match error {
            Error::Poisoned(_) | Error::Closed => error,
            error => Error::InBatch { index, source: Box::new(error) },
        })?;
        mailboxes.iter().map(|mailbox| mailbox.reply()).collect()
    }

    /// Runs one request and gives its text as it comes. Dropping the stream cancels the request: it ends within one
    /// step, and the drop returns when it is scrubbed.
    ///
    /// # Errors
    /// As [`Session::generate`], at once for a wrong request.
    pub fn stream(&self, request: Request) -> Result<Stream<'_>> {
        let mailbox = self.submit(vec![request]).map_err(|(_, error)| error)?.remove(0);
        Ok(Stream { mailbox, taken: 0, _session: self })
    }

    /// Ends the session: overwrites all its memory, reads it back, and reports. Holds no content.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if memory was not zero when read back.
    pub fn close(mut self) -> Result<ScrubReport> {
        let report = self.join()?;
        match self.shared.poison.reason() {
            Some(reason @ crate::memory::poison::PoisonReason::ScrubFailed) => Err(Error::Poisoned(reason)),
            _ => Ok(report),
        }
    }

    /// Where it computes, for people.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Tokens, prompt and reply together, that one request may have.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// Tokens in the model's vocabulary: the ids of [`Request::tokens`] are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// What its memory goes to.
    pub fn memory(&self) -> MemoryPlan {
        self.memory
    }

    /// What it has computed so far. Metadata: no content.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, requests: Vec<Request>) -> std::result::Result<Vec<Arc<Mailbox>>, (usize, Error)> {
        for (index, request) in requests.iter().enumerate() {
            request.check().map_err(|error| (index, error))?;
        }
        let (outboxes, mailboxes): (Vec<Outbox>, Vec<_>) = requests.iter().map(|_| Outbox::pair()).unzip();
        let (answer, answered) = sync_channel(1);
        let submission = Submission { jobs: requests.into_iter().zip(outboxes).collect(), answer };
        let closed = || (0, self.shared.poison.reason().map_or(Error::Closed, Error::Poisoned));
        let submissions = self.submissions.as_ref().ok_or_else(closed)?;
        submissions.send(submission).map_err(|_| closed())?;
        answered.recv().map_err(|_| closed())??;
        Ok(mailboxes)
    }

    fn join(&mut self) -> Result<ScrubReport> {
        drop(self.submissions.take());
        self.thread.take().and_then(|thread| thread.join().ok()).ok_or(Error::Closed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.join(); // after `close` there is nothing left to join
    }
}

/// The text of one reply as it comes. See [`Session::stream`].
#[derive(Debug)]
pub struct Stream<'a> {
    mailbox: Arc<Mailbox>,
    taken: usize,
    /// Keeps the session open.
    _session: &'a Session,
}

impl Stream<'_> {
    /// Waits for the end, and gives the whole reply: also the text that was streamed.
    ///
    /// # Errors
    /// The session is poisoned, or the error was already given by the iterator.
    pub fn finish(self) -> Result<Reply> {
        self.mailbox.reply()
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.mailbox.next_piece(&mut self.taken)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.mailbox.cancel();
    }
}
