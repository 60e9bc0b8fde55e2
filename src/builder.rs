//! Settings of a session, and how it is opened: parse, check, plan, load, start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::cpu::{Cpu, Isa, Reference};
use crate::backend::cuda::Cuda;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::native::Native;
use crate::backend::{Backend, KvType, Pooling, Quantize};
use crate::chat::{self, ToolCallParser};
use crate::clock::{Clock, SystemClock};
use crate::engine::encode;
use crate::engine::encode::reader::{Reader, Settings};
use crate::engine::intake::{Defaults, Intake, Vocabulary};
use crate::engine::masks::Masks;
use crate::engine::models::{Model, Models};
use crate::engine::receipts::{Receipts, Ties};
use crate::engine::worker::Worker;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::memory::thread::{self, Depth};
use crate::memory_plan::MemoryPlan;
use crate::model::arch::Arch;
use crate::model::decoder::{Decoder, Limits, Plan, blocks_for};
use crate::model::encoder::{self, Encoder, EncoderPlan};
use crate::model::families;
use crate::model::sentence::Sentence;
use crate::model::weights::{Options, StepWeights, Weights};
use crate::model_info::ModelInfo;
use crate::note::Note;
use crate::opening::Opening;
use crate::privacy::trace::{self, OnEvent, Sizes, Telemetry};
use crate::privacy::{Alias, Event, Prices};
use crate::privacy::{Attester, Environment, Evidence, Nonce, ReceiptHash, ScrubReceipt, Signer};
use crate::sample::defaults;
use crate::session::Session;
use crate::source::Source;
use crate::weights::adapter::Adapter;
use crate::weights::files::Recording;
use crate::weights::json::Json;
use crate::weights::progress::{OnProgress, Progress};
use crate::weights::store::{Files, Held};
use crate::weights::{Dtype, Tensor, shards, store};

/// Where a session computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The first CUDA device, if there is one and the model fits into its memory; else the CPU, and then
    /// [`Session::fell_back`](crate::Session::fell_back) says why.
    #[default]
    Auto,
    /// A device of NVIDIA's, by its number; of compute capability 8.0 (Ampere) or later. The driver is looked for when
    /// the session opens. Products are of bf16, or of f16 where the checkpoint is; whole numbers are multiplied with bf16.
    Cuda(usize),
    /// For tests: the kernels of CUDA devices, compiled for the CPU when a session opens, and very slow.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    CudaEmulated,
    /// The CPU, with its best instruction set. Where the processor has AMX, Linux is asked to let this process use it.
    Cpu,
    /// The CPU with one instruction set by name: `amx`, `avx512bf16`, `avx512vnni`, `avx512`, `avxvnni`, `avx2`;
    /// `neonbf16`, `neondot`, `neon`; `portable`. All give the same bits, but that `amx`, `avx512bf16` and `neonbf16`
    /// round in their own way where weights or cache are bf16.
    CpuWith(&'static str),
    /// The reference that the others are tested against: plain loops in double precision, very slow.
    Reference,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvCache {
    /// That of the checkpoint.
    #[default]
    Checkpoint,
    /// bf16.
    Bf16,
    /// Eight bits with a scale for each position, head and side: about half of bf16's memory.
    Int8,
}

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
    pub(crate) quantize: Option<Quantize>,
    extra_tensors: bool,
    dequantize: bool,
    adapters: Vec<(String, PathBuf)>,
    merged: Option<PathBuf>,
    /// Files in memory, and what their paths begin with.
    held: Vec<(PathBuf, Files)>,
    kv_cache: KvCache,
    progress: Option<OnProgress>,
    max_requests: usize,
    draft: Option<PathBuf>,
    tool_call_parser: Option<ToolCallParser>,
    clock: Arc<dyn Clock>,
    ties: Ties,
    hash_files: bool,
    /// While it opens: what is read.
    recording: Option<Recording>,
    accept_unscrubbed_heap: bool,
    #[cfg(feature = "debug-sampler")]
    debug_sampler: Option<crate::privacy::debug_sampler::DebugSampler>,
    #[cfg(feature = "hub")]
    hub: crate::hub::Hub,
    model_name: Option<Alias>,
    prices: Option<Prices>,
    on_event: Option<OnEvent>,
    #[cfg(feature = "testing")]
    pub(crate) faults: crate::testing::taps::Faults,
}

impl Builder {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            device: Device::Auto,
            threads: None,
            context: None,
            kv_tokens: None,
            sequences: 32,
            step_tokens: 512,
            budget: None,
            quantize: None,
            extra_tensors: false,
            dequantize: false,
            adapters: Vec::new(),
            merged: None,
            held: Vec::new(),
            kv_cache: KvCache::Checkpoint,
            progress: None,
            max_requests: 1 << 16,
            draft: None,
            tool_call_parser: None,
            clock: Arc::new(SystemClock),
            ties: Ties::default(),
            hash_files: true,
            recording: None,
            accept_unscrubbed_heap: false,
            #[cfg(feature = "debug-sampler")]
            debug_sampler: None,
            #[cfg(feature = "hub")]
            hub: crate::hub::Hub::new(),
            model_name: None,
            prices: None,
            on_event: None,
            #[cfg(feature = "testing")]
            faults: crate::testing::taps::Faults::default(),
        }
    }

    pub(crate) fn of_files(files: Files) -> Self {
        let mut this = Self::new(Path::new(""));
        this.folder = this.hold(files);
        this
    }

    /// Takes files in memory; returns where they seem to be.
    fn hold(&mut self, files: Files) -> PathBuf {
        let root = match self.held.len() {
            0 => "memory:".to_owned(),
            others => format!("memory:{others}"),
        };
        let place = files.place(Path::new(&root));
        self.held.push((root.into(), files));
        place
    }

    /// Where to compute.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("models/default").device(amnesic::Device::Cpu).threads(4).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Threads on the CPU; by default one for each processor that this process may use.
    /// [`Builder::device`] has an example.
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = Some(count);
        self
    }

    /// Tokens, prompt and reply together, of one request; by default what the model was made for, or what the KV
    /// cache holds where that is less. A model whose rope is scaled was made for the factor times its original positions.
    ///
    /// ```no_run
    /// let builder = amnesic::Session::builder("models/default").context_length(4096).kv_tokens(32_768);
    /// let session = builder.max_sequences(16).max_requests(1000).step_tokens(1024).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn context_length(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Tokens that the KV cache holds over all requests that run at once; 8192 by default, or the context length if
    /// one is given and larger. [`Builder::context_length`] has an example.
    pub fn kv_tokens(mut self, tokens: usize) -> Self {
        self.kv_tokens = Some(tokens);
        self
    }

    /// Requests that run at once, each choice counted; 32 by default. More wait.
    /// [`Builder::context_length`] has an example.
    pub fn max_sequences(mut self, count: usize) -> Self {
        self.sequences = count;
        self
    }

    /// Requests that wait or run at once; 65,536 by default. More are refused: [`Error::Busy`].
    /// [`Builder::context_length`] has an example.
    pub fn max_requests(mut self, count: usize) -> Self {
        self.max_requests = count;
        self
    }

    /// A smaller checkpoint with the same vocabulary, which guesses for requests that ask for it
    /// ([`crate::Speculation::Draft`]). It is quantized like the main one, and has a KV cache of its own for as many
    /// tokens.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("Qwen3-8B").draft("Qwen3-0.6B").open()?;
    /// let request = amnesic::Request::prompt("Once upon a time").speculate(amnesic::Speculation::Draft { tokens: 4 });
    /// let reply = session.generate(request)?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn draft(mut self, folder: impl AsRef<Path>) -> Self {
        self.draft = Some(folder.as_ref().to_owned());
        self
    }

    /// Takes a draft checkpoint, like [`Builder::draft`], whose files are in memory.
    /// [`Files`] has an example of such files.
    pub fn draft_files(mut self, files: Files) -> Self {
        self.draft = Some(self.hold(files));
        self
    }

    /// How the model writes calls of tools, where neither its chat template nor its added tokens tell; a request can name
    /// another format ([`crate::Request::tool_call_parser`]).
    ///
    /// ```no_run
    /// use amnesic::{Session, ToolCallParser};
    ///
    /// let session = Session::builder("path/to/checkpoint").tool_call_parser(ToolCallParser::Pythonic).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn tool_call_parser(mut self, parser: ToolCallParser) -> Self {
        self.tool_call_parser = Some(parser);
        self
    }

    /// What tells the time; the system's clocks by default.
    ///
    /// ```
    /// use amnesic::clock::{Clock, SystemClock};
    ///
    /// let builder = amnesic::Session::builder("models/default").clock(SystemClock); // or a test's own
    /// # drop(builder);
    /// ```
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Ties the session's receipts into a chain, each holding the hash of the one before it, so that none can be taken
    /// out of an audit log unseen ([`crate::privacy::verify_receipts`]). The first one follows `previous`: the hash of
    /// the last session's last receipt, or [`ReceiptHash::START`].
    ///
    /// ```no_run
    /// use amnesic::privacy::ReceiptHash;
    ///
    /// let builder = amnesic::Session::builder("models/default").chain_receipts(ReceiptHash::START);
    /// let session = builder.on_receipt(|receipt| println!("{receipt}")).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn chain_receipts(mut self, previous: ReceiptHash) -> Self {
        self.ties.chain = Some(previous);
        self
    }

    /// Has the session's receipts signed, and chained ([`Builder::chain_receipts`]): behind [`ReceiptHash::START`] unless
    /// another hash is named. With the feature `signed-receipts` there is an
    #[cfg_attr(feature = "signed-receipts", doc = "[`Ed25519Signer`](crate::privacy::Ed25519Signer).")]
    #[cfg_attr(not(feature = "signed-receipts"), doc = "`Ed25519Signer`.")]
    ///
    /// ```
    /// # #[cfg(not(feature = "signed-receipts"))]
    /// # fn main() {}
    /// # #[cfg(feature = "signed-receipts")]
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use amnesic::privacy::{Ed25519Signer, PublicKey, ReceiptHash, Verifier};
    /// use amnesic::{Request, Session};
    ///
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let builder = Session::builder("models/default").accept_unscrubbed_heap();
    /// let signer = Ed25519Signer::generate()?;
    /// let key = PublicKey::ed25519(&signer.public_key_text())?;
    /// let session = builder.sign_receipts(signer).open()?;
    /// let reply = session.generate(Request::prompt("Once").max_tokens(2))?;
    /// Verifier::after(ReceiptHash::START).trust(key).receipt(&reply.receipt)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sign_receipts(mut self, signer: impl Signer + 'static) -> Self {
        self.ties.signer = Some(Arc::new(signer));
        self
    }

    /// Takes a quote over the key that signs receipts when the session opens: [`Session::evidence`] has it, and the
    /// session's receipt; all others have its hash. Takes [`Builder::sign_receipts`].
    ///
    /// ```no_run
    /// use amnesic::privacy::{Attester, Nonce, Signer};
    ///
    /// fn open(signer: impl Signer + 'static, attester: impl Attester + 'static) -> amnesic::Result<amnesic::Session> {
    ///     let builder = amnesic::Session::builder("models/default").sign_receipts(signer);
    ///     builder.attest(attester).receipt_nonce(Nonce::new([7; 32])).open()
    /// }
    /// ```
    pub fn attest(mut self, attester: impl Attester + 'static) -> Self {
        self.ties.attester = Some(Arc::new(attester));
        self
    }

    /// A number of the caller's that all receipts of the session have, and that a quote is taken over: it shows that they
    /// are no older than the number. [`Builder::attest`] has an example.
    pub fn receipt_nonce(mut self, nonce: Nonce) -> Self {
        self.ties.nonce = Some(nonce);
        self
    }

    /// Leaves out the SHA-256 of the checkpoint's files in receipts. By default they are worked out while the session opens,
    /// the weights' on a thread of its own beside loading.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("models/default").without_file_hashes().open()?;
    /// assert!(session.evidence().files.is_empty());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn without_file_hashes(mut self) -> Self {
        self.hash_files = false;
        self
    }

    /// Is called with the receipt of every request when it ended, also of those that failed or that nobody waited for,
    /// and at last with the session's: in the order of their chain, from the thread that computes, which waits for it.
    /// [`Builder::chain_receipts`] has an example.
    pub fn on_receipt(mut self, call: impl Fn(&ScrubReceipt) + Send + Sync + 'static) -> Self {
        self.ties.told = Some(Arc::new(call));
        self
    }

    /// Opens the session although the program's allocator does not overwrite what it frees
    /// ([`Error::UnscrubbedHeap`] otherwise). Then copies of text and of grammars that libraries make on the heap stay
    /// there after a request until somebody else happens to overwrite them, and every receipt says so:
    /// [`HeapTemporaries`](crate::privacy::NotCovered::HeapTemporaries) under `not_covered`. What the library itself
    /// derives from a request is overwritten in any case. Changes nothing where the allocator is installed
    /// ([`crate::install_scrubbing_allocator!`]).
    ///
    /// ```
    /// # fn main() -> amnesic::Result<()> {
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let reply = session.generate(amnesic::Request::prompt("A slice is").max_tokens(4))?;
    /// assert!(reply.receipt.not_covered.contains(&amnesic::privacy::NotCovered::HeapTemporaries));
    /// # Ok(())
    /// # }
    /// ```
    pub fn accept_unscrubbed_heap(mut self) -> Self {
        self.accept_unscrubbed_heap = true;
        self
    }

    /// The model's name in spans, metrics and events; by default the `model_type` in its `config.json`.
    ///
    /// ```no_run
    /// use amnesic::privacy::Alias;
    ///
    /// let session = amnesic::Session::builder("models/default").model_name(Alias::new("tiny/rust:1")?).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn model_name(mut self, name: Alias) -> Self {
        self.model_name = Some(name);
        self
    }

    /// What tokens cost: then replies, spans, metrics and events tell what each request did.
    ///
    /// ```no_run
    /// use amnesic::privacy::Prices;
    ///
    /// let prices = Prices::new().prompt_token_nano(150).completion_token_nano(600);
    /// let session = amnesic::Session::builder("models/default").prices(prices).open()?;
    /// let reply = session.generate(amnesic::Request::prompt("A slice is"))?;
    /// assert!(reply.usage.cost_nano > Some(0));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn prices(mut self, prices: Prices) -> Self {
        self.prices = Some(prices);
        self
    }

    /// Is called with what happens to the session and its requests, whether or not there is a `tracing` subscriber;
    /// before the caller of the request learns of it. It runs on the session's own threads and the callers', so it
    /// should be quick, and must not wait for the session. A panic in it is caught and has no effect.
    ///
    /// ```no_run
    /// let builder = amnesic::Session::builder("models/default");
    /// let session = builder.on_event(|event| println!("{event:?}")).open()?; // no content in it
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn on_event(mut self, call: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Box::new(call));
        self
    }

    /// Has a few requests captured, sealed for the application's own key: the one way in which content is kept. Each
    /// capture is told as an event, and counted in the request's and the session's receipts.
    /// [`privacy::debug_sampler`](crate::privacy::debug_sampler) has an example.
    #[cfg(feature = "debug-sampler")]
    pub fn debug_sampler(mut self, sampler: crate::privacy::debug_sampler::DebugSampler) -> Self {
        self.debug_sampler = Some(sampler);
        self
    }

    /// Tokens of one step: a longer prompt is computed in chunks of this size, and others decode between them. 512
    /// by default. Never changes a result. [`Builder::context_length`] has an example.
    pub fn step_tokens(mut self, count: usize) -> Self {
        self.step_tokens = count;
        self
    }

    /// Quantizes the weights as they are loaded, whatever their type in the checkpoint; by default they stay as they
    /// are.
    ///
    /// ```no_run
    /// use amnesic::{KvCache, Quantize, Session};
    ///
    /// let session = Session::builder("models/default").quantize(Quantize::Q8).kv_cache(KvCache::Int8).open()?;
    /// println!("{} bytes", session.memory().total_bytes());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn quantize(mut self, to: Quantize) -> Self {
        self.quantize = Some(to);
        self
    }

    /// Takes the matrices of a quantized checkpoint in as bf16. By default whole numbers stay what they are, and products
    /// with them round activations to eight bits, as [`Builder::quantize`] says: that is smaller and faster; this is
    /// nearer to what the checkpoint was made for. FP8 becomes bf16 in any case.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("path/to/a/gptq/checkpoint").dequantize().open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn dequantize(mut self) -> Self {
        self.dequantize = true;
        self
    }

    /// Takes a checkpoint with tensors that a model of its `config.json` does not read. By default those are an error,
    /// since they mean as a rule that the model is another one.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("path/to/checkpoint").allow_extra_tensors().open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn allow_extra_tensors(mut self) -> Self {
        self.extra_tensors = true;
        self
    }

    /// Loads an adapter of low rank (LoRA) beside the weights, from a folder as PEFT writes it: requests choose it by
    /// `name` ([`crate::Request::adapter`]), and those with different ones share steps. May be called for several. It may add
    /// to linear layers, to the embedding table and to the head, and scale what they give (DoRA, whose factors are worked out
    /// from the stored weights as they are loaded); modules that were trained as a whole are merged:
    /// [`Builder::merge_adapter`]. [`Request::adapter`](crate::Request::adapter) has an example.
    pub fn adapter(mut self, name: impl Into<String>, folder: impl AsRef<Path>) -> Self {
        self.adapters.push((name.into(), folder.as_ref().to_owned()));
        self
    }

    /// Adds an adapter, like [`Builder::adapter`], whose files are in memory. [`Files`] has an example of such files.
    pub fn adapter_files(mut self, name: impl Into<String>, files: Files) -> Self {
        let folder = self.hold(files);
        self.adapters.push((name.into(), folder));
        self
    }

    /// Makes an adapter part of the weights as they are loaded: then it costs nothing, and all requests run with it. Weights
    /// that are quantized already become bf16. It may be of low rank (LoRA, with lengths of its own in DoRA), on linear layers,
    /// the head and the embedding table, and have modules that were trained as a whole. Where the head is the embedding table,
    /// what an adapter does to one of them stays out of the other, as in PEFT while the adapter is not merged.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("models/default").merge_adapter("adapters/polite").open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn merge_adapter(mut self, folder: impl AsRef<Path>) -> Self {
        self.merged = Some(folder.as_ref().to_owned());
        self
    }

    /// Merges an adapter, like [`Builder::merge_adapter`], whose files are in memory.
    /// [`Files`] has an example of such files.
    pub fn merge_adapter_files(mut self, files: Files) -> Self {
        self.merged = Some(self.hold(files));
        self
    }

    /// Element type of the KV cache; that of the checkpoint by default. [`Builder::quantize`] has an example.
    pub fn kv_cache(mut self, cache: KvCache) -> Self {
        self.kv_cache = cache;
        self
    }

    /// Refuses to open if weights, cache and workspace together need more than this many bytes.
    ///
    /// ```no_run
    /// let builder = amnesic::Session::builder("models/default").memory_budget(8 << 30);
    /// match builder.open() {
    ///     Err(amnesic::Error::Memory { needed, .. }) => println!("{needed} bytes are needed"),
    ///     session => drop(session?),
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Is called as loading goes on, after each tensor, from the thread that opens the session.
    ///
    /// ```no_run
    /// let builder = amnesic::Session::builder("models/default");
    /// let session = builder.on_progress(|now| print!("\r{} of {}", now.done_bytes, now.total_bytes)).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn on_progress(mut self, call: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Box::new(call));
        self
    }

    /// Which hub ids are looked up in, and how. With the feature `hub` a folder that is not there and looks like
    /// `owner/name` or `owner/name@revision` is one: of the checkpoint, and of [`Builder::draft`].
    ///
    /// ```no_run
    /// let hub = amnesic::Hub::new().offline(true); // what is in the cache, and no connection
    /// let session = amnesic::Session::builder("Qwen/Qwen3-0.6B").hub(hub).open()?;
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn hub(mut self, hub: crate::hub::Hub) -> Self {
        self.hub = hub;
        self
    }

    /// Puts the folders of downloaded checkpoints in place of their ids.
    #[cfg(feature = "hub")]
    fn fetch(&mut self) -> Result<()> {
        for folder in [Some(&mut self.folder), self.draft.as_mut()].into_iter().flatten() {
            if !store::exists(folder)
                && !store::is_folder(folder)
                && let Some(id) = crate::hub::Id::parse(folder)
            {
                *folder = self.hub.fetch(&id)?;
            }
        }
        Ok(())
    }

    /// Reads the checkpoint, checks all of it, and starts the session. [`Session::builder`] has an example.
    ///
    /// # Errors
    /// The scrubbing allocator is neither installed nor done without ([`Error::UnscrubbedHeap`]); a setting out of
    /// bounds; a file that is missing or malformed; weights that do not fit the config or are not
    /// finite; memory over budget or not to be had.
    pub fn open(self) -> Result<Session> {
        trace::open(
            self.clock.clone(),
            || self.load(),
            |session| {
                let memory = session.memory();
                let sizes = Sizes {
                    context_tokens: session.context_length() as u64,
                    kv_tokens: memory.kv_tokens as u64,
                    memory_bytes: memory.total_bytes(),
                };
                (&*session.client.telemetry, sizes)
            },
        )
    }

    fn load(mut self) -> Result<Session> {
        if !self.accept_unscrubbed_heap && !crate::alloc::is_installed() {
            return Err(Error::UnscrubbedHeap);
        }
        let _held = Held::new(std::mem::take(&mut self.held));
        #[cfg(feature = "hub")]
        self.fetch()?;
        let threads = self.thread_count()?;
        if self.ties.attester.is_some() && self.ties.signer.is_none() {
            return Err(Error::request(
                "attest",
                "left out without sign_receipts: a quote is over the key that signs",
            ));
        }
        self.recording = self.hash_files.then(Recording::start).transpose()?;
        let found = match self.encoder_parts()? {
            Ok(parts) => Found::Encoder(Box::new(parts)),
            Err(source) => {
                let parts = self.parts_from(source)?;
                let draft = self.draft_parts(&parts)?;
                Found::Decoder(Box::new((parts, draft)))
            }
        };
        match self.device {
            Device::Reference => self.start_on(found, &host_memory(), || Ok(Reference::default())),
            Device::Cuda(device) => {
                let driver = Arc::new(Native::open(device)?);
                self.start_on(found, &device_memory(&*driver), || Ok(Cuda::new(driver.clone())))
            }
            #[cfg(feature = "testing")]
            Device::CudaEmulated => {
                let calls = self.faults.device_fails_in.unwrap_or(i64::MAX);
                let driver = crate::backend::cuda::emulated::Emulated::failing_after(calls);
                let driver = Arc::new(driver.counting(self.faults.read_bytes));
                self.start_on(found, &device_memory(&*driver), || Ok(Cuda::new(driver.clone())))
            }
            Device::Auto => {
                let fitting = Native::open(0).and_then(|driver| {
                    let memory = self.memory_plan::<Cuda<Native>>(&found);
                    self.check_memory(&memory, &device_memory(&driver)).map(|()| Arc::new(driver))
                });
                let why = match fitting {
                    Ok(driver) => {
                        let room = device_memory(&*driver);
                        return self.start_on(found, &room, || Ok(Cuda::new(driver.clone())));
                    }
                    Err(why) => why,
                };
                let isa = self.instruction_set()?;
                let mut session = self.start_on(found, &host_memory(), || Cpu::new(threads, isa))?;
                session.fell_back = Some(why);
                Ok(session)
            }
            Device::Cpu | Device::CpuWith(_) => {
                let isa = self.instruction_set()?;
                self.start_on(found, &host_memory(), || Cpu::new(threads, isa))
            }
        }
    }

    /// Loads what was found, and starts its threads.
    fn start_on<B: Backend + 'static>(
        self,
        found: Found,
        room: &Room,
        backend: impl Fn() -> Result<B>,
    ) -> Result<Session>
    where
        B::Weight: 'static,
    {
        let memory = self.memory_plan::<B>(&found);
        self.check_memory(&memory, room)?;
        match found {
            Found::Encoder(parts) => self.start_encoder(*parts, memory, backend()?),
            Found::Decoder(parts) => self.start(*parts, memory, backend),
        }
    }

    /// What is known before a device is chosen.
    #[cfg(any(test, feature = "forensics"))]
    pub(crate) fn parts(&self) -> Result<Parts> {
        self.parts_from(Source::open(&self.folder)?)
    }

    fn parts_from(&self, source: Source) -> Result<Parts> {
        let arch = source.arch()?;
        let limits = self.limits(&arch)?;
        self.parts_of(&self.folder, source, arch, limits)
    }

    /// What is known of a checkpoint that embeds texts or scores them: an encoder, one with `modules.json`, one that
    /// classifies texts. The source alone, which need not be read again, where it generates.
    pub(crate) fn encoder_parts(&self) -> Result<std::result::Result<EncoderParts, Source>> {
        let (source, sentence) = match Source::open(&self.folder)? {
            Source::Folder(folder) => {
                let sentence = Sentence::open(&folder)?;
                let source = Source::Folder(sentence.folder.clone());
                if !store::exists(&source.config_file())
                    && let Some(error) = shards::instead(&sentence.folder)
                {
                    return Err(error);
                }
                (source, sentence)
            }
            Source::Gguf(gguf) => {
                let sentence = Sentence::of(&gguf)?;
                (Source::Gguf(gguf), sentence)
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
        let plan = EncoderPlan::new(&arch, self.cache_type(weights.dtype()), limits, &steps)?;
        Ok(Ok(EncoderParts { source, arch, sentence, weights, steps, plan, limits }))
    }

    /// Tokens and texts of a step: a text is computed in one.
    fn encoder_limits(&self, arch: &Arch, sentence: &Sentence) -> Result<Limits> {
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

    fn parts_of(&self, folder: &Path, source: Source, arch: Arch, limits: Limits) -> Result<Parts> {
        let names = self.adapters.iter().map(|(name, _)| name);
        if names.clone().collect::<std::collections::BTreeSet<_>>().len() != names.count() {
            return Err(Error::request("adapter", "one of each name"));
        }
        let adapters = if folder == self.folder { &self.adapters[..] } else { &[] }; // a draft has none
        let merged = self.merged.as_deref().filter(|_| folder == self.folder);
        let adapts = merged.is_some() || !adapters.is_empty();
        // converters permute the rows of queries and keys of some architectures
        let own = families::find(arch.family.model_type).map(|family| family.interleaved);
        if adapts && matches!(source, Source::Gguf(_)) && own != Some(arch.interleaved) {
            let expected = "beside the safetensors of the model: a GGUF file of this architecture has the rows of queries and \
                            keys in another order than adapters have them";
            return Err(Error::request("adapter", expected));
        }
        let merged = merged.map(Adapter::open).transpose()?;
        let beside = adapters.iter().map(|(_, folder)| Adapter::open(folder)).collect::<Result<Vec<_>>>()?;
        let options = Options { merged: merged.as_ref(), beside: &beside, ..self.options() };
        let weights = Weights::find(&arch, &source.checkpoint()?, options)?;
        let plan = Plan::new(&arch, self.cache_type(weights.dtype()), limits, weights.adapters_need())?;
        Ok(Parts { source, arch, weights, plan, limits })
    }

    fn options(&self) -> Options<'static> {
        Options { extra: self.extra_tensors, dequantize: self.dequantize, ..Options::default() }
    }

    /// The draft checkpoint, within the main one's limits.
    fn draft_parts(&self, main: &Parts) -> Result<Option<Parts>> {
        let Some(folder) = &self.draft else { return Ok(None) };
        let source = Source::open(folder)?;
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

    pub(crate) fn instruction_set(&self) -> Result<Isa> {
        let Device::CpuWith(name) = self.device else {
            return Ok(Isa::best());
        };
        Isa::named(name).ok_or_else(|| {
            let names: Vec<_> = Isa::available().iter().map(|isa| isa.name).collect();
            Error::request("device", format!("an instruction set of this machine: {}", names.join(", ")))
        })
    }

    fn cache_type(&self, checkpoint: Dtype) -> KvType {
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
    fn memory_plan<B: Backend>(&self, found: &Found) -> MemoryPlan {
        let (parts, draft) = match found {
            Found::Encoder(parts) => {
                let EncoderParts { weights, steps, plan, limits, .. } = &**parts;
                let of_steps = steps.iter().flat_map(StepWeights::iter);
                let steps_bytes: u64 = of_steps.map(|tensor| B::weight_bytes(tensor, None)).sum();
                return MemoryPlan {
                    weights_bytes: weights.bytes::<B>(self.quantize) + steps_bytes,
                    kv_bytes: plan.kv_bytes(),
                    workspace_bytes: plan.bytes() - plan.kv_bytes() + B::scratch_bytes(None),
                    kv_tokens: limits.blocks * crate::backend::BLOCK,
                };
            }
            Found::Decoder(parts) => (&parts.0, parts.1.as_ref()),
        };
        let mut memory = MemoryPlan {
            weights_bytes: 0,
            kv_bytes: 0,
            workspace_bytes: 0,
            kv_tokens: parts.limits.blocks * crate::backend::BLOCK,
        };
        for Parts { weights, plan, arch, limits, .. } in [parts].into_iter().chain(draft) {
            memory.weights_bytes += weights.bytes::<B>(self.quantize);
            memory.kv_bytes += plan.kv_bytes();
            let scratch_bytes = B::scratch_bytes(Some((limits.outputs, arch.vocab)));
            memory.workspace_bytes += plan.bytes() - plan.kv_bytes() + scratch_bytes;
        }
        memory
    }

    /// # Errors
    /// The plan is over budget, or more than there is.
    fn check_memory(&self, memory: &MemoryPlan, room: &Room) -> Result<()> {
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

    fn limits(&self, arch: &Arch) -> Result<Limits> {
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
        let held = blocks * crate::backend::BLOCK;
        if context.is_some_and(|context| context > held) {
            return Err(Error::request("context_length", format!("at most kv_tokens, {held}")));
        }
        let sequences = within("max_sequences", self.sequences, MAX_BATCH)?;
        let step_tokens = within("step_tokens", self.step_tokens, MAX_BATCH)?.max(sequences);
        let outputs = (sequences + SPARE_OUTPUTS).min(step_tokens);
        let context = context.unwrap_or(arch.context.min(held));
        Ok(Limits { step_tokens, sequences, outputs, blocks, context })
    }

    /// What `generation_config.json` says; its sampling only where it says `do_sample`.
    fn defaults(
        &self,
        source: &Source,
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

    /// What the bits of a conversation depend on. Read now: files may be out of reach later.
    fn identity(&self, arithmetic: &str, vocab: usize) -> Result<Identity> {
        let hash = |folders: &[&Path]| Identity::of_files(folders).map_err(Error::read(folders[0]));
        let main: Vec<&Path> = [&self.folder].into_iter().chain(&self.merged).map(PathBuf::as_path).collect();
        let adapter = |(name, folder): &(String, PathBuf)| Ok((name.clone(), hash(&[folder])?));
        let settings = [
            ("arithmetic", arithmetic.to_owned()),
            ("kv cache", format!("{:?}", self.kv_cache)),
            ("quantize", format!("{:?}, {}", self.quantize, self.dequantize)),
        ];
        Ok(Identity {
            model: hash(&main)?,
            arithmetic: Identity::of_settings(&settings),
            adapters: self.adapters.iter().map(adapter).collect::<Result<_>>()?,
            vocab,
        })
    }

    fn start<B: Backend + 'static>(
        mut self,
        (parts, draft): (Parts, Option<Parts>),
        memory: MemoryPlan,
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
            let Parts { arch, weights, plan, limits, .. } = parts;
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
}

impl Session {
    /// Opens the checkpoint in `folder`, or in a GGUF file, with default settings. With the feature `hub` that may be an id, `owner/name` or
    /// `owner/name@revision`: then it is downloaded first, unless it is in the cache.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// println!("{} on {}", session.model().family, session.device());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Builder::open`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::builder(folder).open()
    }

    /// Settings for a session on the checkpoint in `folder`.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("models/default").threads(4).context_length(512).open()?;
    /// assert_eq!(session.context_length(), 512);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn builder(folder: impl AsRef<Path>) -> Builder {
        Builder::new(folder.as_ref())
    }

    /// Settings for a session on a checkpoint whose files are in memory: those of a folder under their names, or one GGUF
    /// file. [`Files`] has an example. All else is as with a folder: receipts have the same hashes under the same names.
    pub fn from_files(files: Files) -> Builder {
        Builder::of_files(files)
    }
}

impl Builder {
    /// What begins with the session: its telemetry, its receipts, for which the attester is asked, and where its threads meet.
    fn opening(&mut self, device: &str, model_type: Alias, kv_cache: KvType) -> Result<(Opening, Receipts)> {
        let (model, session) = (self.model_name.unwrap_or(model_type), getrandom::u64().unwrap_or(0));
        let environment = self.environment(device, model, kv_cache);
        let evidence = self.recording.take().map(|recording| self.evidence(recording)).transpose()?;
        let (clock, ties) = (self.clock.clone(), std::mem::take(&mut self.ties));
        let receipts = Receipts::new(session, clock.clone(), ties, environment, evidence.unwrap_or_default());
        let receipts = receipts.map_err(Error::Attestation)?;
        let (prices, on_event) = (self.prices, self.on_event.take());
        let telemetry = Telemetry { model, session, prices, on_event, clock: clock.clone() };
        Ok((Opening::new(Arc::new(telemetry), clock), receipts))
    }

    /// What receipts say of the session.
    fn environment(&self, device: &str, model: Alias, kv_cache: KvType) -> Environment {
        let quantize = match self.quantize {
            None => "none",
            Some(Quantize::Q8) => "q8",
            Some(Quantize::Q4) => "q4",
        };
        let kv_cache = match kv_cache {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Int8 => "int8",
        };
        Environment {
            backend: device.to_owned(),
            model: model.to_string(),
            quantize: quantize.to_owned(),
            dequantize: self.dequantize,
            kv_cache: kv_cache.to_owned(),
            ..Environment::of_process()
        }
    }

    /// The hashes of what was read.
    fn evidence(&self, recording: Recording) -> Result<Evidence> {
        let below = |folder: &Path, file: &Path| {
            let rest = file.strip_prefix(folder).ok()?;
            let name = if rest.as_os_str().is_empty() { Path::new(file.file_name()?) } else { rest };
            Some(name.to_string_lossy().replace(char::is_control, "\u{fffd}"))
        };
        let files = recording.finish(|file| {
            let draft = self.draft.iter().map(|folder| ("draft/".to_owned(), folder));
            let merged = self.merged.iter().map(|folder| ("merged/".to_owned(), folder));
            let beside = self.adapters.iter().map(|(name, folder)| (format!("adapters/{name}/"), folder));
            let others = draft.chain(merged).chain(beside);
            let own = (String::new(), &self.folder);
            // the longest folder: one may lie in another
            let names = others.chain([own]).filter_map(|(start, folder)| {
                Some((folder.as_os_str().len(), start + &below(folder, file)?))
            });
            names.max().map_or_else(|| file.to_string_lossy().into_owned(), |(_, name)| name)
        })?;
        Ok(Evidence { files: files.into_iter().map(Into::into).collect(), quote: None })
    }
}

impl Builder {
    fn start_encoder<B: Backend + 'static>(
        mut self,
        parts: EncoderParts,
        memory: MemoryPlan,
        mut backend: B,
    ) -> Result<Session>
    where
        B::Weight: 'static,
    {
        let EncoderParts { source, arch, sentence, weights, steps, plan, limits } = parts;
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
        let reader = Reader {
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
            encode::worker::Worker::new((backend, encoder, pooling), limits, opening.shell(receipts));
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

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("folder", &self.folder)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// What there is of memory.
struct Room {
    /// None where nobody says.
    bytes: Option<u64>,
    whose: String,
}

fn host_memory() -> Room {
    Room { bytes: available_bytes(), whose: "the system".into() }
}

fn device_memory(driver: &impl Driver) -> Room {
    Room { bytes: Some(driver.free_bytes()), whose: driver.name().into() }
}

/// What a folder has.
enum Found {
    Encoder(Box<EncoderParts>),
    /// And a draft model.
    Decoder(Box<(Parts, Option<Parts>)>),
}

/// Memory that the system can give without swapping, where it says so.
fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What loading hands to the device, of a checkpoint that embeds texts or scores them.
pub(crate) struct EncoderParts {
    pub source: Source,
    pub arch: Arch,
    pub sentence: Sentence,
    pub weights: Weights,
    pub steps: Vec<StepWeights>,
    pub plan: EncoderPlan,
    pub limits: Limits,
}

/// What loading hands to the device.
pub(crate) struct Parts {
    pub source: Source,
    pub arch: Arch,
    pub weights: Weights,
    pub plan: Plan,
    pub limits: Limits,
}
