//! What the tokenizer and the chat templates give to callers.

use std::fmt;

use crate::memory::Secret;

/// Token ids, of [`Session::tokenize`](crate::Session::tokenize). Overwritten when they drop; `Debug` prints how many there
/// are.
///
/// ```no_run
/// use amnesic::{Request, Session};
///
/// let session = Session::open("models/default")?;
/// let ids = session.tokenize("Once upon a time")?;
/// assert_eq!(ids.len(), ids.ids().len());
/// let reply = session.generate(Request::from(ids))?;
/// # let _ = reply;
/// # Ok::<(), amnesic::Error>(())
/// ```
pub struct TokenIds(pub(crate) Secret<[u32]>);

impl TokenIds {
    /// The ids.
    pub fn ids(&self) -> &[u32] {
        self.0.expose()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids().is_empty()
    }
}

impl fmt::Debug for TokenIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIds").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A text, of [`Session::detokenize`](crate::Session::detokenize) or
/// [`Session::apply_chat_template`](crate::Session::apply_chat_template). Overwritten when it drops; `Debug` prints its
/// length, and there is no `Display`: what prints content says so, with [`SecretText::text`].
///
/// ```no_run
/// let session = amnesic::Session::open("models/default")?;
/// let text = session.detokenize(&[1, 2, 3], true)?;
/// println!("{}", text.text());
/// # Ok::<(), amnesic::Error>(())
/// ```
pub struct SecretText(pub(crate) Secret<str>);

impl SecretText {
    /// The text.
    pub fn text(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretText").field("bytes", &self.text().len()).finish_non_exhaustive()
    }
}
