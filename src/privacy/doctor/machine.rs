//! Where the doctor looks: the files below a root, the environment, and one flag of the process. Tests bring their own.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
#[cfg(test)]
use std::path::Path;
use std::path::PathBuf;

use super::Finding;

/// A machine to look at.
pub struct Machine {
    root: PathBuf,
    variables: Vec<(OsString, OsString)>,
    /// Whether this process is undumpable: no core dump, no tracing by the same user.
    pub undumpable: bool,
}

impl Machine {
    /// The one that this process runs on.
    pub fn here() -> Self {
        let undumpable = crate::privacy::process::is_undumpable();
        Self { root: "/".into(), variables: std::env::vars_os().collect(), undumpable }
    }

    /// A folder that holds `proc` and `sys`, with these environment variables.
    #[cfg(test)]
    pub fn at(root: &Path, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { root: root.into(), variables, undumpable: false }
    }

    /// The text of a file that every Linux has.
    pub fn text(&self, file: &'static str) -> Result<String, Finding> {
        self.optional(file)?.ok_or(Finding::Unknown { file })
    }

    /// The text of a file that is there only with the feature it belongs to: `None` if the kernel lacks the feature. But
    /// if the file system itself is not there, its absence tells nothing, and that is a finding.
    pub fn optional(&self, file: &'static str) -> Result<Option<String>, Finding> {
        let mount = if file.starts_with("/sys/") { "/sys/kernel" } else { "/proc/sys/kernel" };
        match std::fs::read(self.path(file)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound && self.path(mount).is_dir() => Ok(None),
            Err(_) => Err(Finding::Unknown { file }),
        }
    }

    /// A number in a file that is there only with its feature.
    pub fn number(&self, file: &'static str) -> Result<Option<i64>, Finding> {
        let Some(text) = self.optional(file)? else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|_| Finding::Unknown { file })
    }

    /// The text of a file whose name is put together; `None` if there is none.
    pub fn detail(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.path(file)).ok()
    }

    /// The names in a folder; none if it cannot be listed.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    }

    /// Whether something is there.
    pub fn has(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    /// Whether an environment variable is set to something else than nothing or 0.
    pub fn switched_on(&self, name: &str) -> bool {
        self.variables.iter().any(|(other, value)| other == name && !value.is_empty() && value != "0")
    }

    /// How many environment variables have a name that begins so.
    pub fn variables(&self, prefix: &str) -> usize {
        let begins = |name: &OsStr| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        self.variables.iter().filter(|(name, _)| begins(name)).count()
    }

    fn path(&self, file: &str) -> PathBuf {
        self.root.join(file.trim_start_matches('/'))
    }
}
