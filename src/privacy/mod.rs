//! What an application sets, is told, and can prove about privacy.
//!
//! Never lives here: content. Nothing in this module has a field that could hold text, token ids or tensor values, but
//! for what the debug sampler seals for the application's own key.

mod alias;
#[cfg(feature = "debug-sampler")]
pub mod debug_sampler;
mod disclosure;
mod models;
mod policy;
mod registry;

pub use alias::Alias;
pub use disclosure::{Disclosure, DisclosureReason, ThirdPartyRequest};
pub use models::{Local, Model, PolicyClass, ThirdParty};
pub use policy::{Anthropic, Google, Policy, Provider, Retention, Trains};
pub use registry::{AliasReason, ModelAliases};
