//! What shows while two tenants share steps: how many tokens one gets beside the other, how far they are apart, and when
//! it is done. Counted in work (steps and rows), so that no machine is too noisy; and once more by the clock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use amnesic::clock::Clock;
use amnesic::{Request, Session, Speculation, Tenant};

use super::common::{Random, Recipe};
use super::{assert_told, assert_untold, distances};

const VOCAB: usize = 300;
const CONTEXT: usize = 4096;
/// The other tenant's reply.
const REPLY: usize = 24;

/// A small checkpoint without a tokenizer.
fn checkpoint(seed: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["max_position_embeddings"] = CONTEXT.into();
    recipe.seed = seed;
    recipe.write(folder.path(), None);
    folder
}

/// Tells as time what a session has computed: a millisecond for a step, a microsecond for a token in it.
#[derive(Debug)]
struct Work {
    began: Instant,
    /// Never dropped: the last one to know a session would wait for its threads, and this may be one of them.
    session: &'static OnceLock<Session>,
}

impl Clock for Work {
    fn now(&self) -> Instant {
        let counters = self.session.get().map(Session::counters).unwrap_or_default();
        self.began + Duration::from_millis(counters.steps) + Duration::from_micros(counters.tokens)
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }
}

/// A session with a draft model, whose time is its work.
fn session_by_work() -> &'static Session {
    let (folder, draft) = (checkpoint(7), checkpoint(99));
    let session: &'static OnceLock<Session> = Box::leak(Box::default());
    let clock = Work { began: Instant::now(), session };
    let builder = Session::builder(folder.path()).draft(draft.path()).threads(1).clock(clock);
    session.get_or_init(|| builder.open().unwrap())
}

/// A reply that says the same over and over, or one that does not; both cost the sampler the same.
fn reply(random: &mut Random, repeats: bool, speculation: Speculation) -> Request {
    let prompt: Vec<u32> = (0..12).map(|_| random.below(VOCAB) as u32).collect();
    Request::tokens(prompt)
        .max_tokens(REPLY)
        .ignore_eos(true)
        .temperature(1.5)
        .seed(random.next())
        .logit_bias(7, if repeats { 100.0 } else { -100.0 })
        .speculate(speculation)
}

fn onlooker(tokens: usize) -> Request {
    Request::tokens([5, 6, 7]).max_tokens(tokens).ignore_eos(true)
}

const WAYS: [(&str, Speculation); 2] = [
    ("prompt lookup", Speculation::PromptLookup { ngram: 2, tokens: 6 }),
    ("draft model", Speculation::Draft { tokens: 4 }),
];

/// What an onlooker sees that is there from the other's first step to its last one, and then for a while.
fn beside(session: &Session, name: Option<Tenant>, way: usize, random: &mut Random) -> [f64; 3] {
    let (way, speculation) = WAYS[way];
    let channel =
        format!("speculation, {way}, {}", if name.is_some() { "one tenant" } else { "two tenants" });
    let seen = ["tokens meanwhile", "time to the first token", "time to the last token"];
    distances(&channel, seen, random, |random, repeats| {
        let mut both = [reply(random, repeats, speculation), onlooker(2 * REPLY)];
        if let Some(name) = name {
            both = both.map(|request| request.tenant(name));
        }
        let replies = session.generate_batch(both).unwrap();
        let guessed = replies[0].usage.drafted_tokens > 0;
        assert_eq!(guessed && repeats, name.is_some() && repeats, "it guesses among its own alone");
        // one in each step that the other takes part in
        let meanwhile = replies[0].timing.total.as_millis() as f64;
        [meanwhile, micros(replies[1].timing.first_token), micros(replies[1].timing.total)]
    })
}

fn micros(duration: Duration) -> f64 {
    duration.as_micros() as f64
}

#[test]
fn guesses_that_are_right_do_not_show_in_the_steps_of_another_tenant() {
    let session = session_by_work();
    let random = &mut Random(71);
    for way in 0..WAYS.len() {
        assert_untold(beside(session, None, way, random));
        let [meanwhile, _, last] = beside(session, Some(Tenant::from("both")), way, random);
        assert_told([meanwhile, last]);
    }
}

/// The onlooker asks again and again, and counts how often it is answered before the other is done.
#[test]
fn guesses_that_are_right_do_not_show_to_who_comes_and_goes() {
    let session = session_by_work();
    let random = &mut Random(72);
    let speculation = WAYS[0].1;
    let probe = |random: &mut Random, repeats, tenant: Option<Tenant>| {
        let named = |request: Request| match tenant {
            Some(tenant) => request.tenant(tenant),
            None => request,
        };
        let first = [reply(random, repeats, speculation).max_tokens(6 * REPLY), onlooker(1)].map(named);
        let (mut steps, began) = (0, session.counters());
        std::thread::scope(|scope| {
            let other = scope.spawn(move || session.generate_batch(first).unwrap());
            while !other.is_finished() {
                session.generate(named(onlooker(1))).unwrap();
            }
            // the other's own steps: all of them but those that it had no part in
            steps = other.join().unwrap()[0].timing.total.as_millis();
        });
        assert!(session.counters().steps - began.steps >= steps as u64);
        [steps as f64]
    };
    let seen = ["steps until the other is done"];
    let apart = distances("speculation, probes, two tenants", seen, random, |random, repeats| {
        probe(random, repeats, None)
    });
    assert_untold(apart);
    let same = distances("speculation, probes, one tenant", seen, random, |random, repeats| {
        probe(random, repeats, Some(Tenant::from(1_u64)))
    });
    assert_told(same);
}

/// The numbers of an onlooker with a stopwatch, who has a stream all the time.
#[test]
fn guesses_that_are_right_do_not_show_by_the_clock() {
    let folder = checkpoint(7);
    let session = Session::builder(folder.path()).threads(1).kv_tokens(2 * CONTEXT).open().unwrap();
    let random = &mut Random(73);
    let watch = |random: &mut Random, repeats, tenant: Option<Tenant>| {
        let named = |request: Request| match tenant {
            Some(tenant) => request.tenant(tenant),
            None => request,
        };
        let (done, watching) = (AtomicBool::new(false), AtomicBool::new(false));
        let (times, from, to) = std::thread::scope(|scope| {
            let onlooker = scope.spawn(|| {
                let mut stream = session.stream(named(onlooker(CONTEXT - 8))).unwrap();
                let mut times = Vec::new();
                while let Some(piece) = stream.next() {
                    piece.unwrap();
                    times.push(Instant::now());
                    watching.store(true, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        stream.interrupt();
                    }
                }
                times
            });
            while !watching.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let from = Instant::now();
            session.generate(named(reply(random, repeats, WAYS[0].1))).unwrap();
            let to = Instant::now();
            done.store(true, Ordering::SeqCst);
            (onlooker.join().unwrap(), from, to)
        });
        let meanwhile: Vec<Instant> = times.into_iter().filter(|time| (from..to).contains(time)).collect();
        let mut gaps: Vec<f64> = meanwhile.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        gaps.sort_by(f64::total_cmp);
        let median = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
        [meanwhile.len() as f64, median, (to - from).as_secs_f64()]
    };
    let seen = ["tokens meanwhile", "median time between tokens", "time of the other's request"];
    let apart = distances("speculation, by the clock, two tenants", seen, random, |random, repeats| {
        watch(random, repeats, None)
    });
    assert_untold(apart);
    // that the clock sees it within one tenant is printed, and counted above
    distances("speculation, by the clock, one tenant", seen, random, |random, repeats| {
        watch(random, repeats, Some(Tenant::from("both")))
    });
}
