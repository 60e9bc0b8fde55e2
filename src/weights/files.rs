//! Which files a session was opened from, and their hashes, for its receipts.
//!
//! All of a checkpoint is read through two doors, [`super::json::read`] and [`super::map::Map::open`], on the thread that
//! opens the session. While a [`Recording`] stands on a thread, both tell it. So no list of files has to be kept beside the
//! code that reads them, and what was hashed is what was used: texts are hashed as they were read, and weights through the
//! open file that was mapped, on a thread of their own while the weights are packed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::store::{Bytes, Content};
use crate::error::{Error, Result};

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What a file of a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FileRole {
    /// Tensors. A GGUF file has its configuration and tokenizer too.
    Weights,
    /// Configuration, indices among it.
    Configuration,
    /// Tokenizer and chat templates.
    Tokenizer,
}

/// A file of a checkpoint, and its SHA-256.
#[derive(Clone, Debug)]
pub struct HashedFile {
    pub name: String,
    pub role: FileRole,
    pub bytes: u64,
    pub sha256: [u8; 32],
}

/// A file that was hashed, and its length.
type Hashed = (PathBuf, u64, [u8; 32]);

/// A file that was mapped, on its way to be hashed.
type Mapped = (PathBuf, Content);

/// What was read so far on this thread.
struct Recorder {
    texts: BTreeMap<PathBuf, (u64, [u8; 32])>,
    /// Device and inode of what was mapped.
    mapped: BTreeMap<PathBuf, (u64, u64)>,
    to_hash: Sender<Mapped>,
    /// A file that was not the same each time that it was read.
    changed: Option<PathBuf>,
}

/// Files that this thread reads are recorded until this is finished or dropped.
pub struct Recording {
    hashing: Option<JoinHandle<Result<Vec<Hashed>>>>,
    /// Nobody waits for hashes any more.
    stop: Arc<AtomicBool>,
    /// A session may be opened while another one loads, from its callback of progress.
    outer: Option<Recorder>,
}

impl Recording {
    /// Begins to record.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start() -> Result<Self> {
        let (to_hash, files) = channel();
        let hashing = std::thread::Builder::new().name("amnesic-hashes".into());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let hashing = hashing.spawn(move || hash_all(&files, &stopped)).map_err(Error::Thread)?;
        let recorder = Recorder { texts: BTreeMap::new(), mapped: BTreeMap::new(), to_hash, changed: None };
        let outer = RECORDER.with_borrow_mut(|current| current.replace(recorder));
        Ok(Self { hashing: Some(hashing), stop, outer })
    }

    /// Waits until all is hashed, and gives the files in the order of their names; `name` says what a path is called.
    ///
    /// # Errors
    /// A file could not be read, or changed meanwhile.
    pub fn finish(mut self, name: impl Fn(&Path) -> String) -> Result<Vec<HashedFile>> {
        let recorder = RECORDER.with_borrow_mut(|current| std::mem::replace(current, self.outer.take()));
        let (Some(Recorder { texts, to_hash, changed, .. }), Some(hashing)) = (recorder, self.hashing.take())
        else {
            return Ok(Vec::new());
        };
        drop(to_hash); // no more come: the thread ends
        let mapped = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if let Some(file) = changed {
            return Err(Error::config(&file, "", "the same for as long as the session opens"));
        }
        let texts = texts.into_iter().map(|(path, (bytes, sha256))| (role(&path), path, bytes, sha256));
        let mapped = mapped.into_iter().map(|(path, bytes, sha256)| (FileRole::Weights, path, bytes, sha256));
        let mut files: Vec<HashedFile> = texts
            .chain(mapped)
            .map(|(role, path, bytes, sha256)| HashedFile { name: name(&path), role, bytes, sha256 })
            .collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(hashing) = self.hashing.take() {
            self.stop.store(true, Ordering::Relaxed);
            RECORDER.with_borrow_mut(|current| *current = self.outer.take());
            let _ = hashing.join(); // the session did not open: why, is told elsewhere
        }
    }
}

/// A text was read.
pub fn was_read(file: &Path, text: &[u8]) {
    RECORDER.with_borrow_mut(|current| {
        let Some(recorder) = current else { return };
        let entry: (u64, [u8; 32]) = (text.len() as u64, Sha256::digest(text).into());
        if recorder.texts.insert(file.to_owned(), entry).is_some_and(|before| before != entry) {
            recorder.changed = Some(file.to_owned());
        }
    });
}

/// A file was mapped.
///
/// # Errors
/// It cannot be named a second time.
pub fn was_mapped(path: &Path, file: &File) -> std::io::Result<()> {
    RECORDER.with_borrow_mut(|current| {
        let Some(recorder) = current else { return Ok(()) };
        let metadata = file.metadata()?;
        let inode = (metadata.dev(), metadata.ino());
        match recorder.mapped.insert(path.to_owned(), inode) {
            None => drop(recorder.to_hash.send((path.to_owned(), Content::Disk(file.try_clone()?)))),
            Some(before) if before != inode => recorder.changed = Some(path.to_owned()),
            Some(_) => {}
        }
        Ok(())
    })
}

/// A file in memory was taken as one that is mapped.
pub fn was_held(path: &Path, bytes: &Bytes) {
    RECORDER.with_borrow_mut(|current| {
        let Some(recorder) = current else { return };
        // one that cannot be replaced meanwhile
        if recorder.mapped.insert(path.to_owned(), (0, 0)).is_none() {
            drop(recorder.to_hash.send((path.to_owned(), Content::Memory(bytes.clone()))));
        }
    });
}

/// Hashes files until no more come.
fn hash_all(files: &Receiver<Mapped>, stop: &AtomicBool) -> Result<Vec<Hashed>> {
    let mut hashed = Vec::new();
    for (path, file) in files {
        let (bytes, sha256) = hash(&file, stop).map_err(Error::read(&path))?;
        hashed.push((path, bytes, sha256));
    }
    Ok(hashed)
}

/// Read, not mapped: pages of a mapping would count as this process's memory.
fn hash(file: &Content, stop: &AtomicBool) -> std::io::Result<(u64, [u8; 32])> {
    const CHUNK: usize = 1 << 20;
    let (mut hash, mut chunk, mut at) = (Sha256::new(), vec![0; CHUNK], 0);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        match file.read_at(&mut chunk, at) {
            Ok(0) => return Ok((at, hash.finalize().into())),
            Ok(read) => {
                hash.update(&chunk[..read]);
                at += read as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a text of a checkpoint is, by its name.
fn role(path: &Path) -> FileRole {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let of_tokenizer = ["tokenizer", "special_tokens", "added_tokens", "vocab", "chat_template"];
    let template = path.extension().is_some_and(|end| end == "jinja");
    match template || of_tokenizer.iter().any(|start| name.starts_with(start)) {
        true => FileRole::Tokenizer,
        false => FileRole::Configuration,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &Path) -> String {
        path.file_name().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn what_is_read_on_this_thread_is_hashed() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file
        };
        let (config, tokenizer) = (write("config.json", "{}"), write("tokenizer.json", "abc"));
        let weights = write("model.safetensors", &"w".repeat(3 << 20));
        super::super::json::read(&config).unwrap();
        let recording = Recording::start().unwrap();
        for _ in 0..2 {
            super::super::json::read(&tokenizer).unwrap();
            super::super::map::Map::open(&weights).unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| super::super::json::read(&config).unwrap());
        });
        let inner = Recording::start().unwrap();
        super::super::json::read(&config).unwrap();
        assert_eq!(inner.finish(name).unwrap().len(), 1);
        let files = recording.finish(name).unwrap();
        let told: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.role, file.bytes)).collect();
        let expected =
            [("model.safetensors", FileRole::Weights, 3 << 20), ("tokenizer.json", FileRole::Tokenizer, 3)];
        assert_eq!(told, expected);
        // sha256sum's
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hex: String = files[1].sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, of_abc);
        super::super::json::read(&config).unwrap(); // nobody listens
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let recording = Recording::start().unwrap();
        for text in ["{}", "{ }"] {
            std::fs::write(&file, text).unwrap();
            super::super::json::read(&file).unwrap();
        }
        let error = recording.finish(name).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}
