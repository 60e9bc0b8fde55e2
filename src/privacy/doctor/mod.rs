//! What on this machine weakens the guarantee: settings outside the process, which it can only tell about.
//!
//! Never lives here: a change to the machine, or text that was read from it. Findings are kinds and numbers.

mod checks;
mod finding;
mod machine;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Serialize, Serializer};

pub use finding::{Finding, Severity, SwapKind};
use machine::Machine;

/// What [`doctor`] found, the worst first.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Each finding once. None means that nothing was found, not that there is nothing.
    pub findings: Vec<Finding>,
}

/// Looks at the settings of this machine and process that decide who can see the process's memory: swap, core dumps,
/// hibernation, tracing, page merging, virtual machines, the NVIDIA driver, CUDA's environment variables.
///
/// Reads files of /proc and /sys, which a [`super::Lockdown`] closes: call it before. On other systems than Linux the one
/// finding is [`Finding::NotSupported`].
pub fn doctor() -> Diagnosis {
    doctor_for(0)
}

/// Looks like [`doctor`], and tells whether `bytes` of memory can be locked against swapping. A session locks
/// [`kv_bytes`](crate::MemoryPlan::kv_bytes) and [`workspace_bytes`](crate::MemoryPlan::workspace_bytes) of its plan.
pub fn doctor_for(bytes: u64) -> Diagnosis {
    if cfg!(not(target_os = "linux")) {
        return Diagnosis { findings: vec![Finding::NotSupported] };
    }
    diagnose(&Machine::here(), bytes)
}

fn diagnose(machine: &Machine, bytes: u64) -> Diagnosis {
    let mut findings = checks::all(machine, bytes);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
    Diagnosis { findings }
}

impl Diagnosis {
    /// The severity of the worst finding; `None` if there is no finding.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
}

/// For each finding a line with what it is, one with why it matters, and one with what to do.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.findings.is_empty() {
            return f.write_str("nothing was found that weakens the guarantee");
        }
        for (index, finding) in self.findings.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(
                f,
                "{end}{}: {finding}\n    {}\n    -> {}",
                finding.severity(),
                finding.explanation(),
                finding.remedy()
            )?;
        }
        Ok(())
    }
}

/// A list of findings, each with its severity, explanation and remedy.
impl Serialize for Diagnosis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            severity: Severity,
            #[serde(flatten)]
            finding: &'a Finding,
            explanation: &'static str,
            remedy: &'static str,
        }
        serializer.collect_seq(self.findings.iter().map(|finding| Entry {
            severity: finding.severity(),
            finding,
            explanation: finding.explanation(),
            remedy: finding.remedy(),
        }))
    }
}
