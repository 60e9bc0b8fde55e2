//! What a session is, and what it does just now.

use std::sync::PoisonError;

use super::Session;
use crate::backend::Counters;
use crate::engine::status::Load;
use crate::error::Error;
use crate::memory_plan::MemoryPlan;
use crate::model_info::ModelInfo;
use crate::note::Note;
use crate::privacy::Evidence;

impl Session {
    /// Where it computes, for people. [`Session::open`] has an example.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Why [`Device::Auto`](crate::Device::Auto) took the CPU: there is no driver or no device
    /// ([`Error::DeviceUnavailable`]), or the model does not fit ([`Error::Memory`]). None where another device was
    /// asked for or found.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// if let Some(why) = session.fell_back() {
    ///     eprintln!("computing on {}: {why}", session.device());
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn fell_back(&self) -> Option<&Error> {
        self.fell_back.as_ref()
    }

    /// Values in the checkpoint's files that are out of bounds, and what is used in their place: of sampling, in
    /// `generation_config.json`. [`Note`] has an example.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The hashes of the files that it was opened from, and the quote over the key that signs its receipts: what the hashes
    /// in every receipt's [`Environment`](crate::privacy::Environment) are of.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// for file in &session.evidence().files {
    ///     println!("{}: {} bytes", file.name, file.bytes);
    /// }
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Tokens, prompt and reply together, that one request may have; or a text to be embedded, special ones included.
    /// [`Session::count_tokens`] has an example.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// What the checkpoint says of itself: its family, size, quantization and license.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// assert_eq!(session.model().family, "llama");
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// The names of its adapters, as [`crate::Builder::adapter`] was given them.
    ///
    /// ```no_run
    /// let session = amnesic::Session::builder("models/default").adapter("polite", "adapters/polite").open()?;
    /// assert_eq!(session.adapters(), ["polite"]);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn adapters(&self) -> &[String] {
        &self.adapters
    }

    /// What its memory goes to.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// println!("{} MiB, {} of them weights", session.memory().total_bytes() >> 20, session.memory().weights_bytes >> 20);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn memory(&self) -> MemoryPlan {
        self.memory
    }

    /// What it has computed so far. Metadata: no content. [`Session::load`] has an example.
    pub fn counters(&self) -> Counters {
        *self.client.shared.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has to do at the moment. Metadata: no content.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let (load, counters) = (session.load(), session.counters());
    /// println!("{} run, {} wait; {} tokens in {} steps", load.running, load.waiting, counters.tokens, counters.steps);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn load(&self) -> Load {
        *self.client.shared.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
