//! Whether the search would notice: each call of the scrub is left out in turn, as if somebody had removed it, and then
//! some request must leave something behind, or the session must say that a scrub failed.
//!
//! Which calls there are is not written down anywhere: they are those that happen while all cells run. With
//! `alloc::Scrubbing`, so that nothing may be left at all.

mod common;
#[path = "forensics/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
mod search;

use std::collections::BTreeMap;
use std::sync::Mutex;

use search::Job;

#[global_allocator]
static ALLOCATOR: amnesic::alloc::Scrubbing = amnesic::alloc::Scrubbing;

/// Calls whose absence cannot be seen from outside, and why.
const UNSEEN: &[(&str, &str)] = &[];

fn main() {
    if search::child() {
        return;
    }
    let (folder, needles) = search::prepare();
    let jobs = Job::all();
    // which jobs pass each call
    let calls: Mutex<BTreeMap<(String, u32), Vec<Job>>> = Mutex::default();
    search::two_at_a_time(&jobs, |job| {
        let scrubs = job.run(&["--watch"], folder.path(), &needles, true).scrubs;
        let mut calls = calls.lock().unwrap();
        scrubs.into_iter().for_each(|call| calls.entry(call).or_default().push(job));
    });
    let calls: Vec<_> = calls.into_inner().unwrap().into_iter().collect();
    println!("\nrunning {} tests", calls.len());
    let survivors = Mutex::new(0);
    let places: Vec<usize> = (0..calls.len()).collect();
    search::two_at_a_time(&places, |place| {
        let ((file, line), jobs) = &calls[place];
        let text = line.to_string();
        let left_out = ["--leave-out", file, &text];
        let killer =
            jobs.iter().find(|job| job.run(&left_out, folder.path(), &needles, true).complaint.is_some());
        let unseen = UNSEEN.iter().find(|(name, _)| file.ends_with(name));
        let verdict = match (killer, unseen) {
            (Some(job), _) => format!("ok (noticed by {})", job.name()),
            (None, Some((_, why))) => format!("ok (cannot be seen: {why})"),
            (None, None) => "FAILED".to_owned(),
        };
        println!("test without the scrub in {file}:{line} ... {verdict}");
        *survivors.lock().unwrap() += i32::from(killer.is_none() && unseen.is_none());
    });
    let survivors = survivors.into_inner().unwrap();
    println!("\ntest result: {} of {} calls can be left out unnoticed\n", survivors, calls.len());
    std::process::exit(i32::from(survivors > 0));
}
