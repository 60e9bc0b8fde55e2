//! Between texts and token ids, of which nothing is computed.

use super::Session;
use crate::engine::inspect;
use crate::error::Result;
use crate::memory::Secret;
use crate::request::Request;
use crate::tokens::{SecretText, TokenIds};

impl Session {
    /// The token ids of a request's prompt: those that [`Session::generate`] would compute, special tokens included. A text
    /// is a prompt as it is; [`Request::add_special_tokens`], [`Request::literal_text`] and, of a chat, its template, tools
    /// and variables count, and nothing else does. Nothing is computed, so there is no receipt, and no limit of the context.
    ///
    /// ```no_run
    /// use amnesic::{Request, Session};
    ///
    /// let session = Session::open("models/default")?;
    /// let ids = session.tokenize("Once upon a time")?;
    /// let bare = session.tokenize(Request::prompt("Once upon a time").add_special_tokens(false))?;
    /// assert!(ids.ids().ends_with(bare.ids()));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The request is wrong; there is no tokenizer or no chat template; the session is poisoned.
    pub fn tokenize(&self, request: impl Into<Request>) -> Result<TokenIds> {
        self.client.ids(request.into()).map(TokenIds)
    }

    /// How many token ids [`Session::tokenize`] gives: whether a chat fits into [`Session::context_length`].
    ///
    /// ```no_run
    /// use amnesic::{Request, Session, user};
    ///
    /// let session = Session::open("path/to/checkpoint")?;
    /// let tokens = session.count_tokens(Request::chat([user("What is a slice?")]))?;
    /// assert!(tokens < session.context_length());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// Returns the errors of [`Session::tokenize`].
    pub fn count_tokens(&self, request: impl Into<Request>) -> Result<usize> {
        self.client.ids(request.into()).map(|ids| ids.expose().len())
    }

    /// The text of token ids, from its start, as the checkpoint's decoder gives it; bytes that are no characters give
    /// U+FFFD.
    ///
    /// ```no_run
    /// let session = amnesic::Session::open("models/default")?;
    /// let ids = session.tokenize("Once upon a time")?;
    /// assert_eq!(session.detokenize(ids.ids(), true)?.text(), "Once upon a time");
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// An id is outside the vocabulary; there is no tokenizer; the session does not generate, or is poisoned.
    pub fn detokenize(&self, ids: &[u32], skip_special_tokens: bool) -> Result<SecretText> {
        self.client.text(inspect::Question::Text { ids: Secret::<[u32]>::copy(ids), skip_special_tokens })
    }

    /// The prompt that a chat's template writes: what [`Session::generate`] would encode. Which of it is literal
    /// ([`Request::literal_text`]) a text does not tell, so hand in the request itself where that matters.
    ///
    /// ```no_run
    /// use amnesic::{Request, Session, user};
    ///
    /// let session = Session::open("path/to/checkpoint")?;
    /// let prompt = session.apply_chat_template(Request::chat([user("What is a slice?")]))?;
    /// println!("{}", prompt.text());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    ///
    /// # Errors
    /// The request is wrong or no chat; there is no chat template, or it refuses the messages; the session does not
    /// generate, or is poisoned.
    pub fn apply_chat_template(&self, request: Request) -> Result<SecretText> {
        request.check()?;
        self.client.text(inspect::Question::Prompt(Box::new(request)))
    }

    /// Tokens in the model's vocabulary: the ids of [`Request::tokens`] are below it. A tokenizer may have more, which
    /// replies never have, and which are refused where a prompt has one.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let longest = (0..session.vocab_size() as u32).filter_map(|id| session.token_bytes(id)).map(<[u8]>::len).max();
    /// assert!(longest > Some(1));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The bytes that a token stands for, special or not; they need not be whole characters. None outside the
    /// vocabulary, or without a tokenizer. [`Session::vocab_size`] has an example.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let text = self.text.as_ref().filter(|_| (id as usize) < self.vocab)?;
        Some(text.pieces().bytes(id))
    }

    /// Whether a token is special: it is never part of a reply's text, unless a chat's format needs it.
    ///
    /// ```
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let ids = session.tokenize("A slice")?;
    /// let special = ids.ids().iter().filter(|id| session.is_special_token(**id)).count();
    /// assert!(special < ids.len());
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn is_special_token(&self, id: u32) -> bool {
        self.text.as_ref().is_some_and(|text| text.pieces().is_special(id))
    }
}
