//! The doctor against machines that are folders.

use std::path::Path;

use super::machine::Machine;
use super::{Diagnosis, Finding, Severity, SwapKind, diagnose};

const NEEDED: u64 = 8192;
const SWAPS: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
const CORE_0: &str = "Max core file size        0                    unlimited            bytes     \n";
const CORE_1: &str = "Max core file size        1                    1                    bytes     \n";
const CORE_ALL: &str = "Max core file size        unlimited            unlimited            bytes     \n";
const LOCK: &str = "Max locked memory         8192                 8192                 bytes     \n";

/// A machine without a fault: each file and what it says.
const GOOD: &[(&str, &str)] = &[
    ("/proc/swaps", SWAPS),
    ("/proc/sys/kernel/core_pattern", "core\n"),
    ("/proc/sys/kernel/core_uses_pid", "0\n"),
    ("/proc/sys/kernel/yama/ptrace_scope", "1\n"),
    ("/proc/sys/kernel/perf_event_paranoid", "2\n"),
    ("/proc/sys/vm/overcommit_memory", "2\n"),
    ("/proc/self/limits", LIMITS),
    ("/proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n"),
    ("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vme\nbugs\t\t: hypervisor\n"),
    (
        "/proc/driver/nvidia/params",
        "PreserveVideoMemoryAllocations: 0\nTemporaryFilePath: \"\"\nRmProfilingAdminOnly: 1\n",
    ),
    ("/sys/kernel/kexec_crash_loaded", "0\n"),
    ("/sys/power/state", "freeze mem disk\n"),
    ("/sys/power/disk", "[disabled]\n"),
    ("/sys/power/resume", "0:0\n"),
    ("/sys/kernel/mm/ksm/run", "0\n"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("/sys/module/zswap/parameters/enabled", "N\n"),
];
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max core file size        0                    unlimited            bytes     \n\
                      Max locked memory         8192                 8192                 bytes     \n";

/// What differs from the good machine: files that say something else, or (`None`) are not there.
type Changes<'a> = &'a [(&'a str, Option<&'a str>)];

fn machine(folder: &Path, changes: Changes) -> Machine {
    let write = |file: &str, text: &str| {
        let path = folder.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    GOOD.iter().for_each(|(file, text)| write(file, text));
    for (file, text) in changes {
        match text {
            Some(text) => write(file, text),
            None => std::fs::remove_file(folder.join(file.trim_start_matches('/'))).unwrap(),
        }
    }
    Machine::at(folder, &[])
}

fn found(changes: Changes) -> Vec<Finding> {
    let folder = tempfile::tempdir().unwrap();
    diagnose(&machine(folder.path(), changes), NEEDED).findings
}

#[test]
fn nothing_is_found_on_a_good_machine() {
    assert_eq!(found(&[]), []);
    assert_eq!(Diagnosis { findings: vec![] }.worst(), None);
}

#[test]
fn each_bad_setting_is_found() {
    let swaps = |rows: &str| format!("{SWAPS}{rows}");
    let disk = swaps("/dev/sda2 partition 1024 0 -2\n/swapfile file 2048 8 -3\n");
    let zram = swaps("/dev/zram0 partition 1024 0 100\n");
    let dm = swaps("/dev/dm-1 partition 4 0 -2\n");
    let limits = |core: &str| format!("{core}{LOCK}");
    let (core_0, core_1, core_all) = (limits(CORE_0), limits(CORE_1), limits(CORE_ALL));
    let little = format!("{CORE_0}{}", LOCK.replace("8192", "4096"));
    let swap = |kind, devices, bytes| Finding::Swap { kind, devices, bytes };
    let (pattern, limits) = ("/proc/sys/kernel/core_pattern", "/proc/self/limits");
    let handler = Some("|/usr/lib/systemd/systemd-coredump %P\n");
    let params = "/proc/driver/nvidia/params";
    let (state, resume) = ("/sys/power/disk", "/sys/power/resume");
    let cases: &[(Changes, &[Finding])] = &[
        (&[("/proc/swaps", Some(&disk))], &[swap(SwapKind::Disk, 2, 3 << 20)]),
        (&[("/proc/swaps", Some(&zram))], &[swap(SwapKind::Memory, 1, 1 << 20)]),
        (
            &[("/proc/swaps", Some(&zram)), ("/sys/block/zram0/backing_dev", Some("none\n"))],
            &[swap(SwapKind::Memory, 1, 1 << 20)],
        ),
        (
            &[("/proc/swaps", Some(&zram)), ("/sys/block/zram0/backing_dev", Some("/dev/sda3\n"))],
            &[swap(SwapKind::Disk, 1, 1 << 20)],
        ),
        (
            &[("/proc/swaps", Some(&dm)), ("/sys/block/dm-1/dm/uuid", Some("CRYPT-PLAIN-swap\n"))],
            &[swap(SwapKind::Encrypted, 1, 4096)],
        ),
        (
            // a volume of LVM, on an encrypted disk
            &[
                ("/proc/swaps", Some(&dm)),
                ("/sys/block/dm-1/dm/uuid", Some("LVM-x\n")),
                ("/sys/block/dm-1/slaves/dm-0/dev", Some("254:0\n")),
                ("/sys/block/dm-0/dm/uuid", Some("CRYPT-LUKS2-y\n")),
            ],
            &[swap(SwapKind::Encrypted, 1, 4096)],
        ),
        (
            &[
                ("/proc/swaps", Some(&dm)),
                ("/sys/block/dm-1/dm/uuid", Some("LVM-x\n")),
                ("/sys/block/dm-1/slaves/sda3/dev", Some("8:3\n")),
            ],
            &[swap(SwapKind::Disk, 1, 4096)],
        ),
        (&[("/proc/swaps", Some("headings\ngarbage\n"))], &[Finding::Unknown { file: "/proc/swaps" }]),
        (&[(limits, Some(&core_all))], &[Finding::CoreFile { limit: None }]),
        (&[(pattern, handler), (limits, Some(&core_0))], &[Finding::CoreHandler { limit: Some(0) }]),
        (&[(pattern, handler), (limits, Some(&core_1))], &[]),
        (
            &[(pattern, Some("@/run/core.sock\n")), (limits, Some(&core_1))],
            &[Finding::CoreHandler { limit: Some(1) }],
        ),
        (&[(limits, Some(&core_1))], &[]),
        (&[(pattern, Some("\n")), (limits, Some(&core_all))], &[]),
        (
            &[
                (pattern, Some("\n")),
                (limits, Some(&core_all)),
                ("/proc/sys/kernel/core_uses_pid", Some("1\n")),
            ],
            &[Finding::CoreFile { limit: None }],
        ),
        (&[(limits, Some(&little))], &[Finding::MemoryLock { limit: 4096, needed: NEEDED }]),
        (&[(limits, Some(&little)), ("/proc/self/status", Some("CapEff:\t0000000000004000\n"))], &[]),
        (&[("/sys/kernel/kexec_crash_loaded", Some("1\n"))], &[Finding::KernelCrashDump]),
        (&[(state, Some("[platform] shutdown\n"))], &[Finding::Hibernation { resume_device: false }]),
        (
            &[(state, Some("[platform] shutdown\n")), (resume, Some("8:2\n"))],
            &[Finding::Hibernation { resume_device: true }],
        ),
        (&[(state, Some("[platform]\n")), ("/sys/power/state", Some("freeze mem\n"))], &[]),
        (&[("/sys/kernel/mm/ksm/run", Some("1\n"))], &[Finding::PageMerging]),
        (
            &[("/sys/kernel/mm/transparent_hugepage/enabled", Some("[always] madvise never\n"))],
            &[Finding::HugePagesAlways],
        ),
        (&[("/sys/module/zswap/parameters/enabled", Some("Y\n"))], &[Finding::CompressedSwapCache]),
        (&[("/proc/sys/kernel/yama/ptrace_scope", Some("0\n"))], &[Finding::Tracing]),
        (&[("/proc/sys/kernel/perf_event_paranoid", Some("-1\n"))], &[Finding::PerfEvents { paranoid: -1 }]),
        (
            &[("/proc/sys/kernel/perf_event_paranoid", Some("much\n"))],
            &[Finding::Unknown { file: "/proc/sys/kernel/perf_event_paranoid" }],
        ),
        (&[("/proc/sys/vm/overcommit_memory", Some("0\n"))], &[Finding::Overcommit { mode: 0 }]),
        (&[("/proc/cpuinfo", Some("flags\t\t: fpu hypervisor lm\n"))], &[Finding::VirtualMachine]),
        (&[("/sys/hypervisor/type", Some("xen\n"))], &[Finding::VirtualMachine]),
        (&[("/run/.containerenv", Some(""))], &[Finding::Container]),
        (
            &[(params, Some("PreserveVideoMemoryAllocations: 1\nTemporaryFilePath: \"\"\n"))],
            &[Finding::VideoMemoryToFiles { folder_set: false }],
        ),
        (
            &[(params, Some("PreserveVideoMemoryAllocations: 1\nTemporaryFilePath: \"/var/tmp\"\n"))],
            &[Finding::VideoMemoryToFiles { folder_set: true }],
        ),
        (&[(params, Some("RmProfilingAdminOnly: 0\n"))], &[Finding::GpuProfiling]),
    ];
    for (changes, expected) in cases {
        assert_eq!(found(changes), *expected, "{changes:?}");
    }
}

/// A file that is missing is a finding, unless the kernel lacks the feature that it belongs to.
#[test]
fn what_is_missing_is_told_apart_from_what_is_good() {
    for (file, _) in GOOD {
        let expected = match *file {
            "/proc/sys/kernel/core_pattern" | "/proc/sys/vm/overcommit_memory" | "/proc/cpuinfo" => {
                vec![Finding::Unknown { file }]
            }
            "/proc/self/limits" | "/proc/self/status" => vec![Finding::Unknown { file }],
            // only asked when another file gives a reason
            "/sys/power/resume" | "/proc/sys/kernel/core_uses_pid" => vec![],
            "/proc/sys/kernel/yama/ptrace_scope" => vec![Finding::Tracing],
            // a kernel that can hibernate has the list of modes; without it nothing is disabled
            "/sys/power/disk" => vec![Finding::Hibernation { resume_device: false }],
            _ => vec![],
        };
        assert_eq!(found(&[(file, None)]), expected, "{file}");
    }
}

#[test]
fn without_proc_and_sys_everything_is_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let findings = diagnose(&Machine::at(folder.path(), &[]), NEEDED).findings;
    assert!(findings.iter().all(|finding| matches!(finding, Finding::Unknown { .. })), "{findings:?}");
    let files = findings.iter().map(|finding| match finding {
        Finding::Unknown { file } => *file,
        other => unreachable!("{other}"),
    });
    // those which are asked only because of what another one says are not among them
    let asked = GOOD.iter().map(|(file, _)| *file).filter(|file| {
        !["/proc/self/status", "/proc/sys/kernel/core_uses_pid", "/sys/power/disk", "/sys/power/resume"]
            .contains(file)
    });
    let (mut files, mut asked): (Vec<_>, Vec<_>) = (files.collect(), asked.collect());
    files.sort_unstable();
    asked.sort_unstable();
    assert_eq!(files, asked);
}

#[test]
fn cuda_is_asked_through_its_variables() {
    let folder = tempfile::tempdir().unwrap();
    drop(machine(folder.path(), &[]));
    let found =
        |variables: &[(&str, &str)]| diagnose(&Machine::at(folder.path(), variables), NEEDED).findings;
    let dump = |on_exception, on_request, lightweight| Finding::GpuCoreDump {
        on_exception,
        on_request,
        lightweight,
    };
    let (exception, request) = ("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "CUDA_ENABLE_USER_TRIGGERED_COREDUMP");
    let lightweight = ("CUDA_ENABLE_LIGHTWEIGHT_COREDUMP", "1");
    let settings = |variables| Finding::GpuCoreDumpSettings { variables };
    assert_eq!(found(&[("HOME", "/root"), ("CUDA_VISIBLE_DEVICES", "0")]), []);
    assert_eq!(found(&[(exception, "0"), (request, "")]), []);
    assert_eq!(found(&[(exception, "1")]), [dump(true, false, false)]);
    assert_eq!(found(&[(exception, "1"), (request, "1")]), [dump(true, true, false)]);
    assert_eq!(found(&[(request, "1"), lightweight]), [dump(false, true, true), settings(1)]);
    assert_eq!(found(&[("CUDA_COREDUMP_FILE", "x"), ("CUDA_COREDUMP_PIPE", "y")]), [settings(2)]);
    assert_eq!(found(&[("CUDA_MPS_PIPE_DIRECTORY", "/tmp/mps")]), [Finding::GpuServer]);
}

#[test]
fn an_undumpable_process_cannot_be_dumped_or_traced() {
    let folder = tempfile::tempdir().unwrap();
    let core_all = format!("{CORE_ALL}{LOCK}");
    let changes: Changes =
        &[("/proc/self/limits", Some(&core_all)), ("/proc/sys/kernel/yama/ptrace_scope", Some("0\n"))];
    let mut machine = machine(folder.path(), changes);
    assert_eq!(diagnose(&machine, 0).findings, [Finding::CoreFile { limit: None }, Finding::Tracing]);
    machine.undumpable = true;
    assert_eq!(diagnose(&machine, 0).findings, []);
}

#[test]
fn a_diagnosis_is_told_to_people_and_programs_the_worst_first() {
    let folder = tempfile::tempdir().unwrap();
    let swaps = format!("{SWAPS}/dev/sda2 partition 4 0 -2\n");
    let changes: Changes = &[
        ("/proc/swaps", Some(&swaps)),
        ("/sys/module/zswap/parameters/enabled", Some("Y\n")),
        ("/proc/cpuinfo", None),
    ];
    let diagnosis = diagnose(&machine(folder.path(), changes), 0);
    assert_eq!(diagnosis.worst(), Some(Severity::Critical));
    let printed = diagnosis.to_string();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 9);
    assert_eq!(lines[0], "critical: swap to a disk: 1 devices, 4096 bytes");
    assert_eq!((lines[3], lines[6]), ("warning: /proc/cpuinfo does not tell", "info: zswap is on"));
    let json = serde_json::to_value(&diagnosis).unwrap();
    assert_eq!(json[0]["severity"], "critical");
    assert_eq!(json[0]["finding"], "swap");
    assert_eq!(json[0]["kind"], "disk");
    assert_eq!((&json[0]["devices"], &json[0]["bytes"]), (&1.into(), &4096.into()));
    assert!(json[0]["explanation"].as_str().unwrap().ends_with('.') && json[0]["remedy"].is_string());
    assert_eq!(
        json[2],
        serde_json::json!({
            "severity": "info", "finding": "compressed_swap_cache",
            "explanation": Finding::CompressedSwapCache.explanation(), "remedy": Finding::CompressedSwapCache.remedy(),
        })
    );
}

/// On the machine at hand: everything can be read, and what is found can be printed.
#[test]
#[cfg(target_os = "linux")]
fn this_machine_can_be_looked_at() {
    let diagnosis = super::doctor_for(u64::MAX);
    let unknown: Vec<&Finding> =
        diagnosis.findings.iter().filter(|finding| matches!(finding, Finding::Unknown { .. })).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(!diagnosis.to_string().is_empty());
}
