//! Reading this process's own memory, all of it.
//!
//! `/proc/self/mem` does not read what is `memfd_secret`: the kernel itself has no way to those pages but the process's own
//! addresses. A search that left them out would prove nothing of where secrets are. So what cannot be read there is written
//! from its address to a file in memory by a system call, which takes the bytes as any other write would and gives an error,
//! no fault, where nothing is mapped; and from that file into the reader's buffer. The file is overwritten in the end.
#![expect(unsafe_code, reason = "has the kernel read from addresses that may not be mapped")]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// Bytes that go through the file at once.
const ROOM: usize = 256 << 10;

/// This process's memory: a place is an address.
#[derive(Debug)]
pub struct OwnMemory {
    memory: File,
    courier: File,
    /// Bytes of the courier that were ever written.
    carried: Cell<usize>,
}

impl OwnMemory {
    /// # Errors
    /// `/proc/self/mem` cannot be opened, or there is no file in memory.
    pub fn open() -> io::Result<Self> {
        let memory = File::open("/proc/self/mem")?;
        // SAFETY: the name is a C string; the descriptor is new, and owned by the file from here on.
        let courier = unsafe {
            let descriptor = libc::memfd_create(c"amnesic-courier".as_ptr(), libc::MFD_CLOEXEC);
            if descriptor < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(descriptor)
        };
        Ok(Self { memory, courier, carried: Cell::new(0) })
    }

    /// Reads bytes from an address on; how many.
    ///
    /// # Errors
    /// Nothing is mapped there, or it may not be read.
    pub fn read_at(&self, buffer: &mut [u8], address: u64) -> io::Result<usize> {
        match self.memory.read_at(buffer, address) {
            Ok(read) if read > 0 => Ok(read),
            _ => self.carry(buffer, address),
        }
    }

    fn carry(&self, buffer: &mut [u8], address: u64) -> io::Result<usize> {
        let most = buffer.len().min(ROOM);
        let from = std::ptr::with_exposed_provenance::<libc::c_void>(address as usize);
        // SAFETY: the kernel reads what it can of these bytes, and gives an error where there are none.
        let carried = unsafe { libc::pwrite(self.courier.as_raw_fd(), from, most, 0) };
        let Ok(carried) = usize::try_from(carried) else { return Err(io::Error::last_os_error()) };
        self.carried.set(self.carried.get().max(carried));
        self.courier.read_exact_at(&mut buffer[..carried], 0)?;
        Ok(carried)
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for start in (0..self.carried.get()).step_by(ZEROS.len()) {
            let _ = self.courier.write_all_at(&ZEROS, start as u64); // full: then it holds no more than it did
        }
    }
}
