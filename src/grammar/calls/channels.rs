//! Replies that are messages with channels, some of which are calls: those of gpt-oss and of Inkling.

use super::function::Function;
use super::layout::{body, object};
use super::writer::{Mark, Writer, escaped, quoted, somewhere};
use super::{Calls, ReplyForm, ToolChoice};
use crate::error::{Error, Result};
use crate::memory::Secret;

/// What no text may spell: it would be read as a mark.
const MARKS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"];

/// The body of the first rule for gpt-oss. A message that is a call ends the reply, as these models were trained.
pub fn harmony(
    writer: &mut Writer,
    calls: &Calls,
    functions: &[Function<'_>],
    reply: &ReplyForm<'_>,
) -> Result<String> {
    let mut one = Secret::<[u8]>::default();
    for (index, function) in functions.iter().enumerate() {
        let name = function.plain_name(".:/")?;
        one.extend(if index == 0 { &b""[..] } else { b"| " });
        writer.fixed(&mut one, "<|channel|>")?;
        let head = Secret::new(["commentary to=functions.", name, " "].concat());
        quoted(&mut one, head.expose());
        writer.fixed(&mut one, "<|constrain|>json<|message|>")?;
        body(&mut one, function);
        if let Mark::Special(_) = writer.mark("<|call|>") {
            writer.fixed(&mut one, "<|call|>")?;
        }
    }
    let call = writer.rule(&one);
    let must = !matches!(calls.choice, ToolChoice::Auto);
    if reply.answers {
        let expected = "left to the model: the prompt ends within an answer";
        return if must { Err(Error::request("tool_choice", expected)) } else { text(writer, &MARKS, "") };
    }
    // messages before the last one
    let mut before = Secret::<[u8]>::default();
    let next = "<|end|><|start|>assistant";
    if reply.thinks {
        before.extend(b"(");
        writer.fixed(&mut before, "<|channel|>")?;
        before.extend(b"(\"analysis\" | \"commentary\") ");
        writer.fixed(&mut before, "<|message|>")?;
        before.extend(text(writer, &MARKS, next)?.as_bytes());
        before.extend(b")* ");
    }
    let mut start = String::new();
    if reply.inside {
        start.push_str(&text(writer, &MARKS, next)?);
        start.push(' ');
    }
    if reply.thinks {
        start.push_str(&writer.rule(&before));
        start.push(' ');
    }
    if must {
        start.push_str(&call);
        return Ok(start);
    }
    let mut answer = Secret::<[u8]>::default();
    writer.fixed(&mut answer, "<|channel|>")?;
    answer.extend(b"(\"final\" | \"commentary\") ");
    writer.fixed(&mut answer, "<|message|>")?;
    answer.extend(text(writer, &MARKS, "")?.as_bytes());
    let answer = writer.rule(&answer);
    start.push_str(&format!("({call} | {answer})"));
    Ok(start)
}

/// The body of the first rule for Inkling, whose prompts end with the mark of a message.
pub fn inkling(
    writer: &mut Writer,
    calls: &Calls,
    functions: &[Function<'_>],
    reply: &ReplyForm<'_>,
) -> Result<String> {
    let marks = reply.parser.markers();
    let mut one = Secret::<[u8]>::default();
    for (index, function) in functions.iter().enumerate() {
        one.extend(if index == 0 { &b"("[..] } else { b"| " });
        if function.plain_name(".:/").is_ok() {
            quoted(&mut one, function.name);
            one.extend(b"? ");
        }
        writer.fixed(&mut one, "<|content_invoke_tool_json|>")?;
        object(&mut one, function, (None, "name", "args"));
    }
    one.extend(b") ");
    writer.fixed(&mut one, "<|end_message|>")?;
    let call = writer.rule(&one);
    let must = !matches!(calls.choice, ToolChoice::Auto);
    let next = "<|end_message|><|message_model|>";
    let mut start = String::new();
    if reply.inside || reply.answers {
        start = text(writer, marks, next)?;
        start.push(' ');
    }
    if reply.thinks {
        let mut before = Secret::<[u8]>::default();
        before.extend(b"(");
        writer.fixed(&mut before, "<|content_thinking|>")?;
        before.extend(b"| ");
        writer.fixed(&mut before, "<|content_text|>")?;
        before.extend(b") ");
        before.extend(text(writer, marks, next)?.as_bytes());
        start.push_str(&format!("{}* ", writer.rule(&before)));
    }
    let mut more = Secret::<[u8]>::default();
    writer.fixed(&mut more, "<|message_model|>")?;
    more.extend(call.as_bytes());
    let all = match calls.single {
        true => call,
        false => format!("{call} {}*", writer.rule(&more)),
    };
    if must {
        return Ok(format!("{start}{all}"));
    }
    let mut answer = Secret::<[u8]>::default();
    writer.fixed(&mut answer, "<|content_text|>")?;
    answer.extend(text(writer, marks, "")?.as_bytes());
    let mut end = Secret::<[u8]>::default();
    writer.fixed(&mut end, "<|end_message|>")?;
    let (answer, end) = (writer.rule(&answer), writer.rule(&end));
    let said = format!("{start}({all} | {answer} {end}?)");
    match reply.answers {
        true => Ok(format!("{} {end}? | {said}", text(writer, marks, "")?)),
        false => Ok(said),
    }
}

/// Text, and what is fixed behind it.
fn text(writer: &mut Writer, marks: &[&str], close: &str) -> Result<String> {
    let excluded: Vec<String> = marks.iter().map(|mark| escaped(mark)).collect();
    let mut body = Secret::<[u8]>::default();
    writer.text_until(&mut body, &[], &[somewhere(&excluded.join("|"))], close)?;
    Ok(writer.rule(&body))
}
