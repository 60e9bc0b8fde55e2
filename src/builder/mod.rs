//! Settings of a session, and how it is opened: parse, check, plan, load, start.
//!
//! [`options`] has the settings, [`open`] the order of the steps and the choice of a device, [`parts`] what a checkpoint
//! has, [`plan`] how much memory that takes and what is refused. [`start`] loads a decoder and makes its worker,
//! [`encode`] does so for a checkpoint that embeds texts or scores them, [`opening`] starts the threads of either, and [`evidence`]
//! has what receipts say of both.

mod encode;
mod evidence;
mod open;
mod opening;
mod options;
mod parts;
mod plan;
mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::Quantize;
use crate::chat::ToolCallParser;
use crate::clock::Clock;
use crate::engine::receipts::Ties;
use crate::error::Result;
use crate::privacy::trace::OnEvent;
use crate::privacy::{Alias, Prices};
use crate::session::Session;
use crate::weights::files::Recording;
use crate::weights::progress::OnProgress;
use crate::weights::store::Files;

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

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("folder", &self.folder)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
