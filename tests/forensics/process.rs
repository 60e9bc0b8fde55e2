//! Processes: forks that do nothing, children that run a cell, and their core dumps.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use amnesic::forensics::{Findings, Needles};
use serde::{Deserialize, Serialize};

/// What a child tells its parent at the end, on one line.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Told {
    /// Found while the request stood still in the middle.
    pub alive: Findings,
    /// Found at that moment in a fork of the child.
    pub forked: Findings,
    /// Found while a conversation was idle.
    #[serde(default)]
    pub idle: Findings,
    /// Found after the request's end, the session still open.
    pub after: Findings,
    /// Found after the session was gone.
    pub dropped: Findings,
    /// Threads of the session whose stacks were not clean below their frames at that moment.
    pub dirty: Vec<String>,
    /// What else was wrong: nothing that the session says of itself may be.
    pub trouble: Option<String>,
    /// Calls of the library's scrub, where they were watched.
    pub scrubs: BTreeSet<String>,
    /// Found in core dumps, one after another: added by the parent.
    pub dumped: Vec<Findings>,
    /// Found in what the child printed: added by the parent.
    pub printed: Findings,
}

/// A line on which a child asks for a core dump of itself. It goes on when a line has come back.
const CORE: &str = "core";

/// Runs a child of this program; an error if it failed.
pub fn run(arguments: &[&str], folder: &Path, needles: &Needles) -> Result<Told, String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let (pid, mut input) = (child.id(), child.stdin.take().unwrap());
    let (mut printed, mut dumped, mut last) = (Vec::new(), Vec::new(), String::new());
    for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
        let line = line.unwrap();
        printed.extend(&line);
        if line == CORE.as_bytes() {
            dumped.push(dump(pid, folder, needles));
            input.write_all(b"\n").unwrap();
        }
        last = String::from_utf8_lossy(&line).into_owned();
    }
    let status = child.wait().unwrap();
    let log = std::fs::read(log.path()).unwrap();
    let printed = needles.search_bytes(&printed).and(needles.search_bytes(&log));
    if !status.success() {
        return Err(format!("{status}:\n{}", String::from_utf8_lossy(&log)));
    }
    let told: Told = serde_json::from_str(&last).map_err(|error| format!("no word of the child: {error}"))?;
    Ok(Told { dumped, printed, ..told })
}

/// A core dump of a process that goes on, searched.
fn dump(pid: u32, folder: &Path, needles: &Needles) -> Findings {
    let prefix = folder.join("core");
    let output = Command::new("gcore").arg("-o").arg(&prefix).arg(pid.to_string()).output();
    let output = output.expect("gcore: the package gdb must be installed");
    let file = folder.join(format!("core.{pid}"));
    assert!(output.status.success() && file.exists(), "gcore: {}", String::from_utf8_lossy(&output.stderr));
    let findings = needles.search_file(&file).unwrap();
    std::fs::remove_file(file).unwrap();
    assert!(findings.bytes() > 1 << 20, "a core dump of {} bytes", findings.bytes());
    findings
}

/// In a child: has its parent make and search a core dump of it.
pub fn ask_for_core() {
    println!("{CORE}");
    assert_eq!(
        std::io::stdin().lines().next().unwrap().unwrap(),
        "",
        "the parent answers with an empty line"
    );
}

/// What a fork of this process holds.
pub fn search_fork(needles: &Needles) -> Findings {
    // SAFETY: the child calls nothing but what signal handlers may call; it never returns.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL); // also if this process fails meanwhile
            loop {
                libc::pause();
            }
        }
        pid
    };
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());
    let findings = needles.search_process(pid.cast_unsigned());
    let mut status = 0;
    // SAFETY: ends and collects the child made above, which nobody else knows.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
    }
    let ended = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    assert_eq!(ended, Some(libc::SIGKILL), "the fork did not wait for its end");
    let findings = findings.unwrap();
    assert!(findings.bytes() > 1 << 20, "only {} bytes of the fork searched", findings.bytes());
    findings
}
