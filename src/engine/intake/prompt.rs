//! Prompts: texts, ids, and chats in the words of a template.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::Intake;
use crate::chat::{self, ChatInput, PromptOptions, Rendered, Style, Templates};
use crate::engine::scheduler::Prefix;
use crate::engine::thinking::Thinking;
use crate::error::{Error, Result};
use crate::lease::PrefixHandle;
use crate::memory::Secret;
use crate::request::{Prompt, Request};
use crate::text::Text;

/// A prompt that was read.
pub(super) struct Encoded {
    pub(super) ids: Secret<[u32]>,
    /// What of it may be in the cache.
    pub(super) prefix: Option<Prefix>,
    /// How replies to a chat are written.
    pub(super) style: Option<Style>,
    /// What comes before the reply follows its format.
    pub(super) thinking: Option<Thinking>,
}

impl Intake {
    /// Reads the whole prompt.
    pub(super) fn encode(&self, request: &Request) -> Result<Encoded> {
        let reuse = request.prefix.as_ref();
        // never while it reads: those who share a public prompt would wait for each other
        fn before(reuse: &PrefixHandle) -> MutexGuard<'_, Secret<[u32]>> {
            reuse.ids.lock().unwrap_or_else(PoisonError::into_inner)
        }
        let mut ids = Secret::<[u32]>::default();
        // a conversation goes on behind all that was before, but for a chat: its template writes all of it again
        let goes_on = |reuse: &&PrefixHandle| !reuse.public && !matches!(request.prompt, Prompt::Chat(_));
        if let Some(reuse) = reuse.filter(goes_on) {
            ids.extend(before(reuse).expose());
        }
        let (style, thinking) = self.read_prompt(request, &|text| self.check_length(text), &mut ids)?;
        if ids.expose().is_empty() {
            return Err(Error::request("prompt", "a text that gives at least one token"));
        }
        if ids.expose().iter().any(|&id| id as usize >= self.defaults.vocab) {
            return Err(Error::request("prompt", format!("token ids below {}", self.defaults.vocab)));
        }
        let prefix = reuse.map(|reuse| {
            let before = before(reuse);
            let common = ids.expose().iter().zip(before.expose()).take_while(|(a, b)| a == b).count();
            // keys and values of another adapter are others
            let common = if *reuse.adapter.lock().unwrap_or_else(PoisonError::into_inner) == request.adapter {
                common
            } else {
                0
            };
            Prefix { key: reuse.lease.key, tokens: common }
        });
        Ok(Encoded { ids, prefix, style, thinking })
    }

    /// Appends the ids of a request's prompt, whose text `check` may refuse before it is encoded. Of a chat, says how
    /// replies are written, and what comes before the reply's format holds.
    pub(in crate::engine) fn read_prompt(
        &self,
        request: &Request,
        check: &dyn Fn(&str) -> Result<()>,
        ids: &mut Secret<[u32]>,
    ) -> Result<(Option<Style>, Option<Thinking>)> {
        match &request.prompt {
            Prompt::Text(prompt) => {
                let (text, prompt) = (self.text()?, prompt.expose());
                check(prompt)?;
                let specials = ids.expose().is_empty() && request.special_tokens.unwrap_or(true);
                text.encode_prompt(prompt, request.literal, specials, ids)?;
                Ok((None, None))
            }
            Prompt::Tokens(given) => {
                ids.extend(given.expose());
                Ok((None, None))
            }
            Prompt::Chat(messages) => {
                let Rendered { text: prompt, literal } = self.render(request, messages)?;
                let template = request.chat.template.as_ref().map(|name| name.expose());
                let parser = request.chat.parser.or(self.defaults.parser);
                let style = self
                    .templates()?
                    .style(template, !request.chat.tools.is_empty())
                    .with_tools(&request.chat.tools, parser, |token| self.ids_of(token).len() == 1)
                    .after(prompt.expose());
                let (style, header, thinking) = self.begin_format(request, style)?;
                let prompt = prompt.followed_by(header);
                check(prompt.expose())?;
                self.text()?.encode_chat(prompt.expose(), &literal, ids)?;
                Ok((Some(style), thinking))
            }
        }
    }

    /// The prompt of a chat, and what of it is literal.
    pub(in crate::engine) fn render(
        &self,
        request: &Request,
        messages: &[chat::Message],
    ) -> Result<Rendered> {
        let continues = request.chat.continues;
        let input = ChatInput {
            messages,
            tools: &request.chat.tools,
            template: request.chat.template.as_ref().map(|name| name.expose()),
            add_generation_prompt: request.chat.generation_prompt.unwrap_or(!continues),
            variables: &request.chat.variables,
        };
        let options = PromptOptions { all_literal: request.literal, continues, edges: &self.edges };
        self.templates()?.render_parts(&input, options, self.clock.wall())
    }

    fn templates(&self) -> Result<&Templates> {
        let file = &self.defaults.tokenizer_file;
        let folder = || file.parent().unwrap_or(file).to_owned();
        self.templates.as_ref().ok_or_else(|| Error::NoChatTemplate { folder: folder() })
    }

    pub(in crate::engine) fn text(&self) -> Result<&Text> {
        self.text.as_deref().ok_or_else(|| self.no_tokenizer())
    }

    pub(super) fn no_tokenizer(&self) -> Error {
        Error::NoTokenizer { file: self.defaults.tokenizer_file.clone() }
    }

    /// Refuses what can never fit before it spends time on it.
    fn check_length(&self, prompt: &str) -> Result<()> {
        // a normalizer may drop some of a text, so not the longest token alone
        const SLACK: usize = 4;
        let most = self.defaults.limits.context.saturating_mul(SLACK * self.longest_token);
        if prompt.len() > most {
            return Err(Error::request(
                "prompt",
                format!("at most {most} bytes for this context and vocabulary"),
            ));
        }
        Ok(())
    }

    /// The tokens of a mark.
    pub(super) fn ids_of(&self, mark: &str) -> Vec<u32> {
        let Some(text) = self.text.as_deref() else { return Vec::new() };
        let mut ids = Secret::<[u32]>::default();
        if text.encode(mark, false, &mut ids).is_err() {
            return Vec::new();
        }
        ids.expose().to_vec()
    }

    /// Special tokens that the replies to a chat show: marks of tool calls and of reasoning.
    pub(super) fn visible(&self, style: &Style) -> Arc<Vec<u32>> {
        let markers = style.markers();
        Arc::new(markers.iter().filter_map(|marker| self.text.as_deref()?.special(marker)).collect())
    }
}
