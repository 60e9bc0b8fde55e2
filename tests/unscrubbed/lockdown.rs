//! Receipts say whether the process was locked down when they were made. A process of its own: there is no way back.

use amnesic::privacy::{Allocator, Environment, Lockdown, LockdownState, Requirement};
use amnesic::{Request, Session};

use crate::common::{Recipe, in_a_process_of_its_own};

#[test]
fn receipts_say_whether_the_process_is_locked_down() {
    in_a_process_of_its_own(
        module_path!(),
        "receipts_say_whether_the_process_is_locked_down",
        receipts_before_and_after,
    );
}

fn receipts_before_and_after() {
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
