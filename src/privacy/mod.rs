//! What an application sets, is told, and can prove about privacy.
//!
//! Never lives here: content. Nothing in this module has a field that could hold text, token ids or tensor values, but
//! for what the debug sampler seals for the application's own key.

mod alias;

pub use alias::Alias;
