//! Checkpoints that mean harm: whatever a file claims, opening it is a typed error or a session that works, it takes no
//! more memory than is said here, and no template ends the process. Each case is opened in a process of its own, which
//! measures its peak: this program starts itself, twice at a time.

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("test hostile_checkpoints ... SKIPPED: peak memory is read from /proc");
}

#[cfg(target_os = "linux")]
amnesic::install_scrubbing_allocator!();

#[cfg(target_os = "linux")]
mod common;
#[cfg(target_os = "linux")]
#[path = "hostile_checkpoints/files.rs"]
mod files;
#[cfg(target_os = "linux")]
#[path = "hostile_checkpoints/nests.rs"]
mod nests;
#[cfg(target_os = "linux")]
#[path = "hostile_checkpoints/templates.rs"]
mod templates;

#[cfg(target_os = "linux")]
fn main() {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, locks, path] = &arguments[..]
        && flag == "--child"
    {
        return child::run(Path::new(path), locks == "true");
    }
    let cases: Vec<_> = files::cases().into_iter().chain(templates::cases()).collect();
    println!("\nrunning {} tests", cases.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let serve = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            failed.fetch_add(usize::from(!passes(case)), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(serve);
        serve();
    });
    let failed = failed.into_inner();
    let result = if failed > 0 { "FAILED" } else { "ok" };
    println!(
        "\ntest result: {result}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out\n",
        cases.len() - failed
    );
    std::process::exit(i32::from(failed > 0));
}

/// Writes a case, opens it in a process of its own, and prints what came of it.
#[cfg(target_os = "linux")]
fn passes(case: &Case) -> bool {
    let folder = tempfile::tempdir().unwrap();
    (case.write)(folder.path());
    let outcome = child::start(&case.open(folder.path()), case.locks);
    let wrong = outcome.judge(case);
    let (result, peak) = (if wrong.is_some() { "FAILED" } else { "ok" }, outcome.peak >> 20);
    let more = wrong.as_ref().map_or_else(String::new, |wrong| format!("\n{wrong}"));
    println!("test hostile_checkpoints: {} ... {result} ({peak} MiB; {}){more}", case.name, outcome.said);
    wrong.is_none()
}

/// A checkpoint, and what opening it must give.
#[cfg(target_os = "linux")]
pub struct Case {
    pub name: String,
    pub write: Box<dyn Fn(&std::path::Path) + Sync>,
    pub expected: Expected,
    /// MiB above what the process had before, beside what the session's plan says.
    pub most_mib: u64,
    /// Whether the process may lock as much memory as it wants, if this one may. Otherwise it has the limit of an ordinary
    /// user: each page beyond it that the kernel cannot reach would interrupt all processors, and a template that makes
    /// half a gigabyte takes 130,000 of them, which is most of its time.
    pub locks: bool,
}

#[cfg(target_os = "linux")]
pub enum Expected {
    /// It opens, and where it has a template a chat gives a reply.
    Works,
    /// An error with all of these words.
    Error(&'static [&'static str]),
    /// An error, or a reply; no end of the process.
    Either,
}

#[cfg(target_os = "linux")]
impl Case {
    /// The file or folder that is opened.
    fn open(&self, folder: &std::path::Path) -> std::path::PathBuf {
        let file = folder.join("model.gguf");
        if file.exists() { file } else { folder.to_owned() }
    }
}

/// The process that opens a checkpoint.
#[cfg(target_os = "linux")]
mod child {
    use std::path::Path;
    use std::process::Command;

    use amnesic::{Error, Request, Session, user};

    use crate::{Case, Expected};

    pub struct Outcome {
        ended: String,
        well: bool,
        pub peak: u64,
        planned: u64,
        pub said: String,
    }

    /// A field of /proc/self/status, in bytes.
    fn status(field: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    fn opened(path: &Path) -> amnesic::Result<(u64, String)> {
        // not hashed: some of these files are of 64 GiB, and all of them would be read
        let builder = Session::builder(path).threads(1).kv_tokens(256).context_length(256);
        let session = builder.without_file_hashes().open()?;
        let planned = session.memory().total_bytes();
        let further = path.join("additional_chat_templates");
        if further.exists() {
            return Ok((planned, by_name(&session, &further)));
        }
        let chats = path.join("chat_template.jinja").exists();
        let request = match chats {
            true => Request::chat([user("text")]),
            false => Request::tokens([1, 2, 3]),
        };
        let reply = session.generate(request.max_tokens(1));
        Ok((planned, reply.map_or_else(|error| format!("error: {error}"), |_| "works".to_owned())))
    }

    /// Renders each of these templates. That named `10` must give a prompt, others may be refused.
    fn by_name(session: &Session, further: &Path) -> String {
        for file in std::fs::read_dir(further).unwrap() {
            let name = file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
            let request = Request::chat([user("text")]).chat_template(&name).max_tokens(1);
            match session.generate(request) {
                Ok(_) => {}
                // right, and longer than the context of this session
                Err(Error::ContextLength { .. }) => {}
                Err(Error::Config { .. } | Error::Request { .. }) if name != "10" => {}
                Err(error) => return format!("{name}: {error}"),
            }
        }
        "works".to_owned()
    }

    /// Gives up the right to lock more memory than an ordinary user may by default.
    fn lock_little() {
        const VERSION_3: u32 = 0x2008_0522;
        const IPC_LOCK: u32 = 14;
        let header = [VERSION_3, 0];
        // effective, permitted and inheritable capabilities: of the first 32, then of the others
        let mut sets = [[0_u32; 3]; 2];
        let limit = libc::rlimit { rlim_cur: 8 << 20, rlim_max: 8 << 20 };
        // SAFETY: the header and the sets are those that this version has, of this process.
        unsafe {
            assert_eq!(libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()), 0);
            sets[0].iter_mut().for_each(|set| *set &= !(1 << IPC_LOCK));
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
            assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
        }
    }

    pub fn run(path: &Path, locks: bool) {
        if !locks {
            lock_little();
        }
        // SAFETY: takes a number. A case that hangs ends by a signal, as a failure.
        unsafe { libc::alarm(60) };
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmHWM:");
        let (planned, said) = match opened(path) {
            Ok(opened) => opened,
            Err(error) => (0, format!("error: {error}")),
        };
        println!("\n{} {planned} {said}", status("VmHWM:") - before);
    }

    pub fn start(path: &Path, locks: bool) -> Outcome {
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program).args(["--child", &locks.to_string()]).arg(path).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let line = printed.lines().last().unwrap_or_default();
        let mut fields = line.splitn(3, ' ');
        let mut number = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
        let (peak, planned) = (number(), number());
        let said: String = fields.next().unwrap_or_default().chars().take(160).collect();
        let ended = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        Outcome { ended, well: output.status.success(), peak, planned, said }
    }

    impl Outcome {
        /// What is wrong with it.
        pub fn judge(&self, case: &Case) -> Option<String> {
            if !self.well {
                return Some(format!("the process ended: {}", self.ended));
            }
            if self.peak > self.planned + (case.most_mib << 20) {
                return Some(format!("{} MiB at the peak, {} planned", self.peak >> 20, self.planned >> 20));
            }
            let right = match case.expected {
                Expected::Works => self.said == "works",
                Expected::Error(words) => {
                    self.said.starts_with("error: ") && words.iter().all(|word| self.said.contains(word))
                }
                Expected::Either => !self.said.is_empty(),
            };
            (!right).then(|| format!("said: {}", self.said))
        }
    }
}
