//! Checkpoints of a hub, by their ids: downloaded once, into the cache that Hugging Face's own tools use.
//!
//! Connections are opened while a session is opened, and only then. All that goes out are the id, the revision, names of
//! files and the token.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::weights::{json, shards};

/// How often a download that breaks off is taken up again.
const RETRIES: usize = 4;

/// A file on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Download<'a> {
    /// Its name in the repository.
    pub file: &'a str,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

type OnDownload = Arc<dyn Fn(Download<'_>) + Send + Sync>;

/// Which hub, and how: for [`crate::Builder::hub`]. What is not set is as for Hugging Face's own tools: the environment
/// variables `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE`, and the token that their login
/// stored.
#[derive(Clone)]
pub struct Hub {
    endpoint: Option<String>,
    token: Option<Arc<Secret<str>>>,
    cache: Option<PathBuf>,
    offline: Option<bool>,
    on_download: Option<OnDownload>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// What the environment says holds.
    pub fn new() -> Self {
        Self { endpoint: None, token: None, cache: None, offline: None, on_download: None }
    }

    /// Another hub than `https://huggingface.co`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Whose downloads these are, for repositories that are not for everybody.
    pub fn token<'a>(mut self, token: impl Into<Cow<'a, str>>) -> Self {
        self.token = Some(Arc::new(Secret::take(token.into())));
        self
    }

    /// Where files are kept: the folder that has `models--...` in it.
    pub fn cache_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.cache = Some(folder.as_ref().to_owned());
        self
    }

    /// Opens no connection: what is not in the cache is an error.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = Some(offline);
        self
    }

    /// Is called as files arrive, from the thread that opens the session.
    pub fn on_download(mut self, call: impl Fn(Download<'_>) + Send + Sync + 'static) -> Self {
        self.on_download = Some(Arc::new(call));
        self
    }

    /// The folder with the files of `id`, which are downloaded if they are not there.
    ///
    /// # Errors
    /// [`Error::Hub`]: the repository or a file is not there or not to be had, or not what the hub says it is.
    pub(crate) fn fetch(&self, id: &Id) -> Result<PathBuf> {
        let cache = self.cache_folder();
        let main = Repo::with_revision(id.name.clone(), RepoType::Model, id.revision.clone());
        if self.is_offline() {
            return cached(&cache, main).ok_or_else(|| {
                id.error("", "is not whole in the cache, and no connection may be opened".into())
            });
        }
        let api = self.api(cache.clone()).map_err(|error| id.error("", error.to_string()))?;
        let info = match api.repo(main.clone()).info() {
            Ok(info) => info,
            // without a connection what is there serves
            Err(error) => match cached(&cache, main) {
                Some(folder) if is_unreachable(&error) => return Ok(folder),
                _ => return Err(id.error("", error.to_string())),
            },
        };
        if !is_commit(&info.sha) {
            return Err(id.error("", "has no commit: the hub's answer is malformed".into()));
        }
        // of one commit all, wherever the branch moves meanwhile
        let pinned = Repo::with_revision(id.name.clone(), RepoType::Model, info.sha.clone());
        let names: BTreeSet<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let mut fetch = Fetch { hub: self, id, cache: &cache, repo: api.repo(pinned.clone()), pinned, names };
        let folder = fetch.all()?;
        let noted = cache.repo(main).create_ref(&info.sha);
        noted.map_err(|error| id.error("", format!("cannot be noted in the cache: {error}")))?;
        Ok(folder)
    }

    fn cache_folder(&self) -> Cache {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        match self.cache.clone().or_else(|| set("HF_HUB_CACHE").map(PathBuf::from)) {
            Some(folder) => Cache::new(folder),
            None => Cache::from_env(),
        }
    }

    fn is_offline(&self) -> bool {
        let set = || std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(&*value, "" | "0"));
        self.offline.unwrap_or_else(set)
    }

    fn api(&self, cache: Cache) -> std::result::Result<Api, ApiError> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut builder = ApiBuilder::from_cache(cache).with_progress(false).with_retries(RETRIES);
        if let Some(url) = self.endpoint.clone().or_else(|| set("HF_ENDPOINT")) {
            builder = builder.with_endpoint(url.trim_end_matches('/').to_owned());
        }
        let own = self.token.as_ref().map(|token| token.expose().to_owned());
        if let Some(token) = own.or_else(|| set("HF_TOKEN")) {
            builder = builder.with_token(Some(token));
        }
        builder.build()
    }
}

/// A name of a repository, `name` or `owner/name`, and a revision: a branch, a tag or a commit.
#[derive(Debug)]
pub(crate) struct Id {
    name: String,
    revision: String,
}

impl Id {
    /// Reads `owner/name` or `owner/name@revision`; none if it is neither.
    pub fn parse(path: &Path) -> Option<Self> {
        let (name, revision) = match path.to_str()?.split_once('@') {
            Some((name, revision)) => (name, revision),
            None => (path.to_str()?, "main"),
        };
        let parts: Vec<&str> = name.split('/').collect();
        let good = |part: &&str| {
            let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
            !part.is_empty() && part.len() < 100 && part.chars().all(allowed) && !part.starts_with(['.', '-'])
        };
        let of_revision = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
        let revised = !revision.is_empty() && revision.chars().all(of_revision) && is_inside(revision);
        (matches!(parts.len(), 1 | 2) && parts.iter().all(good) && revised)
            .then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    fn error(&self, file: &str, reason: String) -> Error {
        Error::Hub { id: format!("{}@{}", self.name, self.revision), file: file.to_owned(), reason }
    }
}

/// Whether a name from a hub stays below the folder that it is put into.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

fn is_commit(sha: &str) -> bool {
    sha.len() == 40 && sha.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether an error says that the hub could not be asked, rather than what it answered.
fn is_unreachable(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => !matches!(**error, ureq::Error::StatusCode(_)),
        ApiError::IoError(_) => true,
        _ => false,
    }
}

/// What `model.safetensors.index.json` names.
fn indexed(index: &Path) -> Result<BTreeSet<String>> {
    let wrong = || Error::config(index, "weight_map", "an object of file names");
    let index: Value = serde_json::from_str(&json::read_index(index)?).map_err(|_| wrong())?;
    let map = index["weight_map"].as_object().ok_or_else(wrong)?;
    let names = map.values().map(|name| name.as_str().filter(|name| is_inside(name)).map(str::to_owned));
    names.collect::<Option<_>>().ok_or_else(wrong)
}

/// The folders that `modules.json` names, but for the checkpoint's own.
fn modules(file: &Path) -> Result<Vec<String>> {
    let wrong = || Error::config(file, "", "a JSON list of modules, each with a `path` inside the folder");
    let list: Value = serde_json::from_str(&json::read(file)?).map_err(|_| wrong())?;
    let paths = list.as_array().ok_or_else(wrong)?.iter();
    let paths = paths.map(|module| module["path"].as_str().unwrap_or_default());
    paths
        .filter(|path| !path.is_empty())
        .map(|path| is_inside(path).then(|| path.to_owned()).ok_or_else(wrong))
        .collect()
}

const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";

/// The folder of a repository's files in the cache, if it has weights, all of them.
fn cached(cache: &Cache, repo: Repo) -> Option<PathBuf> {
    let config = cache.repo(repo).get("config.json")?;
    let folder = config.parent()?.to_owned();
    let index = folder.join(INDEX);
    let whole = match index.exists() {
        true => indexed(&index).ok()?.iter().all(|name| folder.join(name).exists()),
        false => folder.join(WEIGHTS).exists() || shards::numbered(&folder).is_ok_and(|all| all.is_some()),
    };
    whole.then_some(folder)
}

/// A download of a repository's files.
struct Fetch<'a> {
    hub: &'a Hub,
    id: &'a Id,
    cache: &'a Cache,
    repo: ApiRepo,
    pinned: Repo,
    /// The files that it has.
    names: BTreeSet<String>,
}

impl Fetch<'_> {
    /// Configuration and tokenizer first, so that what cannot be read is found before the weights are here.
    fn all(&mut self) -> Result<PathBuf> {
        let config = self.file("config.json")?;
        let folder = config.parent().expect("a file is in a folder").to_owned();
        let beside = |name: &&String| {
            let small = [".json", ".jinja"].iter().any(|end| name.ends_with(end));
            small && !name.contains('/') && is_inside(name)
        };
        let small: Vec<String> = self.names.iter().filter(beside).cloned().collect();
        for name in small {
            self.file(&name)?;
        }
        let mut weights = self.weights(&folder)?;
        if self.names.contains("modules.json") {
            for path in modules(&folder.join("modules.json"))? {
                for name in ["config.json", WEIGHTS] {
                    let name = format!("{path}/{name}");
                    if self.names.contains(&name) {
                        weights.insert(name);
                    }
                }
            }
        }
        for name in weights {
            self.file(&name)?;
        }
        Ok(folder)
    }

    /// What the index names; or `model.safetensors`; or, where neither is there, the shards that are numbered.
    fn weights(&self, folder: &Path) -> Result<BTreeSet<String>> {
        if self.names.contains(INDEX) {
            return indexed(&folder.join(INDEX));
        }
        let single = || BTreeSet::from([WEIGHTS.to_owned()]);
        if self.names.contains(WEIGHTS) {
            return Ok(single());
        }
        let names: Vec<String> =
            self.names.iter().filter(|name| !name.contains('/') && is_inside(name)).cloned().collect();
        let name = |file: PathBuf| Some(file.file_name()?.to_str()?.to_owned());
        let numbered = shards::numbered_of(folder, &names)?;
        Ok(numbered.map_or_else(single, |files| files.into_iter().filter_map(name).collect()))
    }

    /// One file's place in the cache.
    fn file(&self, name: &str) -> Result<PathBuf> {
        if !self.names.contains(name) {
            return Err(self.id.error(name, "is not in the repository".into()));
        }
        if let Some(path) = self.cache.repo(self.pinned.clone()).get(name) {
            return Ok(path);
        }
        let told = Told { name, done: 0, total: 0, call: self.hub.on_download.as_ref() };
        let path = self.repo.download_with_progress(name, told);
        let path = path.map_err(|error| self.id.error(name, error.to_string()))?;
        self.check(name, &path)?;
        Ok(path)
    }

    /// Large files are named by their SHA-256: whatever is not that is thrown away.
    fn check(&self, name: &str, path: &Path) -> Result<()> {
        let failed = |error: std::io::Error| self.id.error(name, error.to_string());
        let blob = path.canonicalize().map_err(failed)?;
        let named = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if named.len() != 64 || !named.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(());
        }
        let mut file = std::fs::File::open(&blob).map_err(failed)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == named.to_ascii_lowercase() {
            return Ok(());
        }
        for file in [path, &blob] {
            let _ = std::fs::remove_file(file); // it may be one and the same
        }
        Err(self
            .id
            .error(name, format!("is not what the hub says it is: its SHA-256 is {found}, not {named}")))
    }
}

/// Tells of one file.
struct Told<'a> {
    name: &'a str,
    done: u64,
    total: u64,
    call: Option<&'a OnDownload>,
}

impl Told<'_> {
    fn report(&self) {
        let (done_bytes, total_bytes) = (self.done, self.total);
        self.call.iter().for_each(|call| call(Download { file: self.name, done_bytes, total_bytes }));
    }
}

impl hf_hub::api::Progress for Told<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, bytes: usize) {
        self.done += bytes as u64;
        self.report();
    }

    fn finish(&mut self) {
        self.report();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let parse = |text: &str| Id::parse(Path::new(text)).map(|id| format!("{} {}", id.name, id.revision));
        assert_eq!(parse("gpt2").unwrap(), "gpt2 main");
        assert_eq!(parse("Qwen/Qwen3-0.6B").unwrap(), "Qwen/Qwen3-0.6B main");
        assert_eq!(parse("a/b@refs/pr/3").unwrap(), "a/b refs/pr/3");
        for path in [
            "",
            "/a/b",
            "./a",
            "../a",
            "a/b/c",
            "a/",
            "a b",
            "a/b@",
            "a/b@../c",
            "~/a",
            "a/..",
            "a/b@/c",
            ".hidden/a",
        ] {
            assert!(parse(path).is_none(), "{path}");
        }
    }

    #[test]
    fn names_stay_inside() {
        assert!(is_inside("model.safetensors") && is_inside("1_Pooling/config.json"));
        assert!(!is_inside("../x") && !is_inside("/x") && !is_inside("") && !is_inside("a/../../x"));
    }

    #[test]
    fn debug_prints_no_token() {
        assert!(!format!("{:?}", Hub::new().token("hf_secret")).contains("secret"));
    }
}
