//! What goes in.

use std::fmt;

use crate::error::{Error, Result};
use crate::memory::Secret;

/// A prompt and how to continue it. Overwritten when it drops; `Debug` prints lengths only.
///
/// Fields left unset take the checkpoint's `generation_config.json` where it samples (`do_sample`), else their
/// defaults: greedy, up to [`Request::DEFAULT_MAX_TOKENS`] tokens.
pub struct Request {
    pub(crate) prompt: Prompt,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<Secret<String>>,
    pub(crate) stop_tokens: Secret<Vec<u32>>,
    #[cfg(feature = "testing")]
    pub(crate) logits: Option<crate::engine::taps::LogitsTap>,
}

/// The prompt as it came.
pub(crate) enum Prompt {
    Text(Secret<String>),
    Tokens(Secret<Vec<u32>>),
}

impl Request {
    /// `max_tokens` when it is not given; less where the context ends first.
    pub const DEFAULT_MAX_TOKENS: usize = 512;

    /// Most stop strings.
    pub const MAX_STOPS: usize = 16;

    /// Continues `text`, encoded with the checkpoint's tokenizer and its special tokens (usually a BOS before it).
    pub fn prompt(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(Secret::new(text.into())))
    }

    /// Continues token ids, as they are.
    pub fn tokens(ids: impl Into<Vec<u32>>) -> Self {
        Self::new(Prompt::Tokens(Secret::new(ids.into())))
    }

    fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            max_tokens: None,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            seed: None,
            stop: Vec::new(),
            stop_tokens: Secret::default(),
            #[cfg(feature = "testing")]
            logits: None,
        }
    }

    /// At most this many tokens, from 1.
    pub fn max_tokens(mut self, count: usize) -> Self {
        self.max_tokens = Some(count);
        self
    }

    /// 0 takes the most likely token each time; up to 2.
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Draws among this many most likely tokens; 0 for all.
    pub fn top_k(mut self, count: usize) -> Self {
        self.top_k = Some(count);
        self
    }

    /// Draws among the most likely tokens whose probabilities first sum to `share`: above 0, up to 1.
    pub fn top_p(mut self, share: f32) -> Self {
        self.top_p = Some(share);
        self
    }

    /// Draws among tokens at least `share` times as likely as the most likely one: 0 to 1.
    pub fn min_p(mut self, share: f32) -> Self {
        self.min_p = Some(share);
        self
    }

    /// The same seed gives the same reply, alone or in any batch. Without one a fresh seed is drawn, and the reply
    /// tells it.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Ends the reply before this text. Up to [`Request::MAX_STOPS`] of them.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop.push(Secret::new(text.into()));
        self
    }

    /// Ends the reply before this token, as the checkpoint's own end tokens do.
    pub fn stop_token(mut self, id: u32) -> Self {
        self.stop_tokens.push(id);
        self
    }

    /// Checks every field that does not depend on the checkpoint.
    pub(crate) fn check(&self) -> Result<()> {
        let ratio = |value: Option<f32>, low: bool| {
            value.is_none_or(|value| (0.0..=1.0).contains(&value) && (low || value > 0.0))
        };
        let empty = match &self.prompt {
            Prompt::Text(text) => text.expose().is_empty(),
            Prompt::Tokens(ids) => ids.expose().is_empty(),
        };
        if empty {
            return Err(Error::request("prompt", "not empty"));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::request("max_tokens", "at least 1"));
        }
        if !self.temperature.is_none_or(|value| (0.0..=2.0).contains(&value)) {
            return Err(Error::request("temperature", "from 0 to 2"));
        }
        if !ratio(self.top_p, false) {
            return Err(Error::request("top_p", "above 0 and up to 1"));
        }
        if !ratio(self.min_p, true) {
            return Err(Error::request("min_p", "from 0 to 1"));
        }
        if self.stop.len() > Self::MAX_STOPS {
            return Err(Error::request("stop", format!("at most {} strings", Self::MAX_STOPS)));
        }
        if self.stop.iter().any(|stop| stop.expose().is_empty()) {
            return Err(Error::request("stop", "strings that are not empty"));
        }
        Ok(())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, len) = match &self.prompt {
            Prompt::Text(text) => ("prompt_bytes", text.expose().len()),
            Prompt::Tokens(ids) => ("prompt_tokens", ids.expose().len()),
        };
        f.debug_struct("Request")
            .field(unit, &len)
            .field("max_tokens", &self.max_tokens)
            .field("temperature", &self.temperature)
            .field("top_k", &self.top_k)
            .field("top_p", &self.top_p)
            .field("min_p", &self.min_p)
            .field("seed", &self.seed)
            .field("stop", &self.stop.len())
            .field("stop_tokens", &self.stop_tokens.expose().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_out_of_bounds_are_named() {
        let cases = [
            ("prompt", Request::prompt("")),
            ("prompt", Request::tokens([])),
            ("max_tokens", Request::prompt("x").max_tokens(0)),
            ("temperature", Request::prompt("x").temperature(-0.1)),
            ("temperature", Request::prompt("x").temperature(2.1)),
            ("temperature", Request::prompt("x").temperature(f32::NAN)),
            ("top_p", Request::prompt("x").top_p(0.0)),
            ("top_p", Request::prompt("x").top_p(1.1)),
            ("top_p", Request::prompt("x").top_p(f32::INFINITY)),
            ("min_p", Request::prompt("x").min_p(-1.0)),
            ("stop", Request::prompt("x").stop("")),
            ("stop", (0..17).fold(Request::prompt("x"), |request, i| request.stop(i.to_string()))),
        ];
        for (expected, request) in cases {
            match request.check() {
                Err(Error::Request { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        let all =
            Request::prompt("x").max_tokens(1).temperature(2.0).top_p(1.0).min_p(0.0).top_k(9).stop("y");
        assert!(all.check().is_ok());
    }

    #[test]
    fn debug_prints_lengths_only() {
        let printed = format!("{:?}", Request::prompt("my secret prompt").stop("canary"));
        assert!(!printed.contains("secret") && !printed.contains("canary"), "{printed}");
        assert!(printed.contains("prompt_bytes: 16"), "{printed}");
    }
}
