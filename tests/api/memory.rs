//! A session needs what it planned: the pages of its weights, its arena, and little besides.

use amnesic::{Request, Session};

use crate::common::{Recipe, in_a_process_of_its_own};

const SLACK_BYTES: u64 = 64 << 20;

/// A field of /proc/self/status, in bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn peak_memory_is_weights_and_plan() {
    in_a_process_of_its_own(module_path!(), "peak_memory_is_weights_and_plan", peak_memory);
}

fn peak_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(20_000);
    recipe.config["hidden_size"] = 1024.into();
    recipe.config["intermediate_size"] = 4096.into();
    recipe.config["num_hidden_layers"] = 4.into();
    recipe.write(folder.path(), None);
    // Writing the checkpoint took memory of its own: count from here.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmHWM:");

    let session = Session::builder(folder.path()).kv_tokens(2048).open().unwrap();
    let requests = (0..8).map(|i| Request::tokens(vec![i; 100]).max_tokens(20));
    assert_eq!(session.generate_batch(requests).unwrap().len(), 8);

    let (peak, plan) = (status("VmHWM:") - before, session.memory());
    println!("{} MiB at the peak, {} MiB planned", peak >> 20, plan.total_bytes() >> 20);
    assert!(plan.weights_bytes > SLACK_BYTES, "too small to show a second copy of the weights");
    assert!(peak <= plan.total_bytes() + SLACK_BYTES, "{peak} bytes at the peak, {plan:?}");
    // the budget is the plan: a byte less is refused
    let open = |budget| Session::builder(folder.path()).kv_tokens(2048).memory_budget(budget).open();
    assert!(open(plan.total_bytes()).is_ok());
    assert!(matches!(open(plan.total_bytes() - 1), Err(amnesic::Error::Memory { .. })));
}
