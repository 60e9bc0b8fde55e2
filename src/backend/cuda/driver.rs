//! What a device must be able to do: hold memory, copy, run kernels in order. [`super::native`] is NVIDIA's driver;
//! tests have one that runs the kernels on the CPU.

#![expect(unsafe_code, reason = "gives memory back")]

use std::ffi::c_void;
use std::sync::Arc;

use crate::error::Result;
use crate::memory::scrub::overwrite;

/// An address in the device's memory.
pub type Address = u64;

/// How a kernel is run: (blocks, threads of one, bytes of shared memory of one).
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Blocks: x, y, z. None of them is zero.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
}

/// A device with one queue of work. What is asked of it happens in the order in which it was asked.
///
/// Once something has failed everything else does: nothing is done any more, and [`Driver::failed`] stays true.
pub trait Driver: Send + Sync + 'static {
    /// Steps that were recorded.
    type Graph: Send;

    /// Its name for people.
    fn name(&self) -> &str;

    /// How many processors it has.
    fn processors(&self) -> u32;

    /// Bytes of shared memory that a block may have.
    fn shared_bytes(&self) -> u32;

    /// Whether it runs the kernels of `hopper.cu`, and they do what `try_out` wants of them: tried where a fault of theirs
    /// would do no harm.
    fn trusts_wgmma(&self, try_out: fn(&Arc<Self>) -> Result<bool>) -> bool
    where
        Self: Sized;

    /// Bytes of memory that are free.
    fn free_bytes(&self) -> u64;

    /// Takes memory, 256-byte aligned. It holds what the last owner left there.
    ///
    /// # Errors
    /// There is not so much.
    fn alloc(&self, bytes: usize, what: &'static str) -> Result<Address>;

    /// Takes memory of the host that the device can read and write by itself; zeros.
    ///
    /// # Errors
    /// There is not so much.
    fn alloc_host(&self, bytes: usize) -> Result<*mut u8>;

    /// Gives memory back, once all that was asked for is done.
    ///
    /// # Safety
    /// It came from [`Driver::alloc`] with that size, and is not used any more.
    unsafe fn free(&self, at: Address, bytes: usize);

    /// Gives back memory of the host, under the contract of [`Driver::free`].
    ///
    /// # Safety
    /// It came from [`Driver::alloc_host`] with that size, and is not used any more.
    unsafe fn free_host(&self, at: *mut u8, bytes: usize);

    /// Copies to the device. `from` is of [`Driver::alloc_host`], and stays as it is until it is waited for.
    ///
    /// # Safety
    /// Both have the bytes.
    unsafe fn write(&self, to: Address, from: *const u8, bytes: usize);

    /// Copies from the device, likewise.
    ///
    /// # Safety
    /// Both have the bytes.
    unsafe fn read(&self, from: Address, to: *mut u8, bytes: usize);

    /// Copies on the device.
    ///
    /// # Safety
    /// Both have the bytes, and none in common.
    unsafe fn copy(&self, from: Address, to: Address, bytes: usize);

    /// Runs a kernel.
    ///
    /// # Safety
    /// `args` is the struct that the kernel takes, of that size, and what its addresses say is there.
    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: *const c_void, bytes: usize);

    /// Remembers how far the work has come, under one of two numbers.
    fn mark(&self, number: usize);

    /// Waits until what was asked for before that [`Driver::mark`] is done.
    fn wait(&self, number: usize);

    /// Waits until all is done.
    fn synchronize(&self);

    /// From now on nothing is done any more.
    fn fail(&self);

    /// Whether something went wrong, ever.
    fn failed(&self) -> bool;

    /// From now on what is asked for is recorded, not done.
    fn record(&self);

    /// Ends that; none where it cannot be recorded.
    fn recorded(&self) -> Option<Self::Graph>;

    /// Does what was recorded.
    fn replay(&self, graph: &Self::Graph);
}

/// Memory of a device. Dropping gives it back, as it is.
#[derive(Debug)]
pub struct DeviceAllocation<D: Driver> {
    driver: Arc<D>,
    at: Address,
    bytes: usize,
}

impl<D: Driver> DeviceAllocation<D> {
    /// Takes some; at least 16 bytes, and a multiple of them.
    ///
    /// # Errors
    /// There is not so much.
    pub fn new(driver: &Arc<D>, bytes: usize, what: &'static str) -> Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(16);
        Ok(Self { driver: driver.clone(), at: driver.alloc(bytes, what)?, bytes })
    }

    /// Where it is.
    pub fn at(&self) -> Address {
        self.at
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Memory of the host that a device reads and writes by itself. Overwritten when it is dropped.
#[derive(Debug)]
pub struct Host<D: Driver> {
    driver: Arc<D>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: it is owned alone; the device touches it in the queue's order only.
unsafe impl<D: Driver> Send for Host<D> {}

impl<D: Driver> Host<D> {
    /// Takes some, all zeros.
    ///
    /// # Errors
    /// There is not so much.
    pub fn new(driver: &Arc<D>, bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(16);
        Ok(Self { driver: driver.clone(), at: driver.alloc_host(bytes)?, bytes })
    }

    /// Where it is.
    pub fn at(&self) -> *mut u8 {
        self.at
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<D: Driver> Drop for Host<D> {
    fn drop(&mut self) {
        self.driver.synchronize();
        // SAFETY: taken in `new`; nothing reads or writes it any more.
        unsafe {
            overwrite(std::slice::from_raw_parts_mut(self.at, self.bytes));
            self.driver.free_host(self.at, self.bytes);
        }
    }
}

impl<D: Driver> Drop for DeviceAllocation<D> {
    fn drop(&mut self) {
        // SAFETY: taken in `new`; who drops it does not use it any more.
        unsafe { self.driver.free(self.at, self.bytes) };
    }
}
