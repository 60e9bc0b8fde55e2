//! Receipts say whether the process was locked down when they were made. A process of its own: there is no way back.

mod common;

use amnesic::privacy::{Allocator, Environment, Lockdown, LockdownState, Requirement};
use amnesic::{Request, Session};
use common::Recipe;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    Recipe::small(704).write(folder.path(), Some("byte_level"));
    let session = Session::builder(folder.path()).threads(1).accept_unscrubbed_heap().open().unwrap();
    let environment = || -> Environment {
        let reply = session.generate(Request::prompt("one").max_tokens(1)).unwrap();
        *reply.receipt.environment.unwrap()
    };
    let before = environment();
    assert_eq!((before.lockdown, before.allocator), (LockdownState::None, Allocator::AcceptedUnscrubbed));
    let enforced = match Lockdown::new().requirement(Requirement::BestEffort).enforce() {
        Ok(enforced) => enforced,
        Err(error) => return println!("skipped: {error}"),
    };
    let expected = if enforced.missing.is_empty() { LockdownState::Full } else { LockdownState::Partial };
    let after = environment();
    assert_eq!(after.lockdown, expected);
    let mut same = before;
    same.lockdown = expected;
    assert_eq!(after, same, "nothing else changes in a session");
    println!("{enforced}: {expected:?}");
}
