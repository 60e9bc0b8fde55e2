//! What is refused without a look at the checkpoint.

use super::{Prompt, Request, Speculation};
use crate::error::{Error, Result};
use crate::grammar::ToolChoice;
use crate::memory::Secret;
use crate::sample::Logprobs;

impl Request {
    /// Checks every field that does not depend on the checkpoint.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |field, expected: String| Err(Error::request(field, expected));
        let (empty, bytes) = match &self.prompt {
            Prompt::Text(text) => (text.expose().is_empty(), text.expose().len()),
            Prompt::Tokens(ids) => (ids.expose().is_empty(), ids.expose().len()),
            Prompt::Chat(messages) => (messages.is_empty(), 0),
        };
        if empty {
            let field = if matches!(self.prompt, Prompt::Chat(_)) { "messages" } else { "prompt" };
            return wrong(field, "not empty".into());
        }
        if bytes > Self::MAX_PROMPT_BYTES {
            return wrong("prompt", format!("at most {} bytes or tokens", Self::MAX_PROMPT_BYTES));
        }
        if self.max_tokens == Some(0) {
            return wrong("max_tokens", "at least 1".into());
        }
        if !(1..=Self::MAX_N).contains(&self.choices()) {
            return wrong("n", format!("from 1 to {}", Self::MAX_N));
        }
        self.sampling.over(&crate::sample::Sampling::default(), 0).check()?;
        if let (Some(min), Some(max)) = (self.sampling.min_tokens, self.max_tokens)
            && min > max
        {
            return wrong("min_tokens", format!("at most max_tokens, {max}"));
        }
        self.logit_bias.check()?;
        for (field, top) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            Logprobs::check(field, top.unwrap_or(0))?;
        }
        let within = |value: usize| (1..=Speculation::MAX).contains(&value);
        if let Some(speculation) = self.speculation {
            let ngram = match speculation {
                Speculation::PromptLookup { ngram, .. } => ngram,
                Speculation::Draft { .. } => 1,
            };
            if !within(ngram) || !within(speculation.tokens()) {
                return wrong("speculate", format!("from 1 to {} tokens", Speculation::MAX));
            }
        }
        if self.stream_buffer == Some(0) {
            return wrong("stream_buffer", "at least 1".into());
        }
        self.check_chat()?;
        self.check_stops()
    }

    fn check_chat(&self) -> Result<()> {
        let wrong = |field, expected: String| Err(Error::request(field, expected));
        if !matches!(self.prompt, Prompt::Chat(_)) {
            for (field, set) in [
                ("tools", !self.chat.tools.is_empty()),
                ("add_generation_prompt", self.chat.generation_prompt == Some(true)),
                ("continue_final_message", self.chat.continues),
            ] {
                if set {
                    return wrong(field, "part of a chat".into());
                }
            }
        }
        if self.chat.continues && self.chat.generation_prompt == Some(true) {
            return wrong("add_generation_prompt", "left out with continue_final_message".into());
        }
        if !matches!(self.prompt, Prompt::Chat(_)) && self.chat.constrain.is_some() {
            return wrong("constrain_from", "part of a chat".into());
        }
        if self.chat.calls.need_grammar() {
            let forced = !matches!(self.chat.calls.choice, ToolChoice::Auto);
            if forced && self.chat.tools.is_empty() {
                return wrong("tool_choice", "left to the model unless there are tools".into());
            }
            if !self.chat.tools.is_empty() && !self.format.is_text() {
                return wrong("response_format", "left out where calls of tools have a form".into());
            }
        }
        Ok(())
    }

    fn check_stops(&self) -> Result<()> {
        let texts = |field, texts: &[Secret<str>], most: usize| {
            let bytes = 1..=Self::MAX_STOP_BYTES;
            if texts.len() > most {
                return Err(Error::request(field, format!("at most {most} strings")));
            }
            if texts.iter().any(|text| !bytes.contains(&text.expose().len())) {
                return Err(Error::request(field, format!("strings of 1 to {} bytes", Self::MAX_STOP_BYTES)));
            }
            Ok(())
        };
        texts("stop", &self.stop, Self::MAX_STOPS)?;
        texts("dry_breakers", self.breakers.as_deref().unwrap_or(&[]), Self::MAX_BREAKERS)?;
        if self.stop_tokens.expose().len() > Self::MAX_STOP_TOKENS {
            return Err(Error::request("stop_token", format!("at most {} tokens", Self::MAX_STOP_TOKENS)));
        }
        Ok(())
    }
}
