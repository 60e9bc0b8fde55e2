//! How a chat is put before the model, which tools it may call, and what form its reply has.

use super::Request;
use crate::chat::{Tool, ToolCallParser};
use crate::grammar::{Calls, ResponseFormat, ToolChoice};
use crate::memory::{Secret, json};

/// How a chat is put before the model. No `Debug`: variables would print.
#[derive(Default)]
pub(crate) struct ChatOptions {
    pub tools: Vec<Tool>,
    /// The name of one of the checkpoint's templates.
    pub template: Option<Secret<str>>,
    /// How its tools are called.
    pub calls: Calls,
    /// Variables for the template.
    pub variables: serde_json::Map<String, serde_json::Value>,
    /// Whether the prompt ends where the assistant begins to speak; yes, unless the reply goes on with a message.
    pub generation_prompt: Option<bool>,
    /// Whether the reply goes on with the last message.
    pub continues: bool,
    /// How the model writes calls, if not as its template teaches.
    pub parser: Option<ToolCallParser>,
    /// Where the reply begins to follow its format.
    pub constrain: Option<ConstrainFrom>,
}

impl ChatOptions {
    /// Sets a variable; the one that it replaces is overwritten.
    fn set(&mut self, name: String, value: serde_json::Value) {
        match self.variables.get_mut(&name) {
            Some(known) => {
                json::wipe(std::mem::replace(known, value));
                drop(Secret::new(name));
            }
            None => drop(self.variables.insert(name, value)), // there is none to replace
        }
    }
}

impl Drop for ChatOptions {
    fn drop(&mut self) {
        json::wipe(std::mem::take(&mut self.variables).into());
    }
}

/// Where the reply to a chat begins to follow [`Request::response_format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConstrainFrom {
    /// At its first token: the model does not think, and [`crate::Choice::text`] is the value. Sane where thinking is
    /// switched off in the prompt, or the model has not learned to think.
    FirstToken,
    /// Behind its reasoning, which is free: [`crate::Choice::reasoning`] is what the model thought, and
    /// [`crate::Choice::text`] the value. The model may think as long as `max_tokens` lasts, so leave room for both.
    EndOfReasoning,
    /// At its first token, reasoning and its marks included: the format says what these look like, too.
    WholeReply,
}

impl Request {
    /// Whether a chat's prompt ends with what its template writes before an answer: yes by default, and no where the reply
    /// goes on with a message ([`Request::continue_final_message`]).
    ///
    /// ```
    /// use amnesic::{Request, assistant, user};
    ///
    /// let whole = Request::chat([user("Hello"), assistant("Hello!")]).add_generation_prompt(false);
    /// # let _ = whole;
    /// ```
    pub fn add_generation_prompt(mut self, add: bool) -> Self {
        self.chat.generation_prompt = Some(add);
        self
    }

    /// Goes on with the chat's last message, which must be the assistant's: the prompt ends where that message's text ends,
    /// without what the template writes behind it, as with transformers' `continue_final_message`. The reply is what comes
    /// behind it; in a [`Conversation`](crate::Conversation) the two become one message.
    ///
    /// ```
    /// use amnesic::{Request, assistant, user};
    ///
    /// let request = Request::chat([user("List three colours as JSON."), assistant("[\"red\",")]);
    /// let request = request.continue_final_message(true);
    /// # let _ = request;
    /// ```
    pub fn continue_final_message(mut self, go_on: bool) -> Self {
        self.chat.continues = go_on;
        self
    }

    /// The name of one of the checkpoint's chat templates; without it, the one that transformers takes.
    ///
    /// ```
    /// use amnesic::{Request, user};
    ///
    /// let request = Request::chat([user("What is a slice?")]).chat_template("rag");
    /// let request = request.template_variable("enable_thinking", false);
    /// # drop(request);
    /// ```
    pub fn chat_template(mut self, name: impl Into<String>) -> Self {
        self.chat.template = Some(Secret::new(name.into()));
        self
    }

    /// A variable for the chat template, such as `enable_thinking`. Overwritten with the request; but what a template
    /// makes of it is held by the `minijinja` crate meanwhile, as its messages are.
    /// [`Request::chat_template`] has an example.
    pub fn template_variable(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.chat.set(name.into(), value.into());
        self
    }

    /// Tools that a chat model may call. [`Request::tool_choice`] has an example.
    pub fn tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.chat.tools = tools.into_iter().collect();
        self
    }

    /// Whether the reply calls one of the tools, and which: by default the model decides. A grammar holds it, in the format
    /// of calls that the checkpoint writes ([`ToolCallParser`](crate::ToolCallParser)); behind reasoning, as
    /// [`Request::constrain_from`] says. Arguments of calls that must be made keep to the tool's schema, but for what
    /// [`crate::Reply::not_enforced`] names, and have no properties but those that it names, unless it speaks of others.
    /// Not beside a [`Request::response_format`].
    ///
    /// Refused by name: names of functions and parameters that a format cannot spell where it does not quote them, and
    /// lists and objects as parameters of MiniMax M3. A reply of gpt-oss has one call.
    ///
    /// ```
    /// use amnesic::{Request, Tool, ToolChoice, user};
    ///
    /// let clock = Tool::new("clock", "Tells the time.", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("How late is it?")]).tools([clock]).tool_choice(ToolChoice::Required);
    /// # let _ = request;
    /// ```
    pub fn tool_choice(mut self, choice: ToolChoice) -> Self {
        self.chat.calls.choice = choice;
        self
    }

    /// Whether the arguments of every call keep to their tool's schema, also where the model decides whether it calls; what
    /// cannot be enforced of a schema is then refused, as [`ResponseFormat::json_schema`] does.
    ///
    /// In formats that do not write JSON some keywords hold nowhere: those that speak of all parameters together
    /// (`minProperties`, `anyOf` beside `properties` and the like) and, for parameters that are text between tags, the
    /// formats `duration`, `hostname`, `ipv4`, `ipv6` and `uri`. In lists and objects of FunctionGemma nothing does. Within
    /// a list or an object that is JSON between tags, a text that spells the tag which ends it ends it too soon. Where calls
    /// have no mark (Llama, Python's form) a reply that says something does not begin with their bracket.
    ///
    /// ```
    /// use amnesic::{Request, Tool, user};
    ///
    /// let clock = Tool::new("clock", "Tells the time.", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("How late is it?")]).tools([clock]).strict_tools(true);
    /// # let _ = request;
    /// ```
    pub fn strict_tools(mut self, strict: bool) -> Self {
        self.chat.calls.strict = strict;
        self
    }

    /// Whether a reply may have more calls than one: yes by default.
    ///
    /// ```
    /// use amnesic::{Request, Tool, user};
    ///
    /// let clock = Tool::new("clock", "Tells the time.", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("How late is it?")]).tools([clock]).parallel_tool_calls(false);
    /// # let _ = request;
    /// ```
    pub fn parallel_tool_calls(mut self, parallel: bool) -> Self {
        self.chat.calls.single = !parallel;
        self
    }

    /// Reads calls of tools in the reply in this format, rather than in the one that the chat template teaches or the
    /// added tokens are for.
    ///
    /// ```
    /// use amnesic::{Request, Tool, ToolCallParser, user};
    ///
    /// let tool = Tool::new("now", "the time", serde_json::json!({ "type": "object", "properties": {} }));
    /// let request = Request::chat([user("What time is it?")]).tools([tool]);
    /// let request = request.tool_call_parser(ToolCallParser::Hermes);
    /// ```
    pub fn tool_call_parser(mut self, parser: ToolCallParser) -> Self {
        self.chat.parser = Some(parser);
        self
    }

    /// What the reply must look like.
    ///
    /// ```
    /// # use amnesic::{Request, ResponseFormat};
    /// # if !std::path::Path::new("models/default").is_dir() { return Ok(()); } // the package has no model
    /// # let session = amnesic::Session::builder("models/default").accept_unscrubbed_heap().open()?;
    /// let form = ResponseFormat::regex("(safe|unsafe) (code|block)");
    /// let reply = session.generate(Request::prompt("It is").response_format(form))?;
    /// assert!(reply.text().contains("safe"));
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn response_format(mut self, format: ResponseFormat) -> Self {
        self.format = format;
        self
    }

    /// Where the reply to a chat begins to follow its [`Request::response_format`]. Without this,
    /// [`ConstrainFrom::EndOfReasoning`] where the chat template has marks of reasoning that are tokens of the vocabulary and
    /// has not closed reasoning in the prompt, as it does where thinking is switched off; else [`ConstrainFrom::FirstToken`]. A
    /// call that is demanded may also stand behind reasoning that the prompt has opened with marks that are no tokens.
    /// Either way the value is the text.
    ///
    /// ```no_run
    /// use amnesic::{ConstrainFrom, Request, ResponseFormat, Session, user};
    ///
    /// let session = Session::open("path/to/a/reasoning/model")?;
    /// let ask = || {
    ///     Request::chat([user("Which of 7 and 9 is prime?")])
    ///         .response_format(ResponseFormat::regex("7|9"))
    ///         .max_tokens(2000)
    /// };
    /// let thought = session.generate(ask())?;
    /// println!("{} because {:?}", thought.text(), thought.choices()[0].reasoning());
    /// let quick = session.generate(ask().constrain_from(ConstrainFrom::FirstToken))?;
    /// assert_eq!(quick.choices()[0].reasoning(), None);
    /// # Ok::<(), amnesic::Error>(())
    /// ```
    pub fn constrain_from(mut self, from: ConstrainFrom) -> Self {
        self.chat.constrain = Some(from);
        self
    }
}
