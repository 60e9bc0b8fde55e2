//! What a checkpoint's files say that was taken otherwise than it stands there.

use std::fmt;
use std::path::PathBuf;

/// A value in a file of the checkpoint that is out of bounds, and what is used in its place. Such a value keeps no session
/// from opening: [`crate::Session::notes`] says it once.
///
/// ```
/// # fn main() -> amnesic::Result<()> {
/// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
/// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
/// for note in session.notes() {
///     eprintln!("{note}");
/// }
/// assert!(session.notes().is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Note {
    /// The file.
    pub file: PathBuf,
    /// The field.
    pub field: String,
    /// What it says.
    pub found: f64,
    /// What is used.
    pub used: f64,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, field, found, used } = self;
        write!(f, "{}: `{field}` is {found}, which is out of bounds: {used} is used", file.display())
    }
}
