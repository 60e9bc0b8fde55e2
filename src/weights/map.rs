//! A read-only mapping of a weights file.
#![expect(unsafe_code, reason = "memory-maps a file")]

use std::fs::File;
use std::path::Path;

use super::store::{self, Bytes};
use crate::error::{Error, Result};

/// The bytes of a file, read in by the kernel as they are touched, or in memory already. Never written.
#[derive(Debug)]
pub struct Map(MapSource);

#[derive(Debug)]
enum MapSource {
    Mapped(memmap2::Mmap),
    Held(Bytes),
}

impl Map {
    /// Maps the whole of `path`.
    ///
    /// Not guaranteed: if another process truncates the file while it is mapped, the system ends this process with
    /// SIGBUS. Checkpoints are replaced by renaming, never in place.
    ///
    /// # Errors
    /// The file is missing, unreadable, no regular file, or empty.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = || {
            let reason = "must be a regular file that is not empty".to_owned();
            Error::WeightsFile { file: path.to_owned(), reason }
        };
        if let Some(bytes) = store::bytes(path).map_err(Error::read(path))? {
            if bytes.get().is_empty() {
                return Err(wrong());
            }
            super::files::was_held(path, &bytes);
            return Ok(Self(MapSource::Held(bytes)));
        }
        // Asked before it is opened: opening a pipe would wait for whoever writes to it.
        let metadata = std::fs::metadata(path).map_err(Error::read(path))?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Err(wrong());
        }
        let file = File::open(path).map_err(Error::read(path))?;
        super::files::was_mapped(path, &file).map_err(Error::read(path))?;
        // SAFETY: private and read-only; that nobody changes the file meanwhile is documented above.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(&file) };
        map.map(|map| Self(MapSource::Mapped(map))).map_err(Error::read(path))
    }

    /// A map of no file.
    #[cfg(feature = "candle")]
    pub fn empty() -> Self {
        Self(MapSource::Held(Bytes::of(Vec::new())))
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            MapSource::Mapped(map) => map,
            MapSource::Held(bytes) => bytes.get(),
        }
    }

    /// Takes the pages that hold these bytes out of this process's memory; a later touch reads them in again. What the
    /// application holds stays.
    pub fn forget(&self, start: usize, bytes: usize) {
        let MapSource::Mapped(map) = &self.0 else { return };
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping is private and never written, so that the file's bytes come back on the next touch. A
        // refusal is fine: then the pages stay.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, bytes) };
        #[cfg(not(target_os = "linux"))]
        let _ = (map, start, bytes);
    }
}
