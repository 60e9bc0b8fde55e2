//! Everything that callers see of sessions, with the scrubbing allocator, in one program: programs link the whole crate, which
//! takes longer than most tests. A test that measures or searches its process runs itself once more, alone
//! (`common::in_a_process_of_its_own`).

mod chat;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "testing")]
mod conversations;
mod disclosure;
#[cfg(feature = "testing")]
mod hostile;
#[cfg(feature = "hub")]
mod hub;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(feature = "testing")]
mod receipts;
#[cfg(feature = "testing")]
mod serving;
mod session;
#[cfg(feature = "testing")]
mod soak;
mod structured;
#[cfg(feature = "testing")]
mod text_api;
mod tool_calls;
#[cfg(all(feature = "schema", feature = "testing", target_os = "linux"))]
mod typed_reply;

amnesic::install_scrubbing_allocator!();
