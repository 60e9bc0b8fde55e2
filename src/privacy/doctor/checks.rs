//! One check for each thing that the doctor looks at.

use std::collections::BTreeMap;

use super::machine::Machine;
use super::{Finding, SwapKind};

/// What a check gives: findings, or that it cannot tell.
type Found = Result<Vec<Finding>, Finding>;

/// How many layers of block devices are looked through for encryption.
const MAX_LAYERS: usize = 8;
/// A core file takes a page at least.
const SMALLEST_CORE: u64 = 4096;

/// All findings, those of the same file together.
pub fn all(machine: &Machine, needed: u64) -> Vec<Finding> {
    let checks: [Found; 16] = [
        swap(machine),
        core_dumps(machine),
        crash_dump(machine),
        hibernation(machine),
        memory_lock(machine, needed),
        is(machine, "/sys/kernel/mm/ksm/run", "1", Finding::PageMerging),
        huge_pages(machine),
        is(machine, "/sys/module/zswap/parameters/enabled", "Y", Finding::CompressedSwapCache),
        tracing(machine),
        perf_events(machine),
        overcommit(machine),
        virtual_machine(machine),
        Ok(container(machine)),
        nvidia_driver(machine),
        Ok(gpu_core_dumps(machine)),
        Ok(if machine.variables("CUDA_MPS_PIPE_DIRECTORY") > 0 { vec![Finding::GpuServer] } else { vec![] }),
    ];
    let mut findings: Vec<Finding> = vec![];
    for finding in checks.into_iter().flat_map(|found| found.unwrap_or_else(|unknown| vec![unknown])) {
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    findings
}

/// Columns of /proc/swaps: name, type, KiB, KiB in use, priority; a line of headings comes first.
fn swap(machine: &Machine) -> Found {
    const FILE: &str = "/proc/swaps";
    let unknown = || Finding::Unknown { file: FILE };
    let Some(text) = machine.optional(FILE)? else { return Ok(vec![]) }; // a kernel without swap
    let mut kinds: BTreeMap<SwapKind, (usize, u64)> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, kind, kib, ..] = columns[..] else { return Err(unknown()) };
        let kib: u64 = kib.parse().map_err(|_| unknown())?;
        // A file lies on some file system, of which the list says nothing.
        let device = if kind == "partition" { name.strip_prefix("/dev/") } else { None };
        let place = device.map_or(SwapKind::Disk, |device| swap_kind(machine, device));
        let (devices, bytes) = kinds.entry(place).or_default();
        *devices += 1;
        *bytes += kib.saturating_mul(1024);
    }
    Ok(kinds.into_iter().map(|(kind, (devices, bytes))| Finding::Swap { kind, devices, bytes }).collect())
}

fn swap_kind(machine: &Machine, device: &str) -> SwapKind {
    let backing = machine.detail(&format!("/sys/block/{device}/backing_dev"));
    if device.starts_with("zram") && backing.is_none_or(|backing| backing.trim() == "none") {
        SwapKind::Memory
    } else if is_encrypted(machine, device, MAX_LAYERS) {
        SwapKind::Encrypted
    } else {
        SwapKind::Disk
    }
}

/// Whether a block device, or everything below it, is dm-crypt.
fn is_encrypted(machine: &Machine, device: &str, layers: usize) -> bool {
    let folder = format!("/sys/block/{device}");
    if machine.detail(&format!("{folder}/dm/uuid")).is_some_and(|uuid| uuid.starts_with("CRYPT-")) {
        return true;
    }
    let below = machine.names(&format!("{folder}/slaves"));
    layers > 0 && !below.is_empty() && below.iter().all(|device| is_encrypted(machine, device, layers - 1))
}

fn core_dumps(machine: &Machine) -> Found {
    const PATTERN: &str = "/proc/sys/kernel/core_pattern";
    let pattern = machine.text(PATTERN)?;
    if machine.undumpable {
        return Ok(vec![]);
    }
    let limit = soft_limit(machine, "Max core file size")?;
    let finding = match pattern.trim().as_bytes() {
        // The kernel starts a handler whatever the limit is, but for the value 1; one behind a socket in any case.
        [b'|', ..] if limit == Some(1) => return Ok(vec![]),
        [b'|' | b'@', ..] => Finding::CoreHandler { limit },
        // Without a pattern there is no file, unless the process's number is to be its name.
        [] if machine.number("/proc/sys/kernel/core_uses_pid")?.unwrap_or(0) == 0 => return Ok(vec![]),
        _ if limit.is_some_and(|limit| limit < SMALLEST_CORE) => return Ok(vec![]),
        _ => Finding::CoreFile { limit },
    };
    Ok(vec![finding])
}

fn crash_dump(machine: &Machine) -> Found {
    is(machine, "/sys/kernel/kexec_crash_loaded", "1", Finding::KernelCrashDump)
}

fn hibernation(machine: &Machine) -> Found {
    let states = machine.optional("/sys/power/state")?.unwrap_or_default();
    let modes = machine.optional("/sys/power/disk")?.unwrap_or_default();
    if !states.split_whitespace().any(|state| state == "disk") || modes.contains("[disabled]") {
        return Ok(vec![]);
    }
    let device = machine.optional("/sys/power/resume")?.unwrap_or_default();
    Ok(vec![Finding::Hibernation { resume_device: !matches!(device.trim(), "" | "0:0") }])
}

fn memory_lock(machine: &Machine, needed: u64) -> Found {
    const CAP_IPC_LOCK: u64 = 1 << 14; // with it the limit does not count
    const STATUS: &str = "/proc/self/status";
    if needed == 0 {
        return Ok(vec![]);
    }
    let Some(limit) = soft_limit(machine, "Max locked memory")? else { return Ok(vec![]) };
    let status = machine.text(STATUS)?;
    let rights =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    let rights = rights.ok_or(Finding::Unknown { file: STATUS })?;
    let enough = limit >= needed || rights & CAP_IPC_LOCK != 0;
    Ok(if enough { vec![] } else { vec![Finding::MemoryLock { limit, needed }] })
}

fn huge_pages(machine: &Machine) -> Found {
    let modes = machine.optional("/sys/kernel/mm/transparent_hugepage/enabled")?.unwrap_or_default();
    Ok(if modes.contains("[always]") { vec![Finding::HugePagesAlways] } else { vec![] })
}

/// Without Yama, processes of the same user may trace each other.
fn tracing(machine: &Machine) -> Found {
    let scope = machine.number("/proc/sys/kernel/yama/ptrace_scope")?.unwrap_or(0);
    Ok(if scope == 0 && !machine.undumpable { vec![Finding::Tracing] } else { vec![] })
}

fn perf_events(machine: &Machine) -> Found {
    let paranoid = machine.number("/proc/sys/kernel/perf_event_paranoid")?;
    Ok(paranoid
        .filter(|&paranoid| paranoid < 2)
        .map(|paranoid| Finding::PerfEvents { paranoid })
        .into_iter()
        .collect())
}

fn overcommit(machine: &Machine) -> Found {
    const FILE: &str = "/proc/sys/vm/overcommit_memory";
    let mode = machine.number(FILE)?.ok_or(Finding::Unknown { file: FILE })?;
    Ok(if mode == 2 { vec![] } else { vec![Finding::Overcommit { mode }] })
}

fn virtual_machine(machine: &Machine) -> Found {
    let flagged = machine.text("/proc/cpuinfo")?.lines().any(|line| {
        line.strip_prefix("flags")
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
    });
    let named = machine.has("/sys/hypervisor/type") || machine.has("/proc/device-tree/hypervisor");
    Ok(if flagged || named { vec![Finding::VirtualMachine] } else { vec![] })
}

fn container(machine: &Machine) -> Vec<Finding> {
    let is_one = machine.has("/.dockerenv")
        || machine.has("/run/.containerenv")
        || machine.has("/run/systemd/container");
    if is_one { vec![Finding::Container] } else { vec![] }
}

/// The driver's own list of its parameters, `Name: value` in each line.
fn nvidia_driver(machine: &Machine) -> Found {
    let Some(text) = machine.optional("/proc/driver/nvidia/params")? else { return Ok(vec![]) };
    let value = |wanted: &str| {
        text.lines()
            .find_map(|line| line.split_once(':').filter(|(name, _)| *name == wanted))
            .map(|(_, value)| value.trim())
    };
    let mut findings = vec![];
    if value("PreserveVideoMemoryAllocations") == Some("1") {
        let folder_set = value("TemporaryFilePath").is_some_and(|path| !path.trim_matches('"').is_empty());
        findings.push(Finding::VideoMemoryToFiles { folder_set });
    }
    if value("RmProfilingAdminOnly") == Some("0") {
        findings.push(Finding::GpuProfiling);
    }
    Ok(findings)
}

fn gpu_core_dumps(machine: &Machine) -> Vec<Finding> {
    const LIGHTWEIGHT: &str = "CUDA_ENABLE_LIGHTWEIGHT_COREDUMP";
    let on_exception = machine.switched_on("CUDA_ENABLE_COREDUMP_ON_EXCEPTION");
    let on_request = machine.switched_on("CUDA_ENABLE_USER_TRIGGERED_COREDUMP");
    let lightweight = machine.switched_on(LIGHTWEIGHT);
    let variables = machine.variables("CUDA_COREDUMP_") + machine.variables(LIGHTWEIGHT);
    let dumps = Finding::GpuCoreDump { on_exception, on_request, lightweight };
    let settings = Finding::GpuCoreDumpSettings { variables };
    let mut findings = if on_exception || on_request { vec![dumps] } else { vec![] };
    findings.extend((variables > 0).then_some(settings));
    findings
}

/// The finding, if a file that is there only with its feature says `bad`.
fn is(machine: &Machine, file: &'static str, bad: &str, finding: Finding) -> Found {
    let text = machine.optional(file)?;
    Ok(if text.is_some_and(|text| text.trim() == bad) { vec![finding] } else { vec![] })
}

/// A soft limit of this process in bytes; `None` is no limit. Columns of /proc/self/limits: the name, soft, hard, unit.
fn soft_limit(machine: &Machine, name: &str) -> Result<Option<u64>, Finding> {
    const FILE: &str = "/proc/self/limits";
    let text = machine.text(FILE)?;
    let soft = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    match soft {
        Some("unlimited") => Ok(None),
        Some(bytes) => bytes.parse().map(Some).map_err(|_| Finding::Unknown { file: FILE }),
        None => Err(Finding::Unknown { file: FILE }),
    }
}
