//! What the doctor can find, with what it means and what to do about it.

use std::fmt;

use serde::Serialize;

/// How much a finding matters.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know: needs an attacker who has the machine, or a rare event.
    Info,
    /// Other processes or tenants may learn something; or it could not be told.
    Warning,
    /// Content of requests can reach a disk, or any process of the same user.
    Critical,
}

/// Where swapped pages go.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapKind {
    /// To a disk, in the clear as far as can be told.
    Disk,
    /// To a disk, through dm-crypt.
    Encrypted,
    /// To compressed memory (zram without a disk behind it).
    Memory,
}

/// One thing that weakens the guarantee. Kinds and numbers; no text from the machine.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// Memory that is not locked may be swapped out.
    Swap {
        /// Where to.
        kind: SwapKind,
        /// Devices and files of this kind.
        devices: usize,
        /// Their size.
        bytes: u64,
    },
    /// A crash writes the process's memory to a file.
    CoreFile {
        /// The soft limit of its size (`RLIMIT_CORE`); `None` is no limit.
        limit: Option<u64>,
    },
    /// A crash gives the process's memory to a handler, whatever the limit is.
    CoreHandler {
        /// The soft limit that the handler is told (`RLIMIT_CORE`); `None` is no limit.
        limit: Option<u64>,
    },
    /// A crash of the kernel writes all memory to a disk (kdump).
    KernelCrashDump,
    /// The machine can hibernate, which writes all memory to a disk.
    Hibernation {
        /// Whether a device to resume from is set.
        resume_device: bool,
    },
    /// Less memory can be locked than a session needs.
    MemoryLock {
        /// The soft limit (`RLIMIT_MEMLOCK`) in bytes.
        limit: u64,
        /// What is needed.
        needed: u64,
    },
    /// Kernel samepage merging is running.
    PageMerging,
    /// The kernel makes huge pages of any memory, and copies it then.
    HugePagesAlways,
    /// Pages on their way to swap are kept compressed in memory.
    CompressedSwapCache,
    /// Any process of the same user may trace this one.
    Tracing,
    /// Users without rights may measure other processes or the kernel.
    PerfEvents {
        /// The kernel's `perf_event_paranoid`.
        paranoid: i64,
    },
    /// The kernel promises more memory than it has, and may kill the process.
    Overcommit {
        /// The kernel's `overcommit_memory`.
        mode: i64,
    },
    /// The machine is virtual.
    VirtualMachine,
    /// The process runs in a container.
    Container,
    /// The NVIDIA driver writes video memory to files when the machine is suspended.
    VideoMemoryToFiles {
        /// Whether a folder for them is set; else it is /tmp.
        folder_set: bool,
    },
    /// Every user may read the GPU's performance counters.
    GpuProfiling,
    /// CUDA writes the GPU's memory to a file, at an exception or when somebody asks.
    GpuCoreDump {
        /// At an exception.
        on_exception: bool,
        /// When somebody writes to a pipe.
        on_request: bool,
        /// Without the contents of memory, but with registers.
        lightweight: bool,
    },
    /// Environment variables say how CUDA writes core dumps.
    GpuCoreDumpSettings {
        /// How many.
        variables: usize,
    },
    /// CUDA goes through a server that other processes use too (MPS).
    GpuServer,
    /// A file that would tell cannot be read, or says something unknown.
    Unknown {
        /// The file.
        file: &'static str,
    },
    /// The doctor does not know this operating system.
    NotSupported,
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        use Severity::{Critical, Info, Warning};
        match self {
            Self::Swap { kind: SwapKind::Disk, .. } => Critical,
            Self::CoreFile { .. } | Self::CoreHandler { .. } | Self::KernelCrashDump => Critical,
            Self::VideoMemoryToFiles { .. } => Critical,
            Self::GpuCoreDump { lightweight, .. } if !lightweight => Critical,
            Self::Hibernation { resume_device: true } => Critical,
            Self::Hibernation { resume_device: false } | Self::GpuCoreDump { .. } => Warning,
            Self::MemoryLock { .. } | Self::PageMerging | Self::Tracing | Self::PerfEvents { .. } => Warning,
            Self::GpuProfiling | Self::GpuServer | Self::Unknown { .. } | Self::NotSupported => Warning,
            Self::Swap { .. }
            | Self::HugePagesAlways
            | Self::CompressedSwapCache
            | Self::Overcommit { .. } => Info,
            Self::VirtualMachine | Self::Container | Self::GpuCoreDumpSettings { .. } => Info,
        }
    }

    /// Why it matters, in a line.
    pub fn explanation(&self) -> &'static str {
        match self {
            Self::Swap { kind: SwapKind::Disk, .. } => {
                "What is not locked, such as prompts on the heap, can be written to a disk and stay there."
            }
            Self::Swap { kind: SwapKind::Encrypted, .. } => {
                "What is not locked can be written to a disk; it is readable as long as the key is known."
            }
            Self::Swap { kind: SwapKind::Memory, .. } => {
                "What is not locked can be copied, compressed, to memory that the library cannot overwrite."
            }
            Self::CoreFile { .. } => "A crash while a request runs writes its content to a file.",
            Self::CoreHandler { .. } => {
                "A crash while a request runs gives its content to a program, which may keep or send it; a limit of 0 does \
                 not stop the kernel from starting it."
            }
            Self::KernelCrashDump => {
                "A crash of the kernel while a request runs writes its content to a disk."
            }
            Self::Hibernation { .. } => "Hibernation writes all memory to a disk, locked memory too.",
            Self::MemoryLock { .. } => "Activations and cache that cannot be locked may be swapped out.",
            Self::PageMerging => {
                "Equal pages of processes are merged, and the time of a write tells that another process has one."
            }
            Self::HugePagesAlways => {
                "When the kernel gathers pages into a huge one, the old copies stay in free memory until they are used again."
            }
            Self::CompressedSwapCache => {
                "Swapped pages stay in memory as copies that the library cannot overwrite."
            }
            Self::Tracing => "Any process of the same user can attach and read all memory.",
            Self::PerfEvents { .. } => "Counters and traces of other processes tell what they compute.",
            Self::Overcommit { .. } => {
                "A process that the kernel kills for want of memory overwrites nothing; the kernel clears its pages before it \
                 gives them to others."
            }
            Self::VirtualMachine => "Whoever runs the host can read, snapshot and move the memory.",
            Self::Container => {
                "Whoever runs the host can read the memory; swap, core dumps and limits are the host's to decide."
            }
            Self::VideoMemoryToFiles { .. } => {
                "At suspend the driver copies video memory to files, in the clear."
            }
            Self::GpuProfiling => "Counters of the GPU tell other users what it computes.",
            Self::GpuCoreDump { lightweight: true, .. } => {
                "A dump of the GPU's state holds registers, and so values of a request."
            }
            Self::GpuCoreDump { lightweight: false, .. } => {
                "A dump of the GPU's state holds its memory: cache, activations, token ids."
            }
            Self::GpuCoreDumpSettings { .. } => {
                "They take effect once core dumps of the GPU are switched on, which a program can do itself."
            }
            Self::GpuServer => {
                "Processes behind one server share a GPU context, and so a fault, and less isolation."
            }
            Self::Unknown { .. } => "Whether the guarantee is weakened there is not known.",
            Self::NotSupported => "What weakens the guarantee here is not known.",
        }
    }

    /// What to do about it, in a line.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Swap { kind: SwapKind::Disk, .. } => {
                "swapoff -a, or swap through dm-crypt with a random key, or MemorySwapMax=0 for the service."
            }
            Self::Swap { kind: SwapKind::Encrypted, .. } => {
                "Use a random key for each boot (crypttab: swap)."
            }
            Self::Swap { kind: SwapKind::Memory, .. } => "MemorySwapMax=0 for the service, if that matters.",
            Self::CoreFile { .. } | Self::CoreHandler { .. } => {
                "privacy::process::forbid_core_dumps() and undumpable(), or LimitCORE=0 and an empty core_pattern."
            }
            Self::KernelCrashDump => {
                "Switch kdump off, or have it leave out user pages and write to an encrypted disk."
            }
            Self::Hibernation { .. } => "Mask hibernate.target, or boot with `nohibernate`.",
            Self::MemoryLock { .. } => {
                "Raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=), or plan a smaller cache."
            }
            Self::PageMerging => "echo 2 > /sys/kernel/mm/ksm/run, or privacy::process::opt_out_of_ksm().",
            Self::HugePagesAlways => {
                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, or boot with init_on_free=1."
            }
            Self::CompressedSwapCache => "echo N > /sys/module/zswap/parameters/enabled.",
            Self::Tracing => "sysctl kernel.yama.ptrace_scope=1 or more, or privacy::process::undumpable().",
            Self::PerfEvents { .. } => "sysctl kernel.perf_event_paranoid=2 or more.",
            Self::Overcommit { .. } => "sysctl vm.overcommit_memory=2, or a memory limit that leaves room.",
            Self::VirtualMachine => "Encrypted memory (SEV-SNP, TDX), or a host that you trust.",
            Self::Container => "Run the doctor on the host too.",
            Self::VideoMemoryToFiles { .. } => {
                "NVreg_PreserveVideoMemoryAllocations=0, or NVreg_TemporaryFilePath on an encrypted disk."
            }
            Self::GpuProfiling => "NVreg_RestrictProfilingToAdminUsers=1.",
            Self::GpuCoreDump { .. } => {
                "Unset CUDA_ENABLE_COREDUMP_ON_EXCEPTION and CUDA_ENABLE_USER_TRIGGERED_COREDUMP."
            }
            Self::GpuCoreDumpSettings { .. } => "Unset CUDA_COREDUMP_* and CUDA_ENABLE_LIGHTWEIGHT_COREDUMP.",
            Self::GpuServer => "Unset CUDA_MPS_PIPE_DIRECTORY, or keep the server to one tenant.",
            Self::Unknown { .. } => {
                "Run the doctor before a lockdown, with /proc and /sys mounted and readable."
            }
            Self::NotSupported => "Check swap, core dumps and hibernation by hand.",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |limit: &Option<u64>| limit.map_or("none".to_owned(), |bytes| format!("{bytes} bytes"));
        match self {
            Self::Swap { kind, devices, bytes } => {
                let kind = match kind {
                    SwapKind::Disk => "a disk",
                    SwapKind::Encrypted => "an encrypted disk",
                    SwapKind::Memory => "compressed memory",
                };
                write!(f, "swap to {kind}: {devices} devices, {bytes} bytes")
            }
            Self::CoreFile { limit: bytes } => write!(f, "core dumps to files, limit {}", limit(bytes)),
            Self::CoreHandler { limit: bytes } => {
                write!(f, "core dumps to a handler, limit {}", limit(bytes))
            }
            Self::KernelCrashDump => f.write_str("kernel crash dumps are armed"),
            Self::Hibernation { resume_device: true } => {
                f.write_str("hibernation is possible, a resume device is set")
            }
            Self::Hibernation { resume_device: false } => {
                f.write_str("hibernation is possible, no resume device is set")
            }
            Self::MemoryLock { limit, needed } => {
                write!(f, "{limit} bytes can be locked, {needed} are needed")
            }
            Self::PageMerging => f.write_str("kernel samepage merging runs"),
            Self::HugePagesAlways => f.write_str("transparent huge pages for all memory"),
            Self::CompressedSwapCache => f.write_str("zswap is on"),
            Self::Tracing => f.write_str("processes of the same user may trace each other"),
            Self::PerfEvents { paranoid } => write!(f, "perf_event_paranoid is {paranoid}"),
            Self::Overcommit { mode } => write!(f, "overcommit_memory is {mode}"),
            Self::VirtualMachine => f.write_str("a virtual machine"),
            Self::Container => f.write_str("a container"),
            Self::VideoMemoryToFiles { folder_set: true } => {
                f.write_str("video memory is saved to a folder at suspend")
            }
            Self::VideoMemoryToFiles { folder_set: false } => {
                f.write_str("video memory is saved to /tmp at suspend")
            }
            Self::GpuProfiling => f.write_str("GPU performance counters are open to all users"),
            Self::GpuCoreDump { on_exception, on_request, lightweight } => {
                let when = match (on_exception, on_request) {
                    (true, true) => "at an exception and on request",
                    (true, false) => "at an exception",
                    (false, _) => "on request",
                };
                let what = if *lightweight { "without memory" } else { "with memory" };
                write!(f, "CUDA core dumps {when}, {what}")
            }
            Self::GpuCoreDumpSettings { variables } => write!(f, "{variables} settings for CUDA core dumps"),
            Self::GpuServer => f.write_str("CUDA goes through an MPS server"),
            Self::Unknown { file } => write!(f, "{file} does not tell"),
            Self::NotSupported => f.write_str("the doctor knows Linux only"),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        })
    }
}
