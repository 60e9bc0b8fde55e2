//! Checkpoints by their ids, from a server on this machine that answers as a hub does.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use amnesic::{Error, Hub, Request, Session};
use sha2::{Digest, Sha256};

use crate::common::fixture;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OLDER: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What the server does and has done.
#[derive(Default)]
struct State {
    /// By commit and name.
    files: BTreeMap<(String, String), Vec<u8>>,
    /// What `main` is.
    head: String,
    /// Asked of whoever comes.
    token: Option<String>,
    /// Paths in the order in which they were asked for.
    log: Vec<String>,
    /// Bodies of this file break off once after so many bytes.
    breaks: Option<(String, usize)>,
    /// A byte of this file is another than its hash says.
    spoils: Option<String>,
}

/// A hub with one repository, `owner/tiny`. Ends with the test's process.
struct Server {
    url: String,
    state: Arc<Mutex<State>>,
    closed: Arc<AtomicBool>,
}

impl Server {
    /// Serves the files below some folders, each as a commit.
    fn new(commits: &[(&str, &Path)]) -> Self {
        let mut state = State { head: COMMIT.to_owned(), ..State::default() };
        for (commit, folder) in commits {
            add(&mut state, commit, folder, "");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (state, closed) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let (shared, is_closed) = (state.clone(), closed.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_closed.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let _ = serve(&stream.unwrap(), &shared); // a client that goes away is no failure here
                });
            }
        });
        Self { url, state, closed }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub::new().endpoint(&self.url).cache_dir(cache).offline(false).token("")
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn set(&self, act: impl FnOnce(&mut State)) {
        act(&mut self.state.lock().unwrap());
    }

    /// Answers no more.
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://")); // wakes it
    }
}

fn add(state: &mut State, commit: &str, folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            add(state, commit, &entry.path(), &format!("{name}/"));
        } else {
            state.files.insert((commit.to_owned(), name), std::fs::read(entry.path()).unwrap());
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One connection: a request and its answer.
fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut range, mut authorization) = (String::new(), None, String::new());
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                range = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')).map(owned)
            }
            "authorization" => authorization = value.to_owned(),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    state.log.push(path.clone());
    let answer = |status: &str, headers: &[(&str, String)], body: &[u8]| {
        let mut stream = stream;
        let mut head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(body)
    };
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    // what is behind a redirection is open to whoever knows the place
    if wanted.is_some_and(|wanted| wanted != authorization) && !path.starts_with("/cdn/") {
        return answer("401 Unauthorized", &[], b"{}");
    }
    let commit_of =
        |revision: &str| if revision == "main" { state.head.clone() } else { revision.to_owned() };
    if let Some(revision) = path.strip_prefix("/api/models/owner/tiny/revision/") {
        let commit = commit_of(revision);
        let names: Vec<_> = state
            .files
            .keys()
            .filter(|(of, _)| *of == commit)
            .map(|(_, name)| serde_json::json!({ "rfilename": name }))
            .collect();
        let info = serde_json::json!({ "id": "owner/tiny", "sha": commit, "siblings": names });
        return match names.is_empty() {
            true => answer("404 Not Found", &[], b"{}"),
            false => answer("200 OK", &[], info.to_string().as_bytes()),
        };
    }
    let large = path.starts_with("/cdn/");
    let place = path.strip_prefix("/owner/tiny/resolve/").or_else(|| path.strip_prefix("/cdn/"));
    let key = place
        .and_then(|place| place.split_once('/'))
        .map(|(revision, name)| (commit_of(revision), name.to_owned()));
    let Some((key, mut body)) = key.and_then(|key| Some((key.clone(), state.files.get(&key)?.clone())))
    else {
        return answer("404 Not Found", &[], b"");
    };
    let hash = sha256(&body);
    // large files lie elsewhere, and are named by their hash; small ones by a number of forty digits
    let etag = if key.1.ends_with(".safetensors") { hash.clone() } else { hash[..40].to_owned() };
    if key.1.ends_with(".safetensors") && !large {
        let to = format!("http://{}/cdn/{}/{}", stream.local_addr()?, key.0, key.1);
        let headers = [("location", to), ("x-repo-commit", key.0), ("x-linked-etag", format!("\"{etag}\""))];
        return answer("302 Found", &headers, b"");
    }
    if state.spoils.as_ref() == Some(&key.1) {
        let last = body.len() - 1;
        body[last] ^= 1;
    }
    let size = body.len();
    let (from, to) = range.unwrap_or_default();
    let from: usize = from.parse().unwrap_or(0);
    let to = to.parse().map_or(size, |to: usize| to + 1);
    let headers = [
        ("etag", format!("\"{etag}\"")),
        ("x-repo-commit", key.0.clone()),
        ("content-range", format!("bytes {from}-{}/{size}", to - 1)),
    ];
    let part = &body[from..to];
    if part.len() > 1
        && let Some((_, at)) = state.breaks.take_if(|(name, _)| *name == key.1)
    {
        let mut stream = stream;
        let head = format!("HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\n", part.len());
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        stream.write_all(format!("{head}{headers}\r\n").as_bytes())?;
        return stream.write_all(&part[..at]);
    }
    answer("206 Partial Content", &headers, part)
}

fn owned((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

fn reply(session: &Session) -> Vec<u32> {
    session.generate(Request::tokens([3, 5, 7, 11]).max_tokens(8)).unwrap().tokens().to_vec()
}

#[test]
fn an_id_is_downloaded_once() {
    let folder = fixture("qwen2_bf16");
    let server = Server::new(&[(COMMIT, &folder)]);
    let cache = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = told.clone();
    let hub = server.hub(cache.path()).on_download(move |download| {
        telling.lock().unwrap().push((download.file.to_owned(), download.done_bytes, download.total_bytes));
    });
    let session = Session::builder("owner/tiny").hub(hub).open().unwrap();
    assert_eq!(reply(&session), reply(&Session::open(&folder).unwrap()));
    // every file that was read, and its whole size last
    let told = told.lock().unwrap();
    let size = std::fs::metadata(folder.join("model.safetensors")).unwrap().len();
    let last = told.iter().rfind(|(file, ..)| file == "model.safetensors").unwrap();
    assert_eq!((last.1, last.2), (size, size));
    for pair in told.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        assert!(pair[0].1 <= pair[1].1, "{pair:?}");
    }
    let log = server.log();
    assert!(log.iter().any(|path| path == "/api/models/owner/tiny/revision/main"), "{log:?}");
    assert!(
        !log.iter().any(|path| path.contains("expected.safetensors")),
        "no part of the checkpoint: {log:?}"
    );
    // the second time only the commit is asked for
    drop(Session::builder("owner/tiny").hub(server.hub(cache.path())).open().unwrap());
    assert_eq!(server.log(), ["/api/models/owner/tiny/revision/main"]);
    // in the folders of Hugging Face's own tools
    let snapshot = cache.path().join(format!("models--owner--tiny/snapshots/{COMMIT}"));
    assert!(snapshot.join("config.json").exists());
    // and without any connection
    let offline = || Session::builder("owner/tiny").hub(server.hub(cache.path()).offline(true)).open();
    assert_eq!(reply(&offline().unwrap()), reply(&session));
    assert!(server.log().is_empty());
    server.close();
    let unreachable = Session::builder("owner/tiny").hub(server.hub(cache.path())).open().unwrap();
    assert_eq!(reply(&unreachable), reply(&session));
    // what is not whole is not used
    std::fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    assert!(matches!(offline(), Err(Error::Hub { .. })));
}

/// As in a folder: all of them are downloaded, and one that the repository lacks is named.
#[test]
fn numbered_shards_without_an_index() {
    let folder = fixture("mistral_bf16_sharded");
    let server = Server::new(&[(COMMIT, &folder), (OLDER, &folder)]);
    let index = "model.safetensors.index.json".to_owned();
    let shards: Vec<String> =
        server.state.lock().unwrap().files.keys().map(|(_, name)| name.clone()).collect();
    let shards: Vec<&String> = shards.iter().filter(|name| name.contains("-of-")).collect();
    let last = (*shards.iter().max().expect("a fixture of shards")).clone();
    server.set(|state| {
        for commit in [COMMIT, OLDER] {
            assert!(state.files.remove(&(commit.to_owned(), index.clone())).is_some());
        }
        // what is in other folders is none of them
        state.files.insert((COMMIT.to_owned(), format!("original/{last}")), b"x".to_vec());
        assert!(state.files.remove(&(OLDER.to_owned(), last.clone())).is_some());
    });
    let cache = tempfile::tempdir().unwrap();
    let open = |id: &str, offline| Session::builder(id).hub(server.hub(cache.path()).offline(offline)).open();
    let session = open("owner/tiny", false).unwrap();
    assert_eq!(reply(&session), reply(&Session::open(&folder).unwrap()));
    let fetched: std::collections::BTreeSet<String> =
        server.log().into_iter().filter(|path| path.starts_with("/cdn/")).collect();
    let wanted = shards.iter().map(|name| format!("/cdn/{COMMIT}/{name}")).collect();
    assert!(fetched == wanted && fetched.len() > 1, "{fetched:?}");
    assert_eq!(reply(&open("owner/tiny", true).unwrap()), reply(&session), "all are in the cache");
    let error = open(&format!("owner/tiny@{OLDER}"), false).unwrap_err().to_string();
    assert!(error.contains(&last) && error.contains("must be there"), "{error}");
    assert!(!server.log().iter().any(|path| path.starts_with("/cdn/")), "nothing large before that is known");
    let snapshot = cache.path().join(format!("models--owner--tiny/snapshots/{COMMIT}"));
    std::fs::remove_file(snapshot.join(last)).unwrap();
    assert!(matches!(open("owner/tiny", true), Err(Error::Hub { .. })), "what is not whole is not used");
}

#[test]
fn revisions_shards_and_modules() {
    let (new, old) = (fixture("mistral_bf16_sharded"), fixture("encoders/roberta"));
    let server = Server::new(&[(COMMIT, &new), (OLDER, &old)]);
    let cache = tempfile::tempdir().unwrap();
    let open = |id: &str| Session::builder(id).hub(server.hub(cache.path())).open();
    assert_eq!(reply(&open("owner/tiny").unwrap()), reply(&Session::open(&new).unwrap()));
    let log = server.log();
    assert!(log.iter().filter(|path| path.starts_with("/cdn/")).count() > 1, "{log:?}");
    // its folders of modules too
    let older = open(&format!("owner/tiny@{OLDER}")).unwrap();
    let values = |session: &Session| session.embed(&["abc de"]).unwrap().values().to_vec();
    assert_eq!(values(&older), values(&Session::open(&old).unwrap()));
    // the branch moves
    server.set(|state| state.head = OLDER.to_owned());
    assert_eq!(values(&open("owner/tiny").unwrap()), values(&older));
    let missing = open("owner/tiny@v2").unwrap_err().to_string();
    assert!(missing.starts_with("owner/tiny@v2: ") && missing.contains("404"), "{missing}");
    assert!(matches!(open("owner/other"), Err(Error::Hub { .. })));
}

#[test]
fn a_token_opens_what_is_not_for_everybody() {
    let folder = fixture("qwen2_bf16");
    let server = Server::new(&[(COMMIT, &folder)]);
    server.set(|state| state.token = Some("hf_sesame".to_owned()));
    let cache = tempfile::tempdir().unwrap();
    let open = |token: &str| Session::builder("owner/tiny").hub(server.hub(cache.path()).token(token)).open();
    let error = open("hf_wrong").unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("hf_wrong"), "{error}");
    assert_eq!(reply(&open("hf_sesame").unwrap()), reply(&Session::open(&folder).unwrap()));
}

#[test]
fn downloads_are_taken_up_again_and_checked() {
    let folder = fixture("qwen2_bf16");
    let server = Server::new(&[(COMMIT, &folder)]);
    let cache = tempfile::tempdir().unwrap();
    let open = || Session::builder("owner/tiny").hub(server.hub(cache.path())).open();
    server.set(|state| state.spoils = Some("model.safetensors".to_owned()));
    let error = open().unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("SHA-256"), "{error}");
    server.set(|state| {
        state.spoils = None;
        state.breaks = Some(("model.safetensors".to_owned(), 1000));
    });
    assert_eq!(reply(&open().unwrap()), reply(&Session::open(&folder).unwrap()));
    let log = server.log();
    let times =
        log.iter().filter(|path| path.starts_with("/cdn/") && path.ends_with("model.safetensors")).count();
    assert!(times > 3, "asked for size, all of it, size, part of it, the rest: {log:?}");
}

/// What a hub says never leads out of its folder, and a folder that is there is no id.
#[test]
fn names_stay_where_they_belong() {
    let folder = fixture("qwen2_bf16");
    let server = Server::new(&[(COMMIT, &folder)]);
    server.set(|state| {
        let bad =
            br#"{"weight_map": {"model.embed_tokens.weight": "../../../escaped.safetensors"}}"#.to_vec();
        state.files.insert((COMMIT.to_owned(), "model.safetensors.index.json".to_owned()), bad);
    });
    let cache = tempfile::tempdir().unwrap();
    let error = Session::builder("owner/tiny").hub(server.hub(cache.path())).open().unwrap_err().to_string();
    assert!(error.contains("weight_map"), "{error}");
    server.log();
    let there = Session::builder(&folder).hub(server.hub(cache.path())).open().unwrap();
    assert_eq!(reply(&there).len(), 8);
    assert!(Session::builder("/nowhere/at all").hub(server.hub(cache.path())).open().is_err());
    assert!(server.log().is_empty());
}
