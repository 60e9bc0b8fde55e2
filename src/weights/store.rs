//! Where the files of a checkpoint are: on the disk, or in the memory of the application ([`Files`]).
//!
//! Files in memory have paths below a root that no disk has. While a session opens, [`Held`] stands on its thread and says
//! what is below such roots; all of a checkpoint is read on that thread, through [`super::json`] and [`super::map`], which
//! ask here, as does whoever asks whether a file is there. So nothing else knows the difference, and hashes, errors and
//! refusals are the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Names of a folder that are looked at; no checkpoint has as many files.
const MAX_NAMES: usize = 1 << 16;
const MAX_NAME_BYTES: usize = 255;

thread_local! {
    static HELD: RefCell<Vec<(PathBuf, Files)>> = const { RefCell::new(Vec::new()) };
}

/// The files of a checkpoint in memory, by the names that they have in its folder: for an application that carries its
/// model in its own package, or decrypts it. [`crate::Session::from_files`] opens a session on them.
///
/// A session holds the files only while it opens: weights are packed into memory of its own, as those of a folder are, and
/// the files are dropped when [`crate::Builder::open`] returns. Meanwhile both are there;
/// [`MemoryPlan`](crate::MemoryPlan) counts the session's own memory. Clones share the bytes.
///
/// ```standalone_crate
/// # amnesic::install_scrubbing_allocator!();
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
/// let mut files = amnesic::Files::new();
/// for name in ["config.json", "tokenizer.json"] {
///     files = files.file(name, std::fs::read(format!("models/default/{name}"))?); // or `include_bytes!`
/// }
/// let weights = std::fs::File::open("models/default/model.safetensors")?; // or what decrypts
/// let files = files.read("model.safetensors", weights)?;
/// let session = amnesic::Session::from_files(files).open()?;
/// let reply = session.generate(amnesic::Request::prompt("A slice is").max_tokens(4))?;
/// # assert!(!reply.text().is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Files(BTreeMap<String, Bytes>);

/// The bytes of a file in memory.
#[derive(Clone)]
pub struct Bytes(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Files {
    /// No files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, by its name below the checkpoint's folder: `config.json`, `1_Pooling/config.json`, a shard's name, or
    /// one that ends with `.gguf`. What holds the bytes may be a `Vec<u8>`, a `&'static [u8]`, or a mapping of the
    /// application's, and must give the same bytes each time. A file of the same name is replaced.
    pub fn file(mut self, name: impl Into<String>, bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        self.0.insert(name.into(), Bytes::of(bytes));
        self
    }

    /// Adds a file that is read to its end.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(self, name: impl Into<String>, mut reader: impl Read) -> io::Result<Self> {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Ok(self.file(name, bytes))
    }

    /// The names of the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What is opened of them below `root`: all of them as a folder, or the only GGUF file where there is no `config.json`.
    pub(crate) fn place(&self, root: &Path) -> PathBuf {
        let is_gguf =
            |name: &&str| Path::new(name).extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        match self.names().find(is_gguf) {
            Some(name) if !self.0.contains_key("config.json") => root.join(name),
            _ => root.to_owned(),
        }
    }

    /// The file at a path below the root.
    fn get(&self, path: &Path) -> Option<&Bytes> {
        self.0.get(&name(path)?)
    }

    /// The names of files in a folder below the root.
    fn inside(&self, folder: &Path) -> Vec<String> {
        let Some(folder) = name(folder) else { return Vec::new() };
        let prefix = if folder.is_empty() { folder } else { folder + "/" };
        let inside = self.names().filter_map(|name| name.strip_prefix(&*prefix));
        inside.filter(|rest| !rest.contains('/')).map(str::to_owned).collect()
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, bytes)| (name, bytes.get().len()))).finish()
    }
}

impl Bytes {
    /// What holds them may be the application's.
    pub fn of(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(bytes))
    }

    /// All of them.
    pub fn get(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bytes").field("len", &self.get().len()).finish()
    }
}

/// A path below a root as the name of a file; none where it leads out of it.
fn name(path: &Path) -> Option<String> {
    let part = |part: Component<'_>| match part {
        Component::Normal(part) => part.to_str().map(str::to_owned),
        _ => None,
    };
    let parts: Option<Vec<String>> = path.components().map(part).collect();
    Some(parts?.join("/"))
}

/// While it stands, files below these roots are in memory, for this thread.
#[derive(Debug)]
pub struct Held {
    /// A session may be opened while another one loads, from its callback of progress.
    outer: Vec<(PathBuf, Files)>,
}

impl Held {
    pub fn new(files: Vec<(PathBuf, Files)>) -> Self {
        Self { outer: HELD.with_borrow_mut(|held| std::mem::replace(held, files)) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let outer = std::mem::take(&mut self.outer);
        let inner = HELD.with_borrow_mut(|held| std::mem::replace(held, outer));
        drop(inner); // the last of the files may be the application's own type
    }
}

/// Asks the files in memory, where the path is below one of their roots.
fn held<T>(path: &Path, ask: impl FnOnce(&Files, &Path) -> T) -> Option<T> {
    HELD.with_borrow(|held| {
        let below = |(root, files): &'_ (PathBuf, Files)| {
            let rest = path.strip_prefix(root).ok()?.to_owned();
            Some((files.clone(), rest))
        };
        held.iter().find_map(below)
    })
    .map(|(files, rest)| ask(&files, &rest))
}

/// The bytes of a file in memory; none where the path is of the disk.
///
/// # Errors
/// The path is below a root of files in memory, and none of them is there.
pub fn bytes(file: &Path) -> io::Result<Option<Bytes>> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    held(file, |files, name| files.get(name).cloned()).map(|bytes| bytes.ok_or_else(missing)).transpose()
}

/// Whether a file is there.
pub fn exists(file: &Path) -> bool {
    held(file, |files, name| files.get(name).is_some()).unwrap_or_else(|| file.exists())
}

/// Whether that is a file, not a folder.
pub fn is_file(path: &Path) -> bool {
    held(path, |files, name| files.get(name).is_some()).unwrap_or_else(|| path.is_file())
}

/// Whether that is a folder.
pub fn is_folder(path: &Path) -> bool {
    held(path, |files, name| !files.inside(name).is_empty()).unwrap_or_else(|| path.is_dir())
}

/// The names of what is in a folder, sorted: those that fit an error's line.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = match held(folder, Files::inside) {
        Some(names) => names,
        None => {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(folder)?.take(MAX_NAMES) {
                names.extend(entry?.file_name().into_string());
            }
            names
        }
    };
    names.retain(|name| name.len() <= MAX_NAME_BYTES && !name.contains(char::is_control));
    names.sort_unstable();
    Ok(names)
}

/// Lists like [`list`]; a folder that cannot be read has none.
pub fn names(folder: &Path) -> Vec<String> {
    list(folder).unwrap_or_default()
}

/// A file to be read at any place.
#[derive(Debug)]
pub enum Content {
    Disk(File),
    Memory(Bytes),
}

impl Content {
    /// # Errors
    /// It cannot be opened.
    pub fn open(file: &Path) -> io::Result<Self> {
        match bytes(file)? {
            Some(bytes) => Ok(Self::Memory(bytes)),
            None => File::open(file).map(Self::Disk),
        }
    }

    /// # Errors
    /// The system does not say.
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Self::Disk(file) => Ok(file.metadata()?.len()),
            Self::Memory(bytes) => Ok(bytes.get().len() as u64),
        }
    }

    /// Reads bytes from `at` on; 0 at the end.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        match self {
            Self::Disk(file) => file.read_at(buffer, at),
            Self::Memory(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get().get(at..)).unwrap_or_default();
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }

    /// Reads as many bytes as there is room for.
    ///
    /// # Errors
    /// There are fewer, or they cannot be read.
    pub fn read_exact_at(&self, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    buffer = &mut buffer[read..];
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_memory_are_seen_on_their_thread_while_they_are_held() {
        let root = Path::new("memory:x");
        let files = Files::new().file("config.json", *b"{}").file("1_Pooling/config.json", &b"[]"[..]);
        assert_eq!(files.place(root), root);
        let gguf = files.clone();
        assert_eq!(Files::new().file("a.gguf", "x").place(root), root.join("a.gguf"));
        assert_eq!(gguf.file("a.gguf", "x").place(root), root, "there is a config");
        let config = root.join("config.json");
        assert!(!exists(&config));
        {
            let _held = Held::new(vec![(root.to_owned(), files.clone())]);
            assert!(exists(&config) && is_file(&config) && is_folder(root) && !is_file(root));
            assert!(is_folder(&root.join("1_Pooling")) && !exists(&root.join("2_Dense")));
            assert_eq!(names(root), ["config.json"]);
            assert_eq!(bytes(&config).unwrap().unwrap().get(), b"{}");
            assert_eq!(bytes(&root.join("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
            assert!(bytes(&root.join("../config.json")).is_err(), "it leads out");
            assert!(bytes(Path::new("Cargo.toml")).unwrap().is_none() && exists(Path::new("Cargo.toml")));
            let content = Content::open(&config).unwrap();
            let mut two = [0; 2];
            content.read_exact_at(&mut two, 0).unwrap();
            assert_eq!((content.len().unwrap(), &two), (2, b"{}"));
            assert!(
                content.read_exact_at(&mut two, 1).is_err() && content.read_at(&mut two, 9).unwrap() == 0
            );
            std::thread::scope(|scope| scope.spawn(|| assert!(!exists(&config))).join().unwrap());
            {
                let _inner = Held::new(Vec::new());
                assert!(!exists(&config));
            }
            assert!(exists(&config));
        }
        assert!(!exists(&config));
        assert_eq!(format!("{files:?}"), r#"{"1_Pooling/config.json": 2, "config.json": 2}"#);
    }
}
