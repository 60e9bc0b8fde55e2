//! What an application sets, is told, and can prove about privacy.
//!
//! Never lives here: content. Nothing in this module has a field that could hold text, token ids or tensor values, but
//! for what the debug sampler seals for the application's own key.

pub(crate) mod receipt;

pub use crate::memory::ledger::{Memory, NotCovered};
pub use receipt::{
    BrokenChain, DeviceReceipt, Link, Malformed, ReceiptHash, ScrubReceipt, Subject, verify_receipts,
};
mod alias;
#[cfg(feature = "debug-sampler")]
pub mod debug_sampler;
mod disclosure;
mod models;
mod policy;

pub use alias::Alias;
pub use disclosure::{Disclosure, DisclosureReason, ThirdPartyRequest};
pub use models::{AliasReason, Local, Model, ModelAliases, PolicyClass, ThirdParty};
pub use policy::{Anthropic, Google, Policy, Provider, Retention, Trains};
