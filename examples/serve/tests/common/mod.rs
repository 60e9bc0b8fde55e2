//! A server of its own for each test, and a client that knows just enough HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

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
        use std::os::unix::fs::FileExt;
        let process = Path::new("/proc").join(self.child.id().to_string());
        let memory = std::fs::File::open(process.join("mem")).expect("a parent may read its child");
        let maps = std::fs::read_to_string(process.join("maps")).unwrap();
        let finder = needle.as_bytes();
        maps.lines().any(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            if !rest.starts_with('r') {
                return false; // may be reserved alone, and larger than memory
            }
            let mut bytes = vec![0; (end - start) as usize];
            // what cannot be read is the kernel's, or was unmapped in between
            memory.read_exact_at(&mut bytes, start).is_ok()
                && bytes.windows(finder.len()).any(|window| window == finder)
        })
    }

    /// Sends bytes.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Connection {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes.as_ref()).unwrap();
        Connection(BufReader::new(stream))
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
