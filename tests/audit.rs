//! The audit of what one tenant of a session can tell of another's requests, by time and by counting.
//!
//! It began as the audit of prompt caches (Gu et al., "Auditing Prompt Caching in Language Model APIs", 2025): 250 prompts
//! that somebody has sent before and 250 that nobody has, shuffled, and a two-sample Kolmogorov-Smirnov test on the times to
//! the first token. For 250 each, p < 1e-8 is D >= 0.272. Every other channel is audited alike: 250 trials in which the
//! other tenant does one thing and 250 in which it does another, shuffled, and what the onlooker sees of each.
//!
//! Trials are shuffled, so where nothing is told the two samples are exchangeable however noisy the machine is: D is above
//! the bound once in 10^8 runs. Where something must be told, so that the audit is seen to see, the numbers are counted
//! (`audit/steps.rs`), or the difference is as large as a whole prompt. `cargo test --release --test audit -- --nocapture`
//! prints the table of docs/audit.md.

#[path = "audit/earlier.rs"]
mod earlier;
#[path = "audit/steps.rs"]
mod steps;

mod common;

use std::time::Instant;

use amnesic::{Conversation, Reply, Request, Session};
use common::{Random, default_model};

amnesic::install_scrubbing_allocator!();

const TRIALS: usize = 250;
/// Where p = 1e-8.
const DETECTED: f64 = 0.272;
const PROMPT: usize = 128;

fn prompt(random: &mut Random, vocab: usize) -> Vec<u32> {
    (0..PROMPT).map(|_| random.below(vocab) as u32).collect()
}

/// Hits and misses in random order: true for a hit.
fn shuffled(random: &mut Random) -> Vec<bool> {
    let mut trials: Vec<bool> = (0..2 * TRIALS).map(|trial| trial < TRIALS).collect();
    for i in (1..trials.len()).rev() {
        trials.swap(i, random.below(i + 1));
    }
    trials
}

/// The largest distance between the two empirical distributions.
fn kolmogorov_smirnov(hits: &mut [f64], misses: &mut [f64]) -> f64 {
    hits.sort_by(f64::total_cmp);
    misses.sort_by(f64::total_cmp);
    let share =
        |times: &[f64], at: f64| times.partition_point(|&time| time <= at) as f64 / times.len() as f64;
    let all = hits.iter().chain(misses.iter());
    all.map(|&at| (share(hits, at) - share(misses, at)).abs()).fold(0.0, f64::max)
}

/// What an onlooker sees, in `N` numbers, of 250 trials of each of two kinds; how far apart their distributions are.
/// `trial` is told which kind it is.
fn distances<const N: usize>(
    channel: &str,
    seen: [&str; N],
    random: &mut Random,
    mut trial: impl FnMut(&mut Random, bool) -> [f64; N],
) -> [f64; N] {
    let mut samples = [const { (Vec::new(), Vec::new()) }; N];
    for kind in shuffled(random) {
        for (number, (ones, others)) in trial(random, kind).into_iter().zip(&mut samples) {
            if kind { ones } else { others }.push(number);
        }
    }
    let distances = samples.map(|(mut ones, mut others)| kolmogorov_smirnov(&mut ones, &mut others));
    for (what, distance) in seen.iter().zip(distances) {
        println!("| {channel} | {what} | {distance:.3} |");
    }
    distances
}

fn assert_untold<const N: usize>(distances: [f64; N]) {
    assert!(
        distances.iter().all(|&distance| distance < DETECTED),
        "{distances:?}: another tenant's content shows"
    );
}

fn assert_told<const N: usize>(distances: [f64; N]) {
    assert!(
        distances.iter().all(|&distance| distance >= DETECTED),
        "{distances:?}: the audit would see nothing"
    );
}

/// The time until a first token, as the one who asks sees it, and the tokens that were cached.
fn ask(send: impl FnOnce(Request) -> amnesic::Result<Reply>, ids: &[u32]) -> (f64, usize) {
    let request = Request::tokens(ids.to_vec()).max_tokens(1);
    let started = Instant::now();
    let reply = send(request).unwrap();
    (started.elapsed().as_secs_f64(), reply.usage.cached_tokens)
}

#[test]
fn the_statistic_is_right() {
    let mut even: Vec<f64> = (0..250).map(|i| f64::from(2 * i)).collect();
    let mut odd: Vec<f64> = (0..250).map(|i| f64::from(2 * i + 1)).collect();
    assert!(kolmogorov_smirnov(&mut even, &mut odd) < 0.005);
    let mut far: Vec<f64> = (0..250).map(|i| f64::from(i + 1000)).collect();
    assert_eq!(kolmogorov_smirnov(&mut even, &mut far), 1.0);
    let mut shifted: Vec<f64> = even.iter().map(|time| time + 150.0).collect();
    assert!((kolmogorov_smirnov(&mut even, &mut shifted) - 0.3).abs() < 0.01);
}

#[test]
fn the_same_conversation_is_detected_and_other_tenants_are_not() {
    let session = Session::builder(default_model()).kv_tokens(16_384).open().unwrap();
    let random = &mut Random(2025);
    let vocab = session.vocab_size();

    // Positive control: the second turn of a conversation against the same prompt in a new one.
    let (mut hits, mut misses) = (Vec::new(), Vec::new());
    for hit in shuffled(random) {
        let first = prompt(random, vocab);
        let mut conversation = session.conversation();
        let reply = conversation.generate(Request::tokens(first.clone()).max_tokens(1)).unwrap();
        let mut whole = first;
        whole.extend(reply.tokens());
        whole.push(1);
        let (time, cached) = match hit {
            true => ask(|request| conversation.generate(request), &[1]),
            false => ask(|request| session.conversation().generate(request), &whole),
        };
        assert_eq!(cached, if hit { PROMPT } else { 0 });
        if hit { &mut hits } else { &mut misses }.push(time);
    }
    let same = kolmogorov_smirnov(&mut hits, &mut misses);
    println!("same conversation: D = {same:.3}");
    assert!(same >= DETECTED, "D = {same}: the audit would see nothing");

    // Two tenants: one has a conversation that holds the prompt, and has sent it alone too; the other asks.
    let (mut hits, mut misses) = (Vec::new(), Vec::new());
    let mut tenant: Conversation = session.conversation();
    for hit in shuffled(random) {
        let known = prompt(random, vocab);
        drop(std::mem::replace(&mut tenant, session.conversation()));
        tenant.generate(Request::tokens(known.clone()).max_tokens(1)).unwrap();
        session.generate(Request::tokens(known.clone()).max_tokens(1)).unwrap();
        let asked = if hit { known } else { prompt(random, vocab) };
        let (time, cached) = ask(|request| session.generate(request), &asked);
        assert_eq!(cached, 0);
        if hit { &mut hits } else { &mut misses }.push(time);
    }
    let across = kolmogorov_smirnov(&mut hits, &mut misses);
    println!("across tenants: D = {across:.3}");
    assert!(across < DETECTED, "D = {across}: one tenant can tell what another has asked");
}
