//! Two requests of equal shape and different content, run many times in an order that looks random: afterwards no
//! writable byte of the process may tell which was last (`amnesic::testing::forensics::differential`).
//!
//! The matrix is that of `tests/forensics/cells.rs`: eleven endings by seven ways of asking. By default each ending, each
//! way and each of twelve scripts has its cell; `AMNESIC_DIFFERENTIAL=all` runs all 77. `AMNESIC_DIFFERENTIAL_RUNS` says
//! how many runs each of the two requests has (12).
//!
//! What may tell them apart, and why (`explained`), is decided by what kind of address it is, never by where it was met.

mod child;
#[path = "../forensics/mod.rs"]
#[allow(dead_code, reason = "each test takes what it needs")]
pub mod search;
mod shapes;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use amnesic::testing::forensics::differential::{Kind, Last, Scope, Separation, Snapshots, schedule};

use search::cells::{Cell, Ending, Way};
use shapes::{Content, SCRIPTS};

/// Runs of each request before the first snapshot: buffers have their sizes then.
const WARM_UP: usize = 3;

/// One process of the test.
#[derive(Clone, Copy, Debug)]
struct Job {
    cell: Cell,
    script: usize,
    fault: Fault,
}

/// What a child does wrong on purpose, so that the search shows that it would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Keeps a byte that is computed of the prompt.
    KeepsAByte,
    /// Keeps the prompt's longest words only, in a list that grows: what a cache does.
    KeepsWords,
}

impl Job {
    fn name(self) -> String {
        format!("{} in {}", self.cell.name(), SCRIPTS[self.script].0)
    }

    /// Each ending, each way and each script at least once; or all endings with all ways.
    fn all(everything: bool) -> Vec<Job> {
        let cells: Vec<Cell> = Cell::all().collect();
        let ways = cells.len() / 11;
        let chosen = cells.into_iter().enumerate().filter(|(index, _)| {
            let (ending, way) = (index / ways, index % ways);
            // the diagonal, and the other ways of a request that simply ends
            everything || way == ending % ways || (ending == 2 && way != 1)
        });
        let jobs = chosen.enumerate();
        jobs.map(|(index, (_, cell))| Job { cell, script: index % SCRIPTS.len(), fault: Fault::None })
            .collect()
    }
}

/// Why something may tell the two requests apart; none if nothing explains it.
fn explained(found: &Separation) -> Option<&'static str> {
    match found.kind {
        Kind::Pointer => {
            Some("pointers: where a block lies depends on sizes, such as how many bytes each token has")
        }
        Kind::Other => None,
    }
}

/// What crates that are not ours leave in memory that they free, where nobody overwrites that for them.
fn third_party(cell: Cell) -> Option<&'static str> {
    match cell.way {
        Way::Chat => Some("minijinja's copies of messages, and the prompt that it renders"),
        Way::Structured => Some("llguidance's automata and copies of the grammar"),
        _ => None,
    }
}

/// The whole test. `with_allocator` says whether this program frees through `amnesic::alloc::Scrubbing`. Arguments that are
/// no flags choose cells by parts of their names.
pub fn main(with_allocator: bool) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name, fault, lengths @ .., folder] = &arguments[..]
        && flag == "--differential"
    {
        let cell = Cell::all().find(|cell| cell.name() == *name).expect("a cell");
        let lengths: Vec<usize> = lengths.iter().map(|length| length.parse().unwrap()).collect();
        return child::run(cell, fault, lengths.try_into().expect("three lengths"), Path::new(folder));
    }
    let setting = |name: &str| std::env::var(name).ok();
    let everything = setting("AMNESIC_DIFFERENTIAL").is_some_and(|value| value == "all");
    let runs =
        setting("AMNESIC_DIFFERENTIAL_RUNS").map_or(12, |runs| runs.parse().expect("a number of runs"));
    let began = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    search::canary::write_checkpoint(folder.path());
    let session = search::canary::builder(folder.path()).open().unwrap();

    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut jobs = Job::all(everything);
    jobs.retain(|job| wanted.is_empty() || wanted.iter().any(|wanted| job.name().contains(*wanted)));
    let first =
        Job { cell: Cell { ending: Ending::Length, way: Way::Generate }, script: 0, fault: Fault::None };
    if wanted.is_empty() {
        jobs.extend([Fault::KeepsAByte, Fault::KeepsWords].map(|fault| Job { fault, ..first }));
    }
    println!("\nrunning {} tests", jobs.len());
    let failed = Mutex::new(0);
    search::two_at_a_time(&jobs, |job| {
        let began = Instant::now();
        let content = shapes::pair(&session, job.cell, job.script);
        let (complaint, told) = match compare(job, &content, runs, folder.path()) {
            Ok(taken) => judge(job, &taken, with_allocator),
            Err(error) => (true, error),
        };
        let verdict = if complaint { "FAILED" } else { "ok" };
        let fault = if job.fault == Fault::None { String::new() } else { format!(" ({:?})", job.fault) };
        let mut failed = failed.lock().unwrap();
        *failed += usize::from(complaint);
        let seconds = began.elapsed().as_secs_f32();
        println!("test differential: {}{fault} ... {verdict}: {told} ({seconds:.1} s)", job.name());
    });
    let failed = failed.into_inner().unwrap();
    let (verdict, passed) = (if failed == 0 { "ok" } else { "FAILED" }, jobs.len() - failed);
    let seconds = began.elapsed().as_secs_f32();
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; finished in {seconds:.1}s\n");
    std::process::exit(i32::from(failed > 0));
}

/// Whether there is something to complain of, and what was seen.
fn judge(job: Job, taken: &[(&str, Snapshots)], with_allocator: bool) -> (bool, String) {
    let (mut told, mut unexplained) = (Vec::new(), 0);
    for (when, snapshots) in taken {
        let found = snapshots.separations();
        let mut places: BTreeMap<(bool, &str), (usize, u32)> = BTreeMap::new();
        for separation in &found {
            let reason = explained(separation);
            let entry = places.entry((reason.is_none(), &separation.place)).or_default();
            entry.0 += 1;
            entry.1 += separation.bytes;
            unexplained += usize::from(reason.is_none());
        }
        let gib = snapshots.bytes() as f64 / f64::from(1 << 30);
        let mut line = format!("{when}, {} snapshots, {gib:.2} GiB", snapshots.len());
        for ((unexplained, place), (words, bytes)) in places {
            let what = if unexplained { "UNEXPLAINED" } else { "pointers" };
            line += &format!(", {what} in {place}: {bytes} bytes in {words} words");
        }
        if std::env::var_os("AMNESIC_DIFFERENTIAL_LIST").is_some() {
            found.iter().for_each(|separation| line += &format!("\n    {separation}"));
        }
        told.push(line);
    }
    let complaint = match job.fault {
        Fault::None if unexplained == 0 => false,
        Fault::None => match third_party(job.cell).filter(|_| !with_allocator) {
            Some(reason) => {
                told.push(format!("left by other crates ({reason})"));
                false
            }
            None => true,
        },
        // found, or the search is blind
        Fault::KeepsAByte | Fault::KeepsWords => unexplained == 0,
    };
    (complaint, told.join("; "))
}

/// Runs both requests in a child, many times, and remembers its memory: after each run, and for some endings in its
/// middle, too.
fn compare(
    job: Job,
    content: &[Content; 2],
    runs: usize,
    folder: &Path,
) -> Result<Vec<(&'static str, Snapshots)>, String> {
    let [a, b] = content.each_ref().map(|content| child::encode(content));
    let lengths =
        [&content[0].prompt, &content[0].grammar, &content[0].stop].map(|text| text.len().to_string());
    assert_eq!(a.len(), b.len());
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--differential", &job.cell.name(), &format!("{:?}", job.fault)])
        .args(lengths)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let order =
        (0..2 * WARM_UP).map(|index| if index % 2 == 0 { Last::A } else { Last::B }).chain(schedule(runs));
    let (mut after, mut middle, mut forked) = (Snapshots::new(), Snapshots::new(), Snapshots::new());
    let mut each = |index: usize, last: Last| -> std::io::Result<()> {
        let keep = index >= 2 * WARM_UP;
        input.write_all(if last == Last::A { &a } else { &b })?;
        loop {
            let mut word = [0; 5];
            output.read_exact(&mut word)?;
            let number = u32::from_le_bytes([word[1], word[2], word[3], word[4]]);
            match word[0] {
                child::DONE if keep => return after.take(child.id(), last, Scope::Writable),
                child::DONE => return Ok(()),
                child::IN_DUMP if keep => middle.take(number, last, Scope::Dumpable)?,
                child::IN_FORK if keep => forked.take(number, last, Scope::Writable)?,
                _ => {}
            }
            input.write_all(&[0])?;
        }
    };
    let done = order.enumerate().try_for_each(|(index, last)| each(index, last));
    drop(input);
    let status = child.wait().unwrap();
    if done.is_err() || !status.success() {
        let log = std::fs::read_to_string(log.path()).unwrap();
        return Err(format!("the child failed: {done:?}, {status}: {log}"));
    }
    let all = [("after the end", after), ("in a core dump in the middle", middle), ("in a fork", forked)];
    Ok(all.into_iter().filter(|(_, snapshots)| !snapshots.is_empty()).collect())
}
