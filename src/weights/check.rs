//! The one pass over all weights at loading.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Tensor;
use crate::error::{Error, Result};

/// How far loading has come, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of weights read and checked.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A callback for [`Progress`].
pub type OnProgress = Box<dyn Fn(Progress) + Send + Sync>;

/// Reads every weight once, on all threads: finds what is not finite, and brings the file in from disk.
///
/// # Errors
/// Names a tensor that holds an infinity or what is not a number.
pub fn all_finite(tensors: &[&Tensor], threads: usize, progress: Option<&OnProgress>) -> Result<()> {
    const PIECE_BYTES: usize = 4 << 20;
    let pieces: Vec<(&Tensor, &[u8])> = tensors
        .iter()
        .flat_map(|tensor| tensor.bytes().chunks(PIECE_BYTES).map(move |piece| (*tensor, piece)))
        .collect();
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let total_bytes = tensors.iter().map(|tensor| tensor.bytes().len() as u64).sum();
    let check = || -> Option<&Tensor> {
        while let Some((tensor, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            if !tensor.dtype.all_finite(piece) {
                return Some(tensor);
            }
            let done_bytes = done.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
            progress.iter().for_each(|call| call(Progress { done_bytes, total_bytes }));
        }
        None
    };
    let bad = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(pieces.len())).map(|_| scope.spawn(check)).collect();
        let mine = check();
        others
            .into_iter()
            // a panic can only be the callback's: it goes on in the caller's thread
            .filter_map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .chain(mine)
            .min_by_key(|bad| &bad.name)
    });
    match bad {
        None => Ok(()),
        Some(tensor) => Err(Error::tensor(&tensor.file, &tensor.name, "hold finite values only")),
    }
}
