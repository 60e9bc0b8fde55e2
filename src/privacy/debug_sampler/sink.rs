//! Where sealed captures go.
#![expect(
    unsafe_code,
    reason = "files are made relative to an open folder, which the standard library cannot do"
)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Sealed;

/// Takes sealed captures to where the application keeps them. It sees ciphertext only.
///
/// Called on the session's worker, between steps: a sink that blocks holds up every request, so one that waits for
/// others hands over to a thread of its own. A capture is 128 KiB at least, more than a pipe holds.
pub trait Sink: Send {
    /// Keeps `sealed`, or says why not. An error counts the capture as failed; after a panic the sampler never calls
    /// the sink again and is off.
    ///
    /// # Errors
    /// Whatever stands against it. Only its kind is looked at.
    fn store(&mut self, sealed: Sealed) -> io::Result<()>;
}

/// A sink for sessions that may create files: `<request id>.age` in a folder, readable by its owner only.
///
/// The folder is opened once. Files are created in that very folder whatever becomes of its path, new ones only, and
/// no link is followed. They are not synced. One that was cut short, by a full disk say, does not decrypt. Where a
/// process has been forbidden to create files, an application brings a [`Sink`] of its own that writes to something
/// already open.
#[derive(Debug)]
pub struct Folder(File);

impl Folder {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// It is missing, cannot be opened, is no folder or is a link. (Links in the path to it are followed.)
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        OpenOptions::new().read(true).custom_flags(flags).open(path).map(Self)
    }

    /// A new file in the folder, for writing.
    fn create(&self, name: &str) -> io::Result<File> {
        let name = CString::new(name)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let mode: libc::c_uint = 0o600;
        // SAFETY: the folder is open for as long as `self` lives, and `name` is a C string that outlives the call.
        let file = unsafe { libc::openat(self.0.as_raw_fd(), name.as_ptr(), flags, mode) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else's.
        Ok(unsafe { File::from_raw_fd(file) })
    }
}

impl Sink for Folder {
    fn store(&mut self, sealed: Sealed) -> io::Result<()> {
        self.create(&format!("{}.age", sealed.request()))?.write_all(sealed.bytes())
    }
}
