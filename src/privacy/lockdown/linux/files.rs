//! The ruleset of Landlock: which rights are taken away, and what the kernel at hand knows of them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, Erratum, LandlockStatus,
    PathBeneath, PathFd, RestrictSelf, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};

use super::super::{LockdownError, Restriction};

/// What the kernel offers.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its Landlock ABI, 0 for none.
    pub landlock_abi: u32,
    /// Whether scoped signals leave a process's own threads alone (erratum 2 of Landlock is fixed).
    pub threads_may_signal: bool,
    /// Whether system calls can be filtered with an error as the answer.
    pub filters_calls: bool,
}

impl Kernel {
    /// Asks the running kernel.
    pub fn probe() -> Self {
        // With no flag and without no_new_privs this changes nothing; it is how the crate tells the status.
        let status = RestrictSelf::default().no_new_privs(false).apply().map(|applied| applied.landlock);
        let landlock_abi = match status {
            Ok(LandlockStatus::Available { effective_abi, kernel_abi }) => {
                kernel_abi.map_or(effective_abi as u32, i32::unsigned_abs)
            }
            _ => 0,
        };
        Self {
            landlock_abi,
            threads_may_signal: Erratum::current().contains(Erratum::ScopedSignalHandling),
            filters_calls: super::calls::available(),
        }
    }

    /// What a lockdown asks for and this kernel cannot do.
    pub fn missing(self) -> Vec<Restriction> {
        let has = |abi| self.landlock_abi >= abi;
        [
            (Restriction::Files, has(1)),
            (Restriction::Truncate, has(3)),
            (Restriction::Tcp, has(4)),
            (Restriction::Devices, has(5)),
            (Restriction::AbstractSockets, has(6)),
            (Restriction::Signals, has(6) && self.threads_may_signal),
            (Restriction::SystemCalls, self.filters_calls),
        ]
        .into_iter()
        .filter_map(|(restriction, has)| (!has).then_some(restriction))
        .collect()
    }
}

/// A ruleset that takes away all rights that the kernel knows, but for reading beneath `readable`; `None` if it has no
/// Landlock. No thread is confined by it yet.
///
/// Rights of later ABIs than 6 are left alone: what they restrict, new sockets, the filter of system calls denies, and
/// sockets that are open shall stay usable.
pub fn ruleset(kernel: Kernel, readable: &[PathBuf]) -> Result<Option<OwnedFd>, LockdownError> {
    let refused = |source| LockdownError::Refused { call: "landlock_create_ruleset", source };
    let paths = readable.iter().map(opened).collect::<Result<Vec<_>, _>>()?;
    if kernel.landlock_abi == 0 {
        return Ok(None);
    }
    let mut scopes = Scope::from_all(ABI::V6);
    if !kernel.threads_may_signal {
        scopes.remove(Scope::Signal);
    }
    let created = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V6)))
        .and_then(|ruleset| ruleset.scope(scopes))
        .and_then(Ruleset::create)
        .map_err(|error| refused(std::io::Error::other(error)))?;
    let filled = created
        .add_rules(
            paths
                .into_iter()
                .map(|(path, rights)| Ok::<_, landlock::RulesetError>(PathBeneath::new(path, rights))),
        )
        .map_err(|error| refused(std::io::Error::other(error)))?;
    Ok(filled.into())
}

/// The path, and the rights to read it: a file has no entries to list.
fn opened(path: &PathBuf) -> Result<(PathFd, BitFlags<AccessFs>), LockdownError> {
    let wrong = |source| LockdownError::Path { path: path.clone(), source };
    let is_folder = std::fs::metadata(path).map_err(wrong)?.is_dir();
    let opened = PathFd::new(path).map_err(|error| match error {
        landlock::PathFdError::OpenCall { source, .. } => wrong(source),
        other => wrong(std::io::Error::other(other)),
    })?;
    let rights = if is_folder { AccessFs::ReadFile | AccessFs::ReadDir } else { AccessFs::ReadFile.into() };
    Ok((opened, rights))
}
