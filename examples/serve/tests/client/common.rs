//! A server of its own for each test, and a client that knows just enough HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpSocket;

/// Long enough for the slowest machine, short enough for a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    child: Child,
    pub address: String,
    lines: Receiver<String>,
    /// What it has said so far.
    pub said: Vec<String>,
}

/// The default model.
pub fn default_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/default")
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        Self::with_key(args, None)
    }

    pub fn with_key(args: &[&str], key: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amnesic-serve"));
        command.args(["--port", "0", "--threads", "2"]).args(args).env_remove("AMNESIC_API_KEY");
        command.envs(key.map(|key| ("AMNESIC_API_KEY", key)));
        #[cfg(target_os = "linux")]
        without_secret_memory(&mut command);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut server = Self { child, address: String::new(), lines, said: Vec::new() };
        let line = server.wait_for("listening on http://");
        server.address = line.split("http://").nth(1).unwrap().to_owned();
        server
    }

    /// The next line that contains `part`.
    pub fn wait_for(&mut self, part: &str) -> String {
        loop {
            let line =
                self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{part:?}: {:#?}", self.said));
            self.said.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Waits for the end and the last line.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        self.said.extend(self.lines.iter());
        status
    }

    /// Whether the process's readable memory holds these bytes anywhere.
    #[cfg(target_os = "linux")]
    pub fn holds(&self, needle: &str) -> bool {
        !self.find(needle).is_empty()
    }

    /// Waits until it does.
    #[cfg(target_os = "linux")]
    pub fn wait_until_it_holds(&self, needle: &str) {
        let start = std::time::Instant::now();
        while !self.holds(needle) {
            assert!(start.elapsed() < PATIENCE, "{needle} does not arrive");
        }
    }

    #[cfg(target_os = "linux")]
    fn open(&self, file: &str) -> std::fs::File {
        std::fs::File::open(format!("/proc/{}/{file}", self.child.id())).expect("a parent may read its child")
    }

    /// Where the process's readable memory holds these bytes.
    #[cfg(target_os = "linux")]
    fn find(&self, needle: &str) -> Vec<u64> {
        use std::os::unix::fs::FileExt;
        let memory = self.open("mem");
        let maps = std::io::read_to_string(self.open("maps")).unwrap();
        let finder = memchr::memmem::Finder::new(needle);
        let mut found = Vec::new();
        for line in maps.lines() {
            let (range, rest) = line.split_once(' ').unwrap();
            let [start, end] = edges(range).unwrap();
            if !rest.starts_with('r') {
                continue; // may be reserved alone, and larger than memory
            }
            let mut bytes = vec![0; (end - start) as usize];
            // what cannot be read is the kernel's, or was unmapped in between
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                found.extend(finder.find_iter(&bytes).map(|at| start + at as u64));
            }
        }
        found
    }

    /// The kernel's words (`VmFlags`) for each mapping of the process's readable memory that holds these bytes.
    #[cfg(target_os = "linux")]
    fn places(&self, needle: &str) -> Vec<String> {
        use std::os::unix::fs::FileExt;
        let found = self.find(needle);
        let smaps = std::io::read_to_string(self.open("smaps")).unwrap();
        // memory that was free when it was mapped out for the search may hold something now, and the other way round: what
        // counts is what was there before and after its mapping was looked up
        let memory = self.open("mem");
        let stays = |at: &u64| {
            let mut bytes = vec![0; needle.len()];
            memory.read_exact_at(&mut bytes, *at).is_ok() && bytes == needle.as_bytes()
        };
        let found: Vec<u64> = found.into_iter().filter(stays).collect();
        let (mut places, mut mapping, mut is_one) = (Vec::new(), "", false);
        for line in smaps.lines() {
            if let Some([start, end]) = line.split(' ').next().and_then(edges) {
                (mapping, is_one) = (line, found.iter().any(|at| (start..end).contains(at)));
            } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_one) {
                places.push(format!("{mapping}:{flags}"));
            }
        }
        places
    }

    /// Whether these bytes are in the process's memory, and all mappings that hold them have the `flags` of the kernel's.
    #[cfg(target_os = "linux")]
    pub fn protects(&self, needle: &str, flags: &[&str]) -> Result<(), String> {
        let places = self.places(needle);
        let lacks = |place: &&String| !flags.iter().all(|flag| place.split(' ').any(|word| word == *flag));
        match (places.is_empty(), places.iter().find(lacks)) {
            (true, _) => Err(format!("{needle:?} is nowhere")),
            (_, Some(place)) => Err(format!("{needle:?} is in {place}")),
            _ => Ok(()),
        }
    }

    /// Sends bytes.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Connection {
        Connection::new(TcpStream::connect(&self.address).unwrap(), bytes.as_ref())
    }

    /// Sends bytes from another address of this machine: 127.0.0.`last`.
    #[cfg(target_os = "linux")]
    pub fn send_from(&self, last: u8, bytes: impl AsRef<[u8]>) -> Connection {
        let local = std::net::SocketAddr::from(([127, 0, 0, last], 0));
        Connection::new(self.connect(|socket| socket.bind(local).unwrap()), bytes.as_ref())
    }

    /// Sends bytes, and has little room for an answer: what is not read waits in the server.
    pub fn send_without_room(&self, bytes: impl AsRef<[u8]>) -> Connection {
        let small = |socket: &TcpSocket| socket.set_recv_buffer_size(4096).unwrap();
        Connection::new(self.connect(small), bytes.as_ref())
    }

    /// The standard library sets nothing before it connects.
    fn connect(&self, set: impl FnOnce(&TcpSocket)) -> TcpStream {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let stream = runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            set(&socket);
            socket.connect(self.address.parse().unwrap()).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).response()
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.send(post(path, "", &body.to_string())).response()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// `7f00-7fff`
#[cfg(target_os = "linux")]
fn edges(range: &str) -> Option<[u64; 2]> {
    let (start, end) = range.split_once('-')?;
    let edge = |address: &str| u64::from_str_radix(address, 16).ok();
    Some([edge(start)?, edge(end)?])
}

/// Whether the system lets processes lock as much memory as they like.
#[cfg(target_os = "linux")]
pub fn can_lock() -> bool {
    let field = |file: &str, name: &str, word: usize| {
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel tells it");
        line[name.len()..].split_whitespace().nth(word).unwrap().to_owned()
    };
    const CAP_IPC_LOCK: u32 = 14;
    let capabilities = u64::from_str_radix(&field("/proc/self/status", "CapEff:", 0), 16).unwrap();
    capabilities >> CAP_IPC_LOCK & 1 == 1 || field("/proc/self/limits", "Max locked memory", 0) == "unlimited"
}

/// A copy of the default model with a chat template, whose replies may think and call tools.
pub fn chat_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(default_model()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
        {% endfor %}<|im_start|>assistant\n{# <think></think> <tool_call></tool_call> #}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

/// A request with a JSON body; `headers` end with a line's end each.
pub fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         {headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The server's side of one request. Dropping it closes the connection.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(mut stream: TcpStream, bytes: &[u8]) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Tells the server that nothing more comes.
    pub fn end(&mut self) {
        self.0.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Whether the server has answered or closed it: does not wait.
    pub fn has_ended(&mut self) -> bool {
        let stream = self.0.get_mut();
        stream.set_nonblocking(true).unwrap();
        let ended = stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false).unwrap();
        ended
    }

    /// Waits for the server to close the connection; whether it did so without a word.
    pub fn ends_silently(mut self) -> bool {
        let mut bytes = Vec::new();
        // a reset is a word that was not heard
        self.0.read_to_end(&mut bytes).is_ok() && bytes.is_empty()
    }

    /// Reads up to the end: a connection serves one request.
    pub fn response(mut self) -> Response {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        Response::parse(&bytes)
    }

    /// Reads until a line contains `part`.
    pub fn read_until(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the connection ended before {part:?}");
            if line.contains(part) {
                return line;
            }
        }
    }
}

pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    fn parse(bytes: &[u8]) -> Self {
        let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..split].to_vec()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match head.contains("transfer-encoding: chunked") {
            true => unchunked(&bytes[split + 4..]),
            false => bytes[split + 4..].to_vec(),
        };
        Self { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// A header's value, in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .split("\r\n")
            .find_map(|line| line.split_once(": ").filter(|(known, _)| *known == name))
            .map(|(_, value)| value)
    }

    /// The events' data, whose framing is checked.
    pub fn events(&self) -> Vec<&str> {
        assert!(self.head.contains("content-type: text/event-stream"), "{}", self.head);
        let events = self.body.strip_suffix("\n\n").expect("a blank line behind the last event");
        events
            .split("\n\n")
            .map(|event| {
                assert!(!event.contains('\n'), "{event:?}");
                event.strip_prefix("data: ").expect("an event with data")
            })
            .collect()
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        if length == 0 {
            return body;
        }
        assert_eq!(&bytes[end + 2 + length..end + 4 + length], b"\r\n");
        bytes = &bytes[end + 4 + length..];
    }
}

/// Starts the server where `memfd_secret` is not to be had: nobody can read what lies there, so a search would find nothing,
/// there or not.
#[cfg(target_os = "linux")]
fn without_secret_memory(command: &mut Command) {
    use std::os::unix::process::CommandExt;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    let filter = SeccompFilter::new(
        [(libc::SYS_memfd_secret, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    let apply = move || seccompiler::apply_filter(&program).map_err(|_| std::io::Error::last_os_error());
    // SAFETY: between fork and exec it makes two calls to the kernel, and allocates nothing.
    unsafe { command.pre_exec(apply) };
}
