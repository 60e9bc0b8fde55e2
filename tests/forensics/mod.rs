//! Searches a whole process for what a request left behind.
//!
//! The parent makes a checkpoint, learns by runs of its own what a canary request gives (ids, replies) and from the
//! weights what a model makes of it (rows), and starts a child for each cell of a matrix and for some scenes beside it,
//! two at a time. The child runs the canary request and searches all of its writable memory, a fork of it, or has its
//! parent search a core dump of it.
//!
//! Lives here: which cells there are (`cells.rs`), scenes (`scenarios.rs`), the canary (`canary.rs`), what may be found
//! (below). Never will: knowledge of where a session keeps something.

pub mod canary;
pub mod cells;
mod process;
mod rows;
mod scenarios;
mod stacks;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use amnesic::forensics::{Findings, Needles};

use cells::{Cell, Ending, Way};
use process::Told;

/// One process of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Cell(Cell),
    Scene(&'static str),
}

impl Job {
    /// All of them: scenes first, which are quick.
    pub fn all() -> Vec<Job> {
        let scenes = scenarios::ALL.iter().map(|(name, _)| Job::Scene(name));
        scenes.chain(Cell::all().map(Job::Cell)).collect()
    }

    pub fn name(self) -> String {
        match self {
            Self::Cell(cell) => cell.name(),
            Self::Scene(name) => name.to_owned(),
        }
    }

    fn has_grammar(self) -> bool {
        match self {
            Self::Cell(cell) => cell.has_grammar(),
            Self::Scene(name) => scenarios::has_grammar(name),
        }
    }

    /// Whether copies of it are made by crates that free them without overwriting, as SECURITY.md says: of a chat's messages
    /// and of the prompt that is made of them by `minijinja`, which in a chat's second turn reads the first one's reply; of
    /// a grammar's text and of the state that follows a reply by `llguidance`. Nothing else is.
    fn is_third_party(self, name: &str) -> bool {
        let prompt = name.starts_with("text: prompt") || name.starts_with("text: word");
        let chat = self.is_chat() && (prompt || (self.is_turn() && name.starts_with("reply text")));
        let grammar =
            self.has_grammar() && (name.starts_with("text: grammar") || name.starts_with("reply ids"));
        // there the grammar's text is the prompt; and here the copy is this program's
        let own = [Self::Scene("error: grammar"), Self::Scene("a copy of the application's")].contains(&self);
        chat || grammar || (own && prompt)
    }

    fn is_chat(self) -> bool {
        let literal = self == Self::Scene("literal chat");
        self.is_turn() || literal || matches!(self, Self::Cell(Cell { way: Way::Chat, .. }))
    }

    /// Whether a reply is part of a later prompt.
    fn is_turn(self) -> bool {
        self == Self::Scene("chat turns")
    }

    fn is(self, ending: Ending) -> bool {
        matches!(self, Self::Cell(cell) if cell.ending == ending)
    }

    /// Runs it in a process of its own, with more arguments for that; says what is wrong, if anything.
    pub fn run(self, more: &[&str], folder: &Path, needles: &Needles, with_allocator: bool) -> Verdict {
        let name = self.name();
        let arguments = [&["--child", &name], more].concat();
        match process::run(&arguments, folder, needles) {
            Ok(told) => Verdict {
                complaint: judge(self, &told, with_allocator),
                third_party: [&told.after, &told.dropped]
                    .into_iter()
                    .flat_map(Findings::names)
                    .filter(|name| self.is_third_party(name))
                    .map(str::to_owned)
                    .collect(),
                scrubs: told.scrubs,
            },
            Err(error) => {
                Verdict { complaint: Some(format!("the child failed: {error}")), ..Verdict::default() }
            }
        }
    }
}

/// What came of a job.
#[derive(Default)]
pub struct Verdict {
    pub complaint: Option<String>,
    /// What was found that other crates leave where nobody overwrites what they free.
    pub third_party: BTreeSet<String>,
    /// Calls of the scrub that happened, if they were watched; none in a build without faults.
    pub scrubs: BTreeSet<String>,
}

/// If this process is a child: does its work, and is over. Arguments: `--child JOB`, perhaps others that begin with two
/// dashes, in a build with faults perhaps `--watch` or `--leave-out FILE:LINE:COLUMN`, and the folder.
pub fn child() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [flag, name, more @ .., folder] = &arguments[..] else { return false };
    if flag != "--child" {
        return false;
    }
    #[cfg(amnesic_faults)]
    match more {
        [.., flag, place] if flag == "--leave-out" => amnesic::faults::leave_out_scrub(place),
        [.., flag] if flag == "--watch" => amnesic::faults::watch_scrubs(),
        _ => {}
    }
    #[cfg(not(amnesic_faults))]
    assert!(more.iter().all(|flag| flag.starts_with("--")), "this build has no faults to ask for: {more:?}");
    let folder = Path::new(folder);
    let told = match Job::all().into_iter().find(|job| job.name() == *name).expect("a job of this list") {
        Job::Cell(cell) => cells::child(cell, folder),
        Job::Scene(scene) => scenarios::child(scene, folder),
    };
    #[cfg(amnesic_faults)]
    let told = Told { scrubs: amnesic::faults::scrubs_seen(), ..told };
    println!("{}", serde_json::to_string(&told).unwrap());
    true
}

/// A folder with the checkpoint and what is known of its replies, and all needles.
pub fn prepare() -> (tempfile::TempDir, Needles) {
    let folder = tempfile::tempdir().unwrap();
    let needles = canary::prepare(folder.path());
    (folder, needles)
}

/// Does things two at a time.
pub fn two_at_a_time<T: Copy + Sync>(things: &[T], act: impl Fn(T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
                    act(*thing);
                }
            });
        }
    });
}

/// The whole test. `with_allocator` says whether this program frees through `amnesic::alloc::Scrubbing`; only then are
/// copies covered that other crates make. Arguments that are no flags choose cells by parts of their names.
pub fn main(with_allocator: bool) {
    if child() {
        return;
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let began = Instant::now();
    let (folder, needles) = prepare();
    let mut jobs = Job::all();
    jobs.retain(|job| wanted.is_empty() || wanted.iter().any(|wanted| job.name().contains(wanted)));
    println!("\nrunning {} tests", jobs.len());
    let (failed, third_party) = (Mutex::new(Vec::new()), Mutex::new(BTreeSet::new()));
    two_at_a_time(&jobs, |job| {
        let Verdict { complaint, third_party: left, .. } =
            job.run(&[], folder.path(), &needles, with_allocator);
        third_party.lock().unwrap().extend(left.into_iter().map(|name| (job.is_chat(), name)));
        let mut failed = failed.lock().unwrap();
        println!("test forensics: {} ... {}", job.name(), if complaint.is_none() { "ok" } else { "FAILED" });
        failed.extend(complaint.map(|complaint| (job.name(), complaint)));
    });
    let mut failed = failed.into_inner().unwrap();
    if wanted.is_empty() {
        failed.extend(documented(&third_party.into_inner().unwrap(), with_allocator));
    }
    failed.iter().for_each(|(name, complaint)| println!("\n{name}: {complaint}"));
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.1}s\n",
        jobs.len() - failed.len(),
        failed.len(),
        began.elapsed().as_secs_f32(),
    );
    std::process::exit(i32::from(!failed.is_empty()));
}

/// SECURITY.md says what other crates leave without the allocator. If they leave it no more, the sentence has to go, and the
/// exemption with it; with the allocator there is nothing.
fn documented(found: &BTreeSet<(bool, String)>, with_allocator: bool) -> Option<(String, String)> {
    let has = |chat: bool, start: &str| found.iter().any(|(of, name)| *of == chat && name.starts_with(start));
    let complaint = match with_allocator {
        true => (!found.is_empty()).then(|| format!("left with the allocator: {found:?}"))?,
        false => {
            let wanted = [(true, "text: prompt"), (false, "text: grammar")];
            let gone: Vec<_> = wanted.into_iter().filter(|(chat, name)| !has(*chat, name)).collect();
            (!gone.is_empty()).then(|| format!("exempted and not found any more: {gone:?}"))?
        }
    };
    Some(("what the documents say".to_owned(), complaint))
}

/// What must be found while a request stands still in its middle, and without the scrub after its end.
const ALIVE: [&str; 9] = [
    "prompt ids (u32)",
    "reply ids (u32)",
    "keys of the prompt (cached)",
    "values of the prompt (cached)",
    "keys of the reply (cached)",
    "values of the reply (cached)",
    "recomputed keys (cached)",
    "recomputed values (cached)",
    "logits at",
];

/// What is wrong with what a child tells.
fn judge(job: Job, told: &Told, with_allocator: bool) -> Option<String> {
    let missed =
        |findings: &Findings| -> Vec<&str> { ALIVE.into_iter().filter(|name| !findings.has(name)).collect() };
    if job == Job::Scene("no-op scrub") {
        // of freed heap blocks the allocator itself may have reused some: the prompt's ids are not asked for
        let missed: Vec<_> =
            missed(&told.after).into_iter().filter(|name| !name.starts_with("prompt ids")).collect();
        if !missed.is_empty() || !told.after.has("recomputed query") {
            return Some(format!("a build that does not scrub would pass for {missed:?}: {}", told.after));
        }
        return told.trouble.is_none().then(|| "the session did not notice".to_owned());
    }
    if !told.dirty.is_empty() {
        return Some(format!("stacks that are not clean: {:?}", told.dirty));
    }
    if let Some(trouble) = &told.trouble {
        return Some(format!("the session says: {trouble}"));
    }
    if matches!(job, Job::Cell(_)) {
        let (missed, text) =
            (missed(&told.alive), if job.has_grammar() { "text: grammar" } else { "reply text" });
        if !missed.is_empty() || !told.alive.has(text) {
            return Some(format!("the search misses what is there: {missed:?} or {text}"));
        }
    }
    let covered = |name: &str| with_allocator || !job.is_third_party(name);
    let places = [
        ("in an idle conversation", &told.idle),
        ("after the end", &told.after),
        ("after the session", &told.dropped),
        ("in a fork", &told.forked),
    ];
    let dumped =
        ["in a core dump in the middle", "in a core dump after the end"].into_iter().zip(&told.dumped);
    let mut left: Vec<String> = places
        .into_iter()
        .chain(dumped)
        .map(|(place, findings)| (place, findings.clone().filter(|finding| covered(&finding.name))))
        .filter(|(_, findings)| !findings.is_empty())
        .map(|(place, findings)| format!("{place}: {findings}"))
        .collect();
    if !told.printed.is_empty() {
        left.push(format!("printed: {}", told.printed));
    }
    let searched = |findings: &Findings| findings.bytes() > 1 << 20;
    if !searched(&told.dropped)
        || (job.is(Ending::Fork) && !searched(&told.forked))
        || (matches!(job, Job::Scene("open conversation" | "a turn that was left")) && !searched(&told.idle))
        || (job.is(Ending::Core) && told.dumped.len() != 2)
    {
        left.push("a search that there must be is missing".to_owned());
    }
    (!left.is_empty()).then(|| left.join("\n    "))
}
