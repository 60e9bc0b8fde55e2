//! What loading tells a progress bar.

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of weights read, checked and packed.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A callback for [`Progress`].
pub type OnProgress = Box<dyn Fn(Progress) + Send + Sync>;
