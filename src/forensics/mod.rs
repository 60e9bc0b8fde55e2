//! Searches memory, core dumps and logs for what a request left behind: with it an application proves its own binary.
//!
//! 1. A parent runs a canary request once, and makes [`Needles`] of it: its text and token ids, and by [`learn`] rows
//!    of keys, values, embeddings and logits, computed again from the weights.
//! 2. A child, a process of its own, runs the same request in the application's own way, and then searches all its
//!    writable memory ([`Needles::search_self`]). Needles reach it inverted (bitwise not) and are never turned back, so
//!    that the search does not find itself.
//! 3. The parent can also look into the child's memory ([`Needles::search_process`]), or into a core dump of it or a
//!    log ([`Needles::search_file`]).
//!
//! A search that finds nothing means something only if the same search finds what is there: so look once while the
//! request runs, too: [`Gate`] holds it still.
//!
//! # A whole test
//! With `harness = false` for it in Cargo.toml, and `amnesic` with the feature `forensics` among the dev-dependencies. The
//! feature changes nothing that a session does, so it does no harm where it is on in what is shipped:
//! ```no_run
//! use amnesic::forensics::{Findings, Gate, Needles, learn};
//! use amnesic::{Request, Session};
//! use std::process::Command;
//! use std::time::Duration;
//!
//! # #[cfg(any())]
//! amnesic::install_scrubbing_allocator!(); // covers copies of the text that libraries make
//!
//! // No plain copy of the canary may be in the program itself: each byte is inverted at compile time.
//! const CANARY: [u8; 35] = {
//!     let mut bytes = *b"The patient Zebulon Quartzwick says";
//!     let mut i = 0;
//!     while i < bytes.len() {
//!         bytes[i] = !bytes[i];
//!         i += 1;
//!     }
//!     bytes
//! };
//!
//! fn canary() -> String {
//!     let mut text = String::with_capacity(CANARY.len()); // does not move while it grows
//!     CANARY.iter().for_each(|byte| text.push(char::from(!byte)));
//!     text
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let builder = || Session::builder("models/default").threads(2);
//!     let request = || Request::prompt(canary()).max_tokens(48).temperature(0.0);
//!     if let Some(file) = std::env::args().nth(1) {
//!         // The child. Its needles are ready before: a search that took freed memory would overwrite what is there.
//!         let needles = serde_json::from_slice::<Needles>(&std::fs::read(file)?)?.prepare();
//!         // In place of this: whatever the application does with a request.
//!         let session = builder().open()?;
//!         let gate = Gate::default();
//!         let alive = std::thread::scope(|scope| {
//!             let look = scope.spawn(|| {
//!                 let reached = gate.wait(Duration::from_secs(60));
//!                 let alive = needles.search_self();
//!                 gate.open();
//!                 assert!(reached, "the request did not come so far");
//!                 alive
//!             });
//!             drop(session.generate(request().stop_at(12, &gate)));
//!             look.join().expect("the search does not panic")
//!         })?;
//!         session.close()?;
//!         println!("{}", serde_json::to_string(&[alive, needles.search_self()?])?);
//!         return Ok(());
//!     }
//!     let session = builder().open()?;
//!     let reply = session.generate(request())?;
//!     let prompt = session.tokenize(request())?;
//!     let needles = learn(builder(), prompt.ids(), reply.tokens())?.text("prompt", &canary()).text("reply", reply.text());
//!
//!     let file = std::env::temp_dir().join("needles.json");
//!     std::fs::write(&file, serde_json::to_vec(&needles)?)?;
//!     let child = Command::new(std::env::current_exe()?).arg(&file).output()?;
//!     assert!(child.status.success(), "the child failed");
//!     let [alive, after]: [Findings; 2] = serde_json::from_slice(&child.stdout)?;
//!     assert!(alive.has("prompt") && alive.has("keys of the prompt"), "the search is blind: {alive}");
//!     assert!(after.is_empty(), "left in memory: {after}");
//!     assert!(needles.search_bytes(&child.stderr).is_empty(), "the child's log holds content");
//!     Ok(())
//! }
//! ```
//!
//! # What is looked for
//! | needle | forms |
//! |---|---|
//! | [`Needles::text`] | UTF-8, UTF-16 and UTF-32, those in both orders of bytes, in parts of 12 characters |
//! | [`Needles::ids`] | `u16` where they fit, `u32`, and `u64`, which is `i64` too, in parts of six |
//! | [`Needles::row`] | `f32`, `f16`, `bf16`, one value behind another, in parts of 64 |
//! | [`Needles::keys`], [`Needles::values`] | the same, and as they lie packed in a KV cache: see [`Cache`] |
//! | [`Needles::bytes`] | as they are, in parts of 64 |
//!
//! In long content, 64 parts evenly spread are looked for. Parts that say too little to be no chance (few distinct
//! values, numbers in a row) are left out; content that has no other is refused with a panic.
//!
//! # Not found
//! What was encrypted, compressed, or computed from content in a way that no needle names: [`differential`] finds that
//! too, where two requests of equal shape can be compared; other forms of numbers, such as `f64`; content split between
//! pages that are not neighbours. Memory of the kernel and of devices. From outside, what a process has in
//! `memfd_secret`, which nobody else can read: [`Findings::unread`] counts it; and what it has made inaccessible, such as blocks
//! that the heap for secrets keeps for later. A search from inside reads both.
//!
//! Lives here: needles, the search, learning rows, and where a request stands still to be searched. Never will: anything that
//! holds content in the clear, and anything that changes what a session does with a request that asked for nothing here.

pub mod differential;
mod findings;
pub(crate) mod gate;
mod learn;
mod matcher;
mod needles;
#[cfg(target_os = "linux")]
mod own;
mod search;
#[cfg(test)]
mod tests;

pub use findings::{Finding, Findings};
pub use gate::Gate;
pub use learn::learn;
pub use needles::{Cache, Needles, Tolerance};

use crate::request::Request;

impl Request {
    /// Stands still at `gate`, its session with it, when the logits of token `token` of the reply, counted from 0, are
    /// there, and nothing was made of them yet.
    ///
    /// Behind the feature `forensics`. All other requests of the session wait meanwhile.
    pub fn stop_at(mut self, token: usize, gate: &Gate) -> Self {
        self.gates.add(token, gate);
        self
    }
}
