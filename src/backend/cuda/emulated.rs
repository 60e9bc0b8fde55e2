//! The kernels on the CPU, for tests: the same source, compiled by the machine's C++ compiler with
//! `tests/kernels_emulated/emulator.h`. What is asked for is done at once.
#![expect(unsafe_code, reason = "loads the compiled kernels and calls them")]

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::driver::{Address, Driver, Shape};
use crate::error::{Error, Result};
use crate::memory::{Arena, Layout};

/// Whether tests on the emulated device, which takes long, do all of their cases: with `AMNESIC_EMULATED=all`, which `.ci/run`
/// sets. Otherwise they do some, which launch every kernel.
#[cfg(test)]
pub fn does_all() -> bool {
    std::env::var("AMNESIC_EMULATED").as_deref() == Ok("all")
}

/// Says what a test leaves out because of that; libtest would hide what a test prints that passes.
#[cfg(test)]
pub fn skipped(what: &str) {
    use std::io::Write;
    let test = std::thread::current();
    let test = test.name().unwrap_or("a test");
    let line = format!("skipped: {test}: {what} on the emulated device; AMNESIC_EMULATED=all runs them\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

type Run = unsafe extern "C" fn(*const c_void, *const u32, u32, usize);

/// A compiled kernel.
struct Kernel {
    run: Run,
    /// Bytes of the struct that it takes.
    args_bytes: usize,
}

/// A device of two processors with the memory of an old graphics card.
#[derive(Debug)]
pub struct Emulated {
    /// With guard pages on both sides: who reads or writes beyond the end does not get far.
    memory: Mutex<HashMap<Address, Arena>>,
    record: Mutex<Option<Vec<Step>>>,
    /// A kernel that does nothing.
    left_out: Option<&'static str>,
    has_wgmma: bool,
    /// How often each kernel was asked for.
    asked: Mutex<HashMap<&'static str, usize>>,
    /// Calls until one fails.
    left: AtomicI64,
    failed: AtomicBool,
    /// Counts the bytes that are copied to the host.
    read_bytes: Option<&'static AtomicU64>,
}

/// Something that was asked for.
#[derive(Clone, Debug)]
pub enum Step {
    /// (to, from, bytes)
    Copy(Address, Address, usize),
    /// Arguments as they were.
    Launch(&'static str, Shape, Vec<u64>),
}

impl Default for Emulated {
    fn default() -> Self {
        Self::failing_after(i64::MAX)
    }
}

impl Emulated {
    /// A device that fails for good after so many calls.
    pub fn failing_after(calls: i64) -> Self {
        Self {
            memory: Mutex::default(),
            record: Mutex::default(),
            left_out: None,
            has_wgmma: false,
            asked: Mutex::default(),
            left: AtomicI64::new(calls),
            failed: AtomicBool::new(false),
            read_bytes: None,
        }
    }

    /// Has it count the bytes that are copied to the host.
    pub fn counting(self, read_bytes: Option<&'static AtomicU64>) -> Self {
        Self { read_bytes, ..self }
    }

    /// A device on which a kernel does nothing.
    #[cfg(test)]
    pub fn without(kernel: &'static str) -> Self {
        Self { left_out: Some(kernel), ..Self::default() }
    }

    /// A device that multiplies with wgmma.
    #[cfg(test)]
    pub fn hopper() -> Self {
        Self { has_wgmma: true, ..Self::default() }
    }

    /// A device with wgmma on which a kernel does nothing.
    #[cfg(test)]
    pub fn hopper_without(kernel: &'static str) -> Self {
        Self { has_wgmma: true, ..Self::without(kernel) }
    }

    /// How often a kernel was asked for.
    #[cfg(test)]
    pub fn asked(&self, kernel: &str) -> usize {
        self.asked.lock().unwrap().get(kernel).copied().unwrap_or(0)
    }

    /// Counts a call; says whether it may be done.
    fn goes_on(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            self.failed.store(true, Ordering::Release);
        }
        !self.failed()
    }

    fn ask(&self, step: Step) {
        if !self.goes_on() {
            return;
        }
        if let Some(record) = &mut *self.record.lock().unwrap_or_else(PoisonError::into_inner) {
            return record.push(step);
        }
        run(&step);
    }
}

fn run(step: &Step) {
    match step {
        // SAFETY: whoever asked vouched for it.
        Step::Copy(to, from, bytes) => unsafe {
            std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes);
        },
        Step::Launch(name, shape, args) => {
            let kernel = kernels().get(name).unwrap_or_else(|| panic!("no kernel {name}"));
            // SAFETY: as above.
            unsafe {
                (kernel.run)(args.as_ptr().cast(), shape.grid.as_ptr(), shape.threads, shape.shared as usize);
            }
        }
    }
}

/// The compiled kernels, by name.
fn kernels() -> &'static HashMap<&'static str, Kernel> {
    static KERNELS: OnceLock<HashMap<&'static str, Kernel>> = OnceLock::new();
    KERNELS.get_or_init(|| {
        let libraries: Vec<*mut c_void> = compile().iter().map(|library| load(library)).collect();
        let symbol = |name: &str| {
            let symbol = CString::new(format!("emulated_{name}")).expect("a name");
            let found = libraries.iter().find_map(|library| {
                // SAFETY: a loaded library, and a text that ends with a zero.
                let symbol = unsafe { libc::dlsym(*library, symbol.as_ptr()) };
                (!symbol.is_null()).then_some(symbol)
            });
            found.unwrap_or_else(|| panic!("kernel {name} is in no source"))
        };
        let find = |name: &&'static str| {
            let (run, bytes) = (symbol(name), symbol(&format!("bytes_{name}")));
            // SAFETY: `KERNEL` in emulator.h declares them so.
            let kernel = unsafe {
                let bytes = std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u32>(bytes);
                let run = std::mem::transmute::<*mut c_void, Run>(run);
                Kernel { run, args_bytes: bytes() as usize }
            };
            (*name, kernel)
        };
        super::kernels::KERNELS.iter().chain(super::kernels::HOPPER).map(find).collect()
    })
}

fn load(library: &Path) -> *mut c_void {
    let path = CString::new(library.to_str().expect("a path of text")).expect("a path");
    // SAFETY: our own library, without constructors that do anything.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null(), "{} does not load", library.display());
    handle
}

/// Contraction would round products and sums once where a device rounds them twice. The pragmas are those for `unroll`.
#[cfg(not(target_arch = "x86_64"))]
const FLAGS: &[&str] =
    &["-std=c++17", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"];
/// The flags of every machine, and `fmaf` as the instruction that it is: without one it is a function, and products take most
/// of a test.
#[cfg(target_arch = "x86_64")]
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
];

/// Compiles all sources, unless that was done before for just these.
fn compile() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sources, emulator) = (root.join("kernels/cuda"), root.join("tests/kernels_emulated"));
    let mut files: Vec<PathBuf> = [&sources, &emulator]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).expect("the kernels' sources"))
        .map(|entry| entry.expect("the kernels' sources").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut hash = DefaultHasher::new();
    FLAGS.hash(&mut hash);
    for file in &files {
        std::fs::read(file).expect("a source").hash(&mut hash);
    }
    let folder = std::env::temp_dir().join(format!("amnesic-emulated-{:016x}", hash.finish()));
    std::fs::create_dir_all(&folder).expect("a folder for compiled kernels");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let jobs: Vec<_> = files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "cu"))
        .map(|source| {
            let library = folder.join(source.file_stem().expect("a name")).with_extension("so");
            let new = library.with_extension(format!("{}.new", std::process::id()));
            let job = (!library.exists()).then(|| {
                Command::new(&compiler)
                    .args(FLAGS)
                    .args(["-fPIC", "-shared", "-DAMNESIC_EMULATED", "-I"])
                    .arg(&emulator)
                    .args(["-x", "c++"])
                    .arg(source)
                    .arg("-o")
                    .arg(&new)
                    .spawn()
                    .unwrap_or_else(|error| panic!("{compiler} (set CXX): {error}"))
            });
            (library, new, job)
        })
        .collect();
    let finish = |(library, new, job): (PathBuf, PathBuf, Option<std::process::Child>)| {
        if let Some(mut job) = job {
            assert!(
                job.wait().is_ok_and(|status| status.success()),
                "{} does not compile",
                library.display()
            );
            std::fs::rename(&new, &library).expect("the compiled kernels' place");
        }
        library
    };
    jobs.into_iter().map(finish).collect()
}

impl Driver for Emulated {
    type Graph = Vec<Step>;

    fn name(&self) -> &str {
        "cuda (emulated)"
    }

    fn processors(&self) -> u32 {
        2
    }

    fn shared_bytes(&self) -> u32 {
        163 * 1024
    }

    fn trusts_wgmma(&self, try_out: fn(&Arc<Self>) -> Result<bool>) -> bool {
        let alone = Self { has_wgmma: true, left_out: self.left_out, ..Self::default() };
        self.has_wgmma && try_out(&Arc::new(alone)).unwrap_or(false)
    }

    fn free_bytes(&self) -> u64 {
        1 << 40
    }

    fn alloc(&self, bytes: usize, what: &'static str) -> Result<Address> {
        let mut layout = Layout::default();
        let region = layout.region(bytes);
        let arena = region.and_then(|_| Arena::new(&layout).ok());
        let Some(mut arena) = arena else {
            let limit = "the emulated device has not so much".into();
            return Err(Error::Memory { needed: bytes as u64, what, limit });
        };
        arena.bytes_mut().fill(0xff); // what the last owner left
        let at = arena.bytes().as_ptr() as Address;
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).insert(at, arena);
        Ok(at)
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8> {
        let at = self.alloc(bytes, "memory of the host")? as *mut u8;
        // SAFETY: just taken.
        unsafe { at.write_bytes(0, bytes) };
        Ok(at)
    }

    unsafe fn free(&self, at: Address, _bytes: usize) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).remove(&at);
    }

    unsafe fn free_host(&self, at: *mut u8, bytes: usize) {
        // SAFETY: the caller's contract.
        unsafe { self.free(at as Address, bytes) };
    }

    unsafe fn write(&self, to: Address, from: *const u8, bytes: usize) {
        self.ask(Step::Copy(to, from as Address, bytes));
    }

    unsafe fn read(&self, from: Address, to: *mut u8, bytes: usize) {
        if let Some(count) = self.read_bytes {
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        self.ask(Step::Copy(to as Address, from, bytes));
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) {
        self.ask(Step::Copy(to, from, bytes));
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: *const c_void, bytes: usize) {
        assert!(bytes <= 4096, "{kernel}: more arguments than a kernel takes");
        let takes = kernels().get(kernel).unwrap_or_else(|| panic!("no kernel {kernel}")).args_bytes;
        assert_eq!(bytes, takes, "{kernel}: its arguments in args.rs and in kernels/cuda differ");
        let mut words = vec![0_u64; bytes.div_ceil(8)];
        // SAFETY: the caller's contract.
        unsafe { std::ptr::copy_nonoverlapping(args.cast::<u8>(), words.as_mut_ptr().cast(), bytes) };
        let [x, y, z] = shape.grid;
        assert!(x > 0 && (1..65536).contains(&y) && (1..65536).contains(&z), "{kernel}: {shape:?}");
        assert!((1..=1024).contains(&shape.threads) && shape.shared <= self.shared_bytes(), "{kernel}");
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner).entry(kernel).or_default() += 1;
        if self.left_out != Some(kernel) {
            self.ask(Step::Launch(kernel, shape, words));
        }
    }

    fn mark(&self, _number: usize) {}

    fn wait(&self, _number: usize) {}

    fn synchronize(&self) {
        self.goes_on();
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn record(&self) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    fn recorded(&self) -> Option<Vec<Step>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn replay(&self, graph: &Vec<Step>) {
        if self.goes_on() {
            graph.iter().for_each(run);
        }
    }
}
