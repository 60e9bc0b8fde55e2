//! NVIDIA's driver, looked for at run time. A context and a stream of its own, so that what other parts of the process do
//! with the device stays apart; the kernels come as PTX, which the driver translates for the device at hand and keeps in a
//! cache of its own, and for Hopper as machine code.
#![expect(unsafe_code, reason = "calls the driver")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

use super::driver::{Address, Driver, Shape};
use crate::error::{DeviceReason, Error, Result};

/// A source of kernels, compiled by `tools/build_kernels`.
struct Module {
    ptx: &'static str,
    /// Machine code for compute capability 9.0.
    sm_90: &'static [u8],
}

macro_rules! modules {
    ($($name:literal),*) => {[$(Module {
        ptx: include_str!(concat!("../../../kernels/cuda/compiled/", $name, ".ptx")),
        sm_90: include_bytes!(concat!("../../../kernels/cuda/compiled/", $name, ".cubin")),
    }),*]};
}

const MODULES: [Module; 7] = modules!["attention", "linear", "memory", "rope", "route", "rows", "sample"];

/// The kernels for compute capability 9.0 whose instructions no other has.
const HOPPER: &[u8] = include_bytes!("../../../kernels/cuda/compiled/hopper.cubin");

/// Kernels for tests.
#[cfg(any(test, feature = "testing"))]
const TEST_MODULES: &[Module] = &modules!["find_leaks"];
#[cfg(not(any(test, feature = "testing")))]
const TEST_MODULES: &[Module] = &[];

/// The oldest compute capability that runs them: bf16 in tensor cores, and asynchronous copies.
const OLDEST: (c_int, c_int) = (8, 0);

/// A device.
#[derive(Debug)]
pub struct Native {
    device: usize,
    context: sys::CUcontext,
    stream: sys::CUstream,
    marks: [sys::CUevent; 2],
    kernels: HashMap<&'static str, sys::CUfunction>,
    name: String,
    processors: u32,
    shared_bytes: u32,
    has_wgmma: bool,
    failed: AtomicBool,
}

// SAFETY: handles of the driver may be used from any thread; each call makes the context current first.
unsafe impl Send for Native {}
// SAFETY: as above; the session's worker is the only one who calls.
unsafe impl Sync for Native {}

/// Makes a context current on this thread as long as it lives, and leaves the thread as it was.
struct Current;

impl Current {
    fn of(context: sys::CUcontext) -> Self {
        // SAFETY: the context is alive. Where this fails the next call does too.
        let _ = unsafe { sys::cuCtxPushCurrent_v2(context) };
        Self
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut context = null_mut();
        // SAFETY: takes off what `of` put there.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
    }
}

fn check(device: usize, result: sys::CUresult) -> Result<()> {
    match result {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(Error::DeviceUnavailable { device, reason: DeviceReason::Driver { code: code as u32 } }),
    }
}

/// How many devices there are; none without a driver.
pub fn count() -> usize {
    // SAFETY: looks for the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return 0;
    }
    let mut count = 0;
    // SAFETY: the library is there; the number is ours.
    let found = unsafe {
        sys::cuInit(0) == sys::CUresult::CUDA_SUCCESS
            && sys::cuDeviceGetCount(&raw mut count) == sys::CUresult::CUDA_SUCCESS
    };
    if found { usize::try_from(count).unwrap_or(0) } else { 0 }
}

impl Native {
    /// Opens a device.
    ///
    /// # Errors
    /// There is no driver, no such device, or it is too old.
    pub fn open(device: usize) -> Result<Self> {
        let unavailable = |reason| Error::DeviceUnavailable { device, reason };
        // SAFETY: looks for the driver's library.
        if !unsafe { sys::is_culib_present() } {
            return Err(unavailable(DeviceReason::NoDriver));
        }
        let found = count();
        if device >= found {
            return Err(unavailable(DeviceReason::NoSuchDevice { found }));
        }
        let attribute = |handle, which| {
            let mut value = 0;
            // SAFETY: the number is ours.
            check(device, unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, handle) })?;
            Ok::<c_int, Error>(value)
        };
        use sys::CUdevice_attribute as Attribute;
        let mut handle = 0;
        // SAFETY: there are more devices than its number.
        check(device, unsafe { sys::cuDeviceGet(&raw mut handle, device as c_int) })?;
        let major = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if (major, minor) < OLDEST {
            let [major, minor] = [major, minor].map(|part| part as u32);
            return Err(unavailable(DeviceReason::TooOld { major, minor }));
        }
        let processors = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = attribute(handle, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut name = [0; 128];
        // SAFETY: writes at most that many, with a zero behind them.
        check(device, unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, handle) })?;
        // SAFETY: just written.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut context = null_mut();
        // SAFETY: the handle is a device's. The worker turns while it waits: a step is over in some hundred microseconds.
        check(device, unsafe {
            sys::cuCtxCreate_v2(&raw mut context, sys::CUctx_flags::CU_CTX_SCHED_SPIN as u32, handle)
        })?;
        // a new context is current; calls make it so themselves
        // SAFETY: takes it off.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
        let mut this = Self {
            device,
            context,
            stream: null_mut(),
            marks: [null_mut(); 2],
            kernels: HashMap::new(),
            name: format!("cuda:{device} ({name})"),
            processors: processors as u32,
            shared_bytes: shared as u32,
            has_wgmma: (major, minor) == (9, 0),
            failed: AtomicBool::new(false),
        };
        let current = Current::of(context);
        // SAFETY: the context is current; the handle is ours.
        check(device, unsafe {
            sys::cuStreamCreate(&raw mut this.stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32)
        })?;
        for mark in &mut this.marks {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: as above.
            check(device, unsafe { sys::cuEventCreate(mark, flags) })?;
        }
        this.load(device)?;
        drop(current);
        Ok(this)
    }

    fn load(&mut self, device: usize) -> Result<()> {
        // a driver that is older than the compiler may refuse machine code, and still take PTX
        self.has_wgmma = self.has_wgmma
            && self.load_module(device, HOPPER, super::kernels::HOPPER.iter().copied()).is_ok();
        for Module { ptx, sm_90 } in MODULES.iter().chain(TEST_MODULES) {
            if self.has_wgmma {
                self.load_module(device, sm_90, names(ptx))?;
            } else {
                let image = CString::new(*ptx).expect("PTX is text");
                self.load_module(device, image.as_bytes_with_nul(), names(ptx))?;
            }
        }
        Ok(())
    }

    /// `image` is PTX that ends with a zero, or a cubin.
    fn load_module(
        &mut self,
        device: usize,
        image: &[u8],
        names: impl Iterator<Item = &'static str>,
    ) -> Result<()> {
        let mut module = null_mut();
        // SAFETY: an image of the module's kind.
        check(device, unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) })?;
        for name in names {
            let symbol = CString::new(format!("{PREFIX}{name}")).expect("a name is text");
            let mut kernel = null_mut();
            // SAFETY: the module is loaded.
            check(device, unsafe { sys::cuModuleGetFunction(&raw mut kernel, module, symbol.as_ptr()) })?;
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the kernel is of this context.
            check(device, unsafe { sys::cuFuncSetAttribute(kernel, most, self.shared_bytes as c_int) })?;
            self.kernels.insert(name, kernel);
        }
        Ok(())
    }

    /// Calls something else of NVIDIA's with the stream, while the context is current; none once something has failed.
    #[cfg(feature = "testing")]
    pub fn with_stream<T>(&self, call: impl FnOnce(sys::CUstream) -> T) -> Option<T> {
        if self.failed() {
            return None;
        }
        let _current = Current::of(self.context);
        Some(call(self.stream))
    }

    /// Has the driver itself overwrite memory with zeros.
    ///
    /// # Safety
    /// It has the bytes.
    #[cfg(feature = "testing")]
    pub unsafe fn set(&self, at: Address, bytes: usize) {
        // SAFETY: the caller's contract.
        self.call(|| unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.stream) });
    }

    /// Whether it runs the kernels of `hopper.cu`.
    #[cfg(feature = "testing")]
    pub fn has_wgmma(&self) -> bool {
        self.has_wgmma
    }

    /// Keeps in mind that something failed.
    fn note(&self, result: sys::CUresult) {
        if result != sys::CUresult::CUDA_SUCCESS {
            self.failed.store(true, Ordering::Release);
        }
    }

    /// Calls the driver, unless something failed before.
    fn call(&self, call: impl FnOnce() -> sys::CUresult) {
        if !self.failed() {
            let _current = Current::of(self.context);
            self.note(call());
        }
    }
}

/// What the kernels' names begin with in a module.
const PREFIX: &str = "amnesic_";

/// The names of the kernels in a module.
fn names(ptx: &'static str) -> impl Iterator<Item = &'static str> {
    let entries = ptx.lines().filter_map(|line| line.trim().strip_prefix(".visible .entry "));
    entries.filter_map(|line| line.trim_end_matches('(').strip_prefix(PREFIX))
}

/// Recorded steps.
#[derive(Debug)]
pub struct Graph {
    graph: sys::CUgraphExec,
    context: sys::CUcontext,
}

// SAFETY: as `Native`.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        let _current = Current::of(self.context);
        // SAFETY: made by `recorded`, and nobody else's.
        let _ = unsafe { sys::cuGraphExecDestroy(self.graph) };
    }
}

impl Driver for Native {
    type Graph = Graph;

    fn name(&self) -> &str {
        &self.name
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    fn trusts_wgmma(&self, try_out: fn(&Arc<Self>) -> Result<bool>) -> bool {
        /// What was found out of each device, once for the process.
        static TRIED: Mutex<Vec<(usize, bool)>> = Mutex::new(Vec::new());
        if !self.has_wgmma {
            return false;
        }
        let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, trusted)) = tried.iter().find(|(device, _)| *device == self.device) {
            return *trusted;
        }
        // in a context of its own: a fault would end that one, and not the session's
        let trusted = Self::open(self.device).and_then(|alone| try_out(&Arc::new(alone))).unwrap_or(false);
        tried.push((self.device, trusted));
        trusted
    }

    fn free_bytes(&self) -> u64 {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the numbers are ours.
        self.call(|| unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) });
        free as u64
    }

    fn alloc(&self, bytes: usize, what: &'static str) -> Result<Address> {
        let _current = Current::of(self.context);
        let mut at = 0;
        // SAFETY: the address is ours. Plain memory, of no pool: nobody gets it before it is given back.
        match unsafe { sys::cuMemAlloc_v2(&raw mut at, bytes) } {
            sys::CUresult::CUDA_SUCCESS => Ok(at),
            code => Err(refused(bytes, what, &self.name, code)),
        }
    }

    fn alloc_host(&self, bytes: usize) -> Result<*mut u8> {
        let _current = Current::of(self.context);
        let mut at = null_mut();
        // SAFETY: the address is ours.
        match unsafe { sys::cuMemHostAlloc(&raw mut at, bytes, 0) } {
            sys::CUresult::CUDA_SUCCESS => {
                // SAFETY: just taken.
                unsafe { at.cast::<u8>().write_bytes(0, bytes) };
                Ok(at.cast())
            }
            code => Err(refused(bytes, "pinned memory of the host", &self.name, code)),
        }
    }

    unsafe fn free(&self, at: Address, _bytes: usize) {
        let _current = Current::of(self.context);
        // SAFETY: the caller's contract. It waits for what uses the memory.
        let _ = unsafe { sys::cuMemFree_v2(at) };
    }

    unsafe fn free_host(&self, at: *mut u8, _bytes: usize) {
        let _current = Current::of(self.context);
        // SAFETY: the caller's contract.
        let _ = unsafe { sys::cuMemFreeHost(at.cast()) };
    }

    unsafe fn write(&self, to: Address, from: *const u8, bytes: usize) {
        // SAFETY: the caller's contract.
        self.call(|| unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream) });
    }

    unsafe fn read(&self, from: Address, to: *mut u8, bytes: usize) {
        // SAFETY: the caller's contract.
        self.call(|| unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream) });
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) {
        // SAFETY: the caller's contract.
        self.call(|| unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) });
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: *const c_void, _bytes: usize) {
        let Some(&kernel) = self.kernels.get(kernel) else {
            return self.failed.store(true, Ordering::Release); // the modules are not those of this build
        };
        let (Shape { grid: [x, y, z], threads, shared }, mut params) = (shape, [args.cast_mut()]);
        // SAFETY: the caller's contract; each kernel takes one struct.
        self.call(|| unsafe {
            sys::cuLaunchKernel(
                kernel,
                x,
                y,
                z,
                threads,
                1,
                1,
                shared,
                self.stream,
                params.as_mut_ptr(),
                null_mut(),
            )
        });
    }

    fn mark(&self, number: usize) {
        // SAFETY: the event and the stream are ours.
        self.call(|| unsafe { sys::cuEventRecord(self.marks[number], self.stream) });
    }

    fn wait(&self, number: usize) {
        // SAFETY: the event is ours.
        self.call(|| unsafe { sys::cuEventSynchronize(self.marks[number]) });
    }

    fn synchronize(&self) {
        // SAFETY: the stream is ours.
        self.call(|| unsafe { sys::cuStreamSynchronize(self.stream) });
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    fn record(&self) {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        self.call(|| unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) });
    }

    fn recorded(&self) -> Option<Graph> {
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: ends what `record` began.
        self.call(|| unsafe { sys::cuStreamEndCapture(self.stream, &raw mut graph) });
        if graph.is_null() {
            return None;
        }
        let _current = Current::of(self.context);
        // SAFETY: the graph was just made, and is not needed any more afterwards.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            made
        };
        let graph = Graph { graph: executable, context: self.context };
        (made == sys::CUresult::CUDA_SUCCESS).then_some(graph)
    }

    fn replay(&self, graph: &Graph) {
        // SAFETY: of this context.
        self.call(|| unsafe { sys::cuGraphLaunch(graph.graph, self.stream) });
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: nothing of the context is used any more; with it all of its memory goes.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.context) };
    }
}

fn refused(bytes: usize, what: &'static str, device: &str, code: sys::CUresult) -> Error {
    let limit = format!("{device} has not so much (driver error {})", code as u32);
    Error::Memory { needed: bytes as u64, what, limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels that launchers name are those of the modules: whichever is missing would fail on a device only.
    #[test]
    fn every_kernel_that_is_launched_is_in_a_module() {
        let compiled: Vec<&str> =
            MODULES.iter().chain(TEST_MODULES).flat_map(|module| names(module.ptx)).collect();
        let source = concat!(
            include_str!("attention.rs"),
            include_str!("memory.rs"),
            include_str!("mod.rs"),
            include_str!("moe.rs"),
            include_str!("ops.rs"),
            include_str!("products.rs"),
            include_str!("rows.rs"),
            include_str!("sampling.rs"),
            include_str!("scrub.rs"),
            include_str!("search.rs"),
        );
        for name in super::super::kernels::KERNELS {
            assert!(compiled.contains(name), "{name} is in no module");
            assert!(source.contains(&format!("\"{name}\"")), "{name} is not launched");
        }
        assert_eq!(compiled.len(), super::super::kernels::KERNELS.len(), "{compiled:?}");
        for Module { ptx, sm_90 } in MODULES.iter().chain(TEST_MODULES) {
            for symbol in names(ptx).map(|name| format!("\0{PREFIX}{name}\0").into_bytes()) {
                assert!(sm_90.windows(symbol.len()).any(|at| at == symbol), "not of one source");
            }
        }
        for name in super::super::kernels::HOPPER {
            let symbol = format!("\0{PREFIX}{name}\0").into_bytes();
            assert!(HOPPER.windows(symbol.len()).any(|at| at == symbol), "{name} is not in its cubin");
            assert!(source.contains(&format!("\"{name}\"")), "{name} is not launched");
        }
    }

    #[test]
    fn without_a_driver_there_is_an_error_and_no_panic() {
        if count() == 0 {
            let error = Native::open(0).unwrap_err();
            assert!(matches!(error, Error::DeviceUnavailable { device: 0, .. }), "{error}");
        } else {
            let error = Native::open(usize::MAX).unwrap_err();
            let reason = DeviceReason::NoSuchDevice { found: count() };
            assert!(matches!(error, Error::DeviceUnavailable { reason: found, .. } if found == reason));
        }
    }
}
