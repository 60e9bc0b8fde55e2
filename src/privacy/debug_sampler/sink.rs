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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use age::x25519::Identity;
    use serde_json::Value;

    use super::super::CaptureError;
    use super::super::tests::{CANARY, capture, contains, decrypt, permit, sampler};
    use super::*;

    #[test]
    fn a_folder_gets_ciphertext_for_its_owner_only() {
        let (folder, identity) = (tempfile::tempdir().unwrap(), Identity::generate());
        let mut sampler = sampler(&identity, Folder::open(folder.path()).unwrap());
        let first = permit(&mut sampler);
        sampler.capture(first, &capture(&[1_234_567_890], &[], CANARY.as_bytes())).unwrap();

        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [folder.path().join("000000000000feed-12.age")]);
        assert_eq!(std::fs::metadata(&names[0]).unwrap().permissions().mode() & 0o7777, 0o600);
        let bytes = std::fs::read(&names[0]).unwrap();
        assert!(!contains(&bytes, b"Kanarien") && !contains(&bytes, b"1234567890"));
        let told: Value = serde_json::from_slice(&decrypt(&bytes, &identity).unwrap()).unwrap();
        assert_eq!(told["reply_text"], CANARY);

        // The same request again: what is there stays as it is.
        let second = permit(&mut sampler);
        let error = sampler.capture(second, &capture(&[], &[], b"other")).unwrap_err();
        assert_eq!(error, CaptureError::Sink(io::ErrorKind::AlreadyExists));
        assert_eq!(std::fs::read(&names[0]).unwrap(), bytes);
    }

    #[test]
    fn a_folder_follows_no_links() {
        let outer = tempfile::tempdir().unwrap();
        let (folder, link, target) =
            (outer.path().join("folder"), outer.path().join("link"), outer.path().join("target"));
        std::fs::create_dir(&folder).unwrap();
        symlink(&folder, &link).unwrap();
        assert!(Folder::open(&link).is_err(), "a link to a folder");
        std::fs::write(&target, b"").unwrap();
        assert!(Folder::open(&target).is_err(), "a file");
        assert!(Folder::open(outer.path().join("none")).is_err());

        let mut sampler = sampler(&Identity::generate(), Folder::open(&folder).unwrap());
        // A link where the file would be, to something that exists and to something that does not.
        for to in [target.clone(), outer.path().join("new")] {
            let trap = folder.join("000000000000feed-12.age");
            symlink(&to, &trap).unwrap();
            let permit = permit(&mut sampler);
            let error = sampler.capture(permit, &capture(&[], &[], b"text")).unwrap_err();
            assert_eq!(error, CaptureError::Sink(io::ErrorKind::AlreadyExists));
            std::fs::remove_file(&trap).unwrap();
        }
        assert_eq!(std::fs::read(&target).unwrap(), b"");
        assert!(!outer.path().join("new").exists());

        // The path is taken over by somebody else: files still go where the folder is.
        let moved = outer.path().join("moved");
        std::fs::rename(&folder, &moved).unwrap();
        symlink(outer.path(), &folder).unwrap();
        let permit = permit(&mut sampler);
        sampler.capture(permit, &capture(&[], &[], b"text")).unwrap();
        assert!(moved.join("000000000000feed-12.age").exists());
    }
}
