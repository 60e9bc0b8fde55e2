//! The form of a reply: where it begins to follow one, and the grammars of that.

use std::time::Instant;

use super::Intake;
use crate::chat::{ReasoningEnd, Style, Tool};
use crate::engine::mailbox::Outbox;
use crate::engine::masks::GrammarState;
use crate::engine::thinking::{Ending, Thinking};
use crate::error::{Error, Result};
use crate::grammar::{ReplyForm, ResponseFormat, ToolChoice};
use crate::request::{ConstrainFrom, Request};

impl Intake {
    /// Where a chat's reply begins to follow its format: how it is written then, what stands behind the prompt for that, and
    /// what comes before it.
    pub(super) fn begin_format(
        &self,
        request: &Request,
        style: Style,
    ) -> Result<(Style, &'static str, Option<Thinking>)> {
        let calls = request.chat.calls.need_grammar() && !request.chat.tools.is_empty();
        if request.format.is_text() && !calls {
            return Ok((style, "", None));
        }
        let asked = request.chat.constrain;
        // the grammar of calls has the channels in it
        if asked == Some(ConstrainFrom::WholeReply) || calls && style.has_channels() {
            return Ok((style, "", None));
        }
        // so it has marks of reasoning that are no tokens
        if calls && self.spelled_reasoning(request, &style).is_some() {
            return Ok((style, "", None));
        }
        if asked != Some(ConstrainFrom::FirstToken) && !style.is_closed() {
            let ending = style.reasoning_end().and_then(|end| Ending::of(end, |mark| self.ids_of(mark)));
            if let Some(thinking) = ending.and_then(|ending| Thinking::new(ending, style.waits_for_answer()))
            {
                return Ok((style, "", Some(thinking)));
            }
            if asked.is_some() {
                let expected = "from the first token on: the chat template has no marks of reasoning that are \
                                tokens of the vocabulary";
                return Err(Error::request("constrain_from", expected));
            }
        }
        let header = style.answer_header();
        Ok((style.without_reasoning(), header, None))
    }

    /// The form of a reply whose calls of tools are not left to the model.
    pub(super) fn calls(&self, request: &Request, style: Option<&Style>) -> Result<Option<ResponseFormat>> {
        let (calls, tools) = (&request.chat.calls, &request.chat.tools);
        if tools.is_empty() || !calls.need_grammar() {
            return Ok(None);
        }
        let Some((style, parser)) = style.and_then(|style| Some((style, style.parser()?))) else {
            let field = match (&calls.choice, calls.strict) {
                (ToolChoice::Auto, true) => "strict_tools",
                (ToolChoice::Auto, false) => "parallel_tool_calls",
                _ => "tool_choice",
            };
            let expected =
                "left to the model: neither the chat template nor the tokens tell how calls are written";
            return Err(Error::request(field, expected));
        };
        let vocabulary = self.vocabulary.as_ref().ok_or_else(|| self.no_tokenizer())?;
        let first = request.chat.constrain == Some(ConstrainFrom::FirstToken);
        let reply = ReplyForm {
            parser,
            mark: &|mark| vocabulary.grammars.mark(mark),
            answer: style.answer_marks(),
            reasoning: self.spelled_reasoning(request, style),
            thinks: !first,
            inside: style.begins_inside(),
            answers: style.begins_answer(),
        };
        calls.format(tools.iter().map(Tool::definition), &reply).map(Some)
    }

    /// A grammar for each choice: compiled once, and copied. None where the request's time is over: the worker ends it
    /// before it draws a token.
    pub(super) fn guides(
        &self,
        (request, format): (&Request, &ResponseFormat),
        outbox: &Outbox,
        choices: usize,
        deadline: Option<Instant>,
        thinking: Option<Thinking>,
    ) -> Result<Vec<GrammarState>> {
        let late = || deadline.is_some_and(|deadline| deadline <= self.clock.now());
        if format.is_text() || late() {
            return Ok(Vec::new());
        }
        let vocabulary = self.vocabulary.as_ref().ok_or_else(|| self.no_tokenizer())?;
        let Some(mut begun) = vocabulary.grammars.compile(format, choices)? else {
            return Ok(Vec::new());
        };
        outbox.set_not_enforced(std::mem::take(&mut begun.not_enforced));
        let mut first = GrammarState::new(begun);
        if let Some(thinking) = thinking {
            // a call of a tool ends the reply as well, unless the grammar is that of the call
            let holds = request.chat.tools.is_empty() || request.chat.calls.need_grammar();
            first.think_before(thinking, holds);
        }
        #[cfg(feature = "testing")]
        first.tap(&request.taps);
        let mut guides = Vec::with_capacity(choices);
        for _ in 1..choices {
            if late() {
                return Ok(Vec::new());
            }
            guides.push(first.fork());
        }
        guides.insert(0, first);
        Ok(guides)
    }

    /// The marks of a chat's reasoning that calls may stand behind, where its end is not one token.
    fn spelled_reasoning(
        &self,
        request: &Request,
        style: &Style,
    ) -> Option<(&'static [&'static str], &'static str)> {
        // marks that are no tokens are no sure sign of a model that thinks: the prompt or the request has to say so
        let thinks = match request.chat.constrain {
            None => style.begins_inside(),
            Some(from) => from == ConstrainFrom::EndOfReasoning && !style.is_closed(),
        };
        if !thinks {
            return None;
        }
        match style.reasoning_end()? {
            ReasoningEnd::Mark { opens, close } if self.ids_of(close).len() != 1 => Some((opens, close)),
            _ => None,
        }
    }
}
