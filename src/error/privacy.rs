//! Why something that privacy asks for was refused.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::Error;

/// Names that a registry of models has at most.
pub(crate) const MAX_ALIASES: usize = 4096;

/// Why a model's name cannot be set or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AliasReason {
    /// No such name, or what it leads to was removed.
    #[error("no model has this name")]
    Unknown,
    /// It would cross from one policy class to another.
    #[error("the name belongs to class `{class}`, not `{wanted}`")]
    OtherClass {
        /// The name's class: `local`, or a provider's name.
        class: &'static str,
        /// The class asked for.
        wanted: &'static str,
    },
    /// The name is in use: [`crate::privacy::ModelAliases::repoint`] changes where it leads.
    #[error("the name is in use")]
    Taken,
    /// It would lead back to itself.
    #[error("the name would lead back to itself")]
    Circle,
    /// [`crate::privacy::ModelAliases::MAX_NAMES`].
    #[error("there are {} names already", MAX_ALIASES)]
    Full,
}

impl From<AliasReason> for Error {
    fn from(reason: AliasReason) -> Self {
        Self::ModelAlias(reason)
    }
}

/// Why a disclosure was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisclosureReason {
    /// Another policy was shown than the one the data go under.
    #[error("what was shown is not the current policy of {provider}")]
    OtherPolicy {
        /// [`crate::privacy::Provider::NAME`].
        provider: &'static str,
    },
    /// The clock is wrong.
    #[error("the time of the disclosure is before 1970")]
    Time,
}

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// This machine has no such thing.
    #[error("{0} is not available here")]
    NotAvailable(&'static str),
    /// The system refused a file or a device.
    #[error("{file}: {source}")]
    Io {
        /// Which.
        file: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The device answered with an error.
    #[error("{what}: response code {code:#x}")]
    Refused {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        code: u32,
    },
    /// What the device answered is not what it should be.
    #[error("the quote must {0}")]
    Malformed(&'static str),
    /// The [`crate::privacy::Attester`] panicked.
    #[error("the attester panicked")]
    Panicked,
}

/// Why a process could not be confined, or a setting of [`crate::privacy::process`] not be made.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// The kernel cannot enforce these. Nothing was enforced.
    #[error("this kernel cannot restrict {}; nothing was enforced", listed(.0))]
    Missing(Vec<Restriction>),
    /// A path to be read later cannot be opened. Nothing was enforced.
    #[error("{path}: {source}; nothing was enforced")]
    Path {
        /// The path.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Threads did not answer the signal that would confine them: they block it, or are stopped. Nothing was enforced.
    #[error("{silent} threads block every signal or are stopped; nothing was enforced")]
    Threads {
        /// How many.
        silent: usize,
    },
    /// Some threads are confined and others are not. The process should end.
    #[error("{confined} threads are confined, {unconfined} are not: end this process")]
    Partial {
        /// Threads that Landlock confines.
        confined: usize,
        /// Threads that it does not.
        unconfined: usize,
    },
    /// This process has been confined before.
    #[error("this process is locked down already")]
    Already,
    /// The operating system refused.
    #[error("{call}: {source}")]
    Refused {
        /// The system call, or the file.
        call: &'static str,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The kernel took a setting, but reports another.
    #[error("{call}: the kernel did not keep the setting")]
    NotKept {
        /// The system call.
        call: &'static str,
    },
    /// Only Linux, on x86-64 and 64-bit Arm, has this.
    #[error("not supported on this platform")]
    NotSupported,
}

/// One thing that a lockdown restricts.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Restriction {
    /// Opening, creating, writing, removing, renaming and linking of files: Landlock ABI 1, Linux 5.13.
    Files,
    /// Truncating of files: Landlock ABI 3, Linux 6.2.
    Truncate,
    /// TCP `bind` and `connect`: Landlock ABI 4, Linux 6.7.
    Tcp,
    /// Control of devices that were not open: Landlock ABI 5, Linux 6.10.
    Devices,
    /// Abstract unix sockets of processes outside: Landlock ABI 6, Linux 6.12.
    AbstractSockets,
    /// Signals to processes outside: Landlock ABI 6, and a kernel that has erratum 2 fixed. Without the fix threads
    /// could no longer signal each other.
    Signals,
    /// The filter of system calls.
    SystemCalls,
    /// Every thread of the process.
    AllThreads,
}

impl fmt::Display for Restriction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "files",
            Self::Truncate => "truncation of files",
            Self::Tcp => "TCP",
            Self::Devices => "control of devices",
            Self::AbstractSockets => "abstract unix sockets",
            Self::Signals => "signals to other processes",
            Self::SystemCalls => "system calls",
            Self::AllThreads => "all threads",
        })
    }
}

/// Their names in one line.
pub(crate) fn listed(restrictions: &[Restriction]) -> String {
    restrictions.iter().map(Restriction::to_string).collect::<Vec<_>>().join(", ")
}
