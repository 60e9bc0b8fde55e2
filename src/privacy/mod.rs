//! What an application sets, is told, and can prove about privacy.
//!
//! Never lives here: content. Nothing in this module has a field that could hold text, token ids or tensor values, but
//! for what the debug sampler seals for the application's own key.

mod alias;
#[cfg(feature = "debug-sampler")]
pub mod debug_sampler;
mod disclosure;
mod doctor;
mod lockdown;
mod models;
mod policy;
pub mod process;
pub(crate) mod receipt;

pub use crate::memory::ledger::{Memory, NotCovered};
pub use alias::Alias;
pub use disclosure::{Disclosure, DisclosureReason, ThirdPartyRequest};
pub use doctor::{Diagnosis, Finding, Severity, SwapKind, doctor, doctor_for};
pub use lockdown::{Enforced, Lockdown, LockdownError, Requirement, Restriction};
pub use models::{AliasReason, Local, Model, ModelAliases, PolicyClass, ThirdParty};
pub use policy::{Anthropic, Google, Policy, Provider, Retention, Trains};
pub use receipt::{
    BrokenChain, DeviceReceipt, Link, Malformed, ReceiptHash, ScrubReceipt, Subject, verify_receipts,
};
