//! Two requests of equal shape and different content, run many times in an order that looks random: afterwards no
//! writable byte of the process may tell which was last (`amnesic::forensics::differential`).
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
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use amnesic::forensics::differential::{Kind, Last, Scope, Separation, Snapshots, schedule};

use search::cells::{Cell, Ending, Way};
use shapes::{Content, SCRIPTS};

/// Runs of each request before the first snapshot: buffers have their sizes then.
const WARM_UP: usize = 3;

/// The simplest cell.
const PLAIN: Cell = Cell { ending: Ending::Length, way: Way::Generate };

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
    if let [flag, name, fault, folder] = &arguments[..]
        && flag == "--differential"
    {
        let cell = Cell::all().find(|cell| cell.name() == *name).expect("a cell");
        return child::run(cell, fault, Path::new(folder));
    }
    let setting = |name: &str| std::env::var(name).ok();
    let everything = setting("AMNESIC_DIFFERENTIAL").is_some_and(|value| value == "all");
    let runs =
        setting("AMNESIC_DIFFERENTIAL_RUNS").map_or(12, |runs| runs.parse().expect("a number of runs"));
    let began = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    search::canary::write_checkpoint(folder.path());

    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let mut jobs = Job::all(everything);
    jobs.retain(|job| wanted.is_empty() || wanted.iter().any(|wanted| job.name().contains(*wanted)));
    if wanted.is_empty() {
        jobs.extend([Fault::KeepsAByte, Fault::KeepsWords].map(|fault| Job {
            cell: PLAIN,
            script: 0,
            fault,
        }));
    }
    println!("\nrunning {} tests", jobs.len());
    let failed = Mutex::new(0);
    if wanted.is_empty() || wanted.iter().any(|wanted| "for good".contains(*wanted)) {
        let more = changed_for_good(folder.path());
        // without the allocator, freed memory of other crates is as they left it: told, and not held against anybody
        *failed.lock().unwrap() += if with_allocator { more } else { 0 };
    }
    search::two_at_a_time(&jobs, |job| {
        let began = Instant::now();
        // a session of its own: beside another job's requests nobody guesses, and receipts count what was shared
        let session = search::canary::builder(folder.path()).open().unwrap();
        let content = shapes::pair(&session, job.cell, job.script);
        drop(session);
        let look = |runs| match compare(job, &content, runs, folder.path()) {
            Ok(taken) => judge(job, &taken, with_allocator),
            Err(error) => (true, error),
        };
        let (mut complaint, mut told) = look(runs);
        if complaint && job.fault == Fault::None {
            // keys, nonces and seeds are drawn anew in each run: of a hundred thousand such bits one may go along with the
            // order of 24 runs by chance, and none with that of 72
            let (again, told_again) = look(3 * runs);
            (complaint, told) = (again, format!("{told}; again: {told_again}"));
        }
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

/// How many scripts there are that change more for good than another Latin request does. A lazily built automaton or a cache
/// of words shows as hundreds of bytes and more, a place in a queue as some dozen.
fn changed_for_good(folder: &Path) -> usize {
    const MORE: u32 = 64;
    let unexplained = |changes: &[Separation]| -> u32 {
        changes.iter().filter(|change| explained(change).is_none()).map(|change| change.bytes).sum()
    };
    let all = for_good(folder).unwrap_or_else(|error| panic!("{error}"));
    // the first script is Latin itself
    let latin = all.iter().map(|(_, [_, latin])| latin).chain(all.first().map(|(_, [first, _])| first));
    let any = latin.map(|changes| unexplained(changes)).max().unwrap_or(0);
    let mut failed = 0;
    for (script, [changes, _]) in &all {
        let complaint = unexplained(changes) > any + MORE;
        failed += usize::from(complaint);
        let verdict = if complaint { "FAILED" } else { "ok" };
        let told = summary(changes);
        println!(
            "test differential: for good, after {script} ... {verdict}: {told}; {any} bytes after Latin"
        );
    }
    failed
}

/// Where there was something, and how much.
fn summary(found: &[Separation]) -> String {
    let mut places: BTreeMap<(bool, &str), (usize, u32)> = BTreeMap::new();
    for separation in found {
        let entry = places.entry((explained(separation).is_none(), &separation.place)).or_default();
        entry.0 += 1;
        entry.1 += separation.bytes;
    }
    let mut line = if found.is_empty() { "nothing".to_owned() } else { String::new() };
    for ((unexplained, place), (words, bytes)) in places {
        let what = if unexplained { "UNEXPLAINED" } else { "pointers" };
        line += &format!("[{what} in {place}: {bytes} bytes in {words} words]");
    }
    if std::env::var_os("AMNESIC_DIFFERENTIAL_LIST").is_some() {
        found.iter().for_each(|separation| line += &format!("\n    {separation}"));
    }
    line
}

/// Whether there is something to complain of, and what was seen.
fn judge(job: Job, taken: &[(&str, Snapshots)], with_allocator: bool) -> (bool, String) {
    let (mut told, mut unexplained) = (Vec::new(), 0);
    for (when, snapshots) in taken {
        let found = snapshots.separations();
        unexplained += found.iter().filter(|separation| explained(separation).is_none()).count();
        let gib = snapshots.bytes() as f64 / f64::from(1 << 30);
        told.push(format!("{when}, {} snapshots, {gib:.2} GiB: {}", snapshots.len(), summary(&found)));
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

/// A child that runs what it is sent.
struct Running {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    log: tempfile::NamedTempFile,
}

impl Running {
    fn start(cell: Cell, fault: Fault, folder: &Path) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--differential", &cell.name(), &format!("{fault:?}")])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output, log }
    }

    /// Has it run a request. `look` is told of each moment at which a process is to be looked at: what moment, and which
    /// process.
    fn ask(&mut self, request: &[u8], mut look: impl FnMut(u8, u32) -> io::Result<()>) -> io::Result<()> {
        self.input.write_all(request)?;
        loop {
            let mut word = [0; 5];
            self.output.read_exact(&mut word)?;
            let [moment, number @ ..] = word;
            if moment == child::DONE {
                return look(moment, self.child.id());
            }
            look(moment, u32::from_le_bytes(number))?;
            self.input.write_all(&[0])?;
        }
    }

    /// Its end; an error if it failed, or what was done with it.
    fn end(mut self, done: io::Result<()>) -> Result<(), String> {
        drop(self.input);
        let status = self.child.wait().unwrap();
        if done.is_err() || !status.success() {
            let log = std::fs::read_to_string(self.log.path()).unwrap();
            return Err(format!("the child failed: {done:?}, {status}: {log}"));
        }
        Ok(())
    }
}

/// Runs both requests in a child, many times, and remembers its memory: after each run, and for some endings in its
/// middle, too.
fn compare(
    job: Job,
    content: &[Content; 2],
    runs: usize,
    folder: &Path,
) -> Result<Vec<(&'static str, Snapshots)>, String> {
    let [a, b] = content.each_ref().map(child::encode);
    assert_eq!(a.len(), b.len());
    let mut running = Running::start(job.cell, job.fault, folder);
    let warm_up = (0..2 * WARM_UP).map(|index| if index % 2 == 0 { Last::A } else { Last::B });
    let (mut after, mut middle, mut forked) = (Snapshots::new(), Snapshots::new(), Snapshots::new());
    let done = warm_up.chain(schedule(runs)).enumerate().try_for_each(|(index, last)| {
        running.ask(if last == Last::A { &a } else { &b }, |moment, process| match moment {
            _ if index < 2 * WARM_UP => Ok(()),
            child::DONE => after.take(process, last, Scope::Writable),
            child::IN_DUMP => middle.take(process, last, Scope::Dumpable),
            child::IN_FORK => forked.take(process, last, Scope::Writable),
            _ => Err(io::Error::other("an unknown moment")),
        })
    });
    running.end(done)?;
    let all = [("after the end", after), ("in a core dump in the middle", middle), ("in a fork", forked)];
    Ok(all.into_iter().filter(|(_, snapshots)| !snapshots.is_empty()).collect())
}

/// A script, and what a request in it changed for good; and what another Latin one changed then.
type Changes = (&'static str, [Vec<Separation>; 2]);

/// What one request in each script changes for good: the same Latin request runs some times before and after it, and what
/// is in memory after it is compared. Beside each script, the same of another Latin request, which shows what any request
/// changes: it takes a place in the queues between threads, say.
fn for_good(folder: &Path) -> Result<Vec<Changes>, String> {
    const RUNS: usize = 5;
    const WARM: u64 = 12;
    let latin = child::encode(&shapes::same_bytes(0, 1, 0));
    let mut running = Running::start(PLAIN, Fault::None, folder);
    let mut snapshots = Snapshots::new();
    let phase = |running: &mut Running, snapshots: &mut Snapshots| -> io::Result<()> {
        (0..RUNS).try_for_each(|_| {
            running.ask(&latin, |_, process| snapshots.take(process, Last::A, Scope::Writable))
        })
    };
    let done = (|| {
        // so that no buffer has to grow for what comes
        running.ask(&child::encode(&shapes::same_bytes(0, 4, 0)), |_, _| Ok(()))?;
        for seed in 0..WARM {
            running.ask(&child::encode(&shapes::same_bytes(0, 1, 1 + seed)), |_, _| Ok(()))?;
            running.ask(&latin, |_, _| Ok(()))?;
        }
        phase(&mut running, &mut snapshots)?;
        for script in 0..SCRIPTS.len() {
            running.ask(&child::encode(&shapes::same_bytes(script, 1, 0)), |_, _| Ok(()))?;
            phase(&mut running, &mut snapshots)?;
            let other = shapes::same_bytes(0, 1, 1 + WARM + script as u64);
            running.ask(&child::encode(&other), |_, _| Ok(()))?;
            phase(&mut running, &mut snapshots)?;
        }
        Ok(())
    })();
    running.end(done)?;
    let of = |at: usize| snapshots.changes(at * RUNS..(at + 1) * RUNS, (at + 1) * RUNS..(at + 2) * RUNS);
    let both = |index: usize| [of(2 * index), of(2 * index + 1)];
    Ok(SCRIPTS.iter().enumerate().map(|(index, (name, ..))| (*name, both(index))).collect())
}
