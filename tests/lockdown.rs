//! A lockdown confines every thread of the process, for good, and a session goes on as before. Each case runs in a
//! process of its own: this program starts itself.

#[cfg(not(target_os = "linux"))]
fn main() {
    use amnesic::privacy::{Lockdown, LockdownError};
    let refused = Lockdown::new().enforce();
    assert!(matches!(refused, Err(amnesic::Error::Lockdown(LockdownError::NotSupported))));
    println!("test lockdown: says that this platform is not supported ... ok");
}

#[cfg(target_os = "linux")]
#[path = "lockdown/acts.rs"]
mod acts;
#[cfg(target_os = "linux")]
#[path = "lockdown/cases.rs"]
mod cases;
#[cfg(target_os = "linux")]
mod common;

amnesic::install_scrubbing_allocator!();

#[cfg(target_os = "linux")]
fn main() {
    cases::main();
}
