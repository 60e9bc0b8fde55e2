//! The settings, each with its default: nothing is checked before [`Builder::open`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Builder, Device, KvCache};
use crate::backend::Quantize;
use crate::chat::ToolCallParser;
use crate::clock::{Clock, SystemClock};
use crate::engine::receipts::Ties;
use crate::privacy::{Alias, Attester, Event, Nonce, Prices, ReceiptHash, ScrubReceipt, Signer};
use crate::weights::progress::Progress;
use crate::weights::store::Files;

impl Builder {
    pub(super) fn new(folder: &Path) -> Self {
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

    pub(super) fn of_files(files: Files) -> Self {
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

    /// Requests that wait or run at once; 65,536 by default. More are refused: [`Error::Busy`](crate::Error::Busy).
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

    /// Takes a quote over the key that signs receipts when the session opens:
    /// [`Session::evidence`](crate::Session::evidence) has it, and the session's receipt; all others have its hash. Takes [`Builder::sign_receipts`].
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
    /// ([`Error::UnscrubbedHeap`](crate::Error::UnscrubbedHeap) otherwise). Then copies of text and of grammars that
    /// libraries make on the heap stay there after a request until somebody else happens to overwrite them, and every receipt says so:
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
}
