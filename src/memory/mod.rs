//! The ground floor: memory that is scrubbed.
//!
//! Lives here: overwriting ([`mod@scrub`]), owners that overwrite when they let go ([`secret`], [`json`]), the locked arena
//! ([`arena`]), its plan ([`layout`]) and what divides it ([`blocks`], [`workspace`]), the account of it all ([`ledger`]), the sticky
//! failure flag ([`poison`]), the stack cleaner ([`stack`]) and the encryption of what rests ([`seal`]).
//!
//! **Invariant:** nothing here knows a model, a request or a device. A region is scrubbed when it is released,
//! never at its next use, and releasing takes a [`Scrubbed`] token that only `scrub.rs` can make.

pub mod arena;
pub mod blocks;
mod buffer;
pub mod heap;
pub mod json;
pub mod layout;
pub mod ledger;
pub mod poison;
pub mod registers;
pub mod scrub;
pub mod seal;
pub mod secret;
pub mod stack;
pub mod thread;
pub mod workspace;

pub use arena::Arena;
pub use layout::{BufferLimits, Layout, Region};
pub use scrub::{Scrubbed, scrub};
pub use secret::Secret;
