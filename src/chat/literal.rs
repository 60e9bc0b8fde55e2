//! Prompts of which some is literal, and prompts that go on with the last message.
//!
//! A template may trim, cut, repeat or replace what it is given, so where a message's text ends up is known only from what
//! the template writes. Before it renders, characters of literal messages are exchanged for others, one for one, from a
//! plane of Unicode that is for private use and that the chat does not use; in the prompt they are exchanged back, and where
//! they stood is literal.
//!
//! It is rendered twice. First only those characters are exchanged with which control tokens begin or end: a template that
//! looks for `/no_think` or for a date in a message finds it, and no control token can begin or end in what a user typed.
//! Then almost all are, so that none can have a part of it there; that counts where the template writes the same prompt.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::de::IgnoredAny;

use super::functions::Tool;
use super::message::{Message, Role};
use super::template::{ChatInput, Templates};
use crate::error::{Error, Result};
use crate::memory::Secret;

/// A prompt.
#[derive(Debug, Default)]
pub struct Rendered {
    /// What the template wrote.
    pub text: Secret<str>,
    /// Which of its bytes are literal: pairs of start and end.
    pub literal: Secret<[u32]>,
}

/// What a request says of its messages.
#[derive(Clone, Copy, Debug)]
pub struct PromptOptions<'a> {
    /// Whether all of them are literal, whatever they say themselves.
    pub all_literal: bool,
    /// Whether the reply goes on with the last one.
    pub continues: bool,
    /// The [`edges`] of the tokens that literal text must not become.
    pub edges: &'a [char],
}

impl Templates {
    /// Renders a prompt like [`Templates::render`], and says which of its bytes are literal.
    ///
    /// # Errors
    /// It fails where [`Templates::render`] does; where the reply is to go on with the last message and that is not the
    /// assistant's, or the template leaves it out; where literal messages have characters of both planes for private use.
    pub fn render_parts(
        &self,
        input: &ChatInput<'_>,
        options: PromptOptions<'_>,
        now: SystemTime,
    ) -> Result<Rendered> {
        let is_literal = |message: &Message| options.all_literal || message.is_literal();
        let any = input.messages.iter().any(&is_literal);
        let last = input.messages.last().filter(|_| options.continues);
        if options.continues && last.is_none_or(|last| last.role() != Role::Assistant) {
            return Err(Error::request(
                "continue_final_message",
                "a chat whose last message is the assistant's",
            ));
        }
        if !any && last.is_none() {
            return Ok(Rendered { text: self.render(input, now)?, literal: Secret::default() });
        }
        let plane = if any { plane(input)? } else { PLANES[0] };
        let tag = last.map(tag);
        let render = |marked: &dyn Fn(char) -> bool| {
            let marks = Marks { plane, marked };
            let copy = |message: &Message| match is_literal(message) {
                true => message.changed(&|text| marks.text(text), &|json| marks.json(json)),
                false => message.changed(&Secret::<str>::copy, &Secret::<str>::copy),
            };
            let mut messages: Vec<Message> = input.messages.iter().map(copy).collect();
            if let (Some(last), Some(tag)) = (messages.last_mut(), tag) {
                last.append(&format!("{tag} "));
            }
            let text = self.render(&ChatInput { messages: &messages, ..*input }, now)?;
            let end = tag.map_or(Some(text.expose().len()), |tag| end(text.expose(), tag));
            let end = end.ok_or_else(left_out)?;
            let rendered = marks.back(&text.expose()[..end], tag);
            let kept = |last: &Message| rendered.text.expose().contains(last.content().trim());
            if last.is_some_and(|last| !kept(last)) { Err(left_out()) } else { Ok(rendered) }
        };
        if !any {
            return render(&|_| false);
        }
        let some = render(&|character| options.edges.contains(&character))?;
        Ok(match render(&|_| true) {
            Ok(all) if all.text.expose() == some.text.expose() => all.joined(),
            _ => some,
        })
    }
}

fn left_out() -> Error {
    Error::request("continue_final_message", "a chat template that writes the last message as it is")
}

/// Planes for private use.
const PLANES: [u32; 2] = [0xf_0000, 0x10_0000];
/// Characters from here on are not exchanged; their places in a plane are for tags.
const MARKABLE: u32 = 0xfff0;

/// The plane that neither messages nor tools have a character of.
fn plane(input: &ChatInput<'_>) -> Result<u32> {
    let has = |text: &str, plane: u32| text.chars().any(|character| u32::from(character) & !0xffff == plane);
    let used = |plane: &u32| {
        input.tools.iter().any(|tool: &Tool| has(tool.definition(), *plane))
            || input.messages.iter().any(|message| message.texts().any(|text| has(text, *plane)))
    };
    PLANES.into_iter().find(|plane| !used(plane)).ok_or_else(|| {
        Error::request("literal_text", "a chat without characters from both planes for private use")
    })
}

/// A character that marks the end of the last message, which does not have it.
fn tag(last: &Message) -> char {
    let tags = PLANES.into_iter().flat_map(|plane| (MARKABLE..0xfffe).map(move |low| plane + low));
    let mut tags = tags.filter_map(char::from_u32);
    let free = tags.find(|tag| !last.content().contains(*tag));
    free.unwrap_or('\u{10fffd}')
}

/// Where the last message ends in what a template wrote, as transformers finds it: a template that trims messages would
/// have trimmed the white space at the end of this one, too.
fn end(text: &str, tag: char) -> Option<usize> {
    let at = text.rfind(tag)?;
    let kept = text[at + tag.len_utf8()..].starts_with(' ');
    Some(if kept { at } else { text[..at].trim_end().len() })
}

/// The characters of which every text of `controls` has one: that with which it begins and ends, if they can be exchanged.
pub fn edges<'a>(controls: impl Iterator<Item = &'a str>) -> Vec<char> {
    let mut edges = BTreeSet::new();
    for control in controls {
        edges.extend(control.chars().find(|&character| can_mark(character)));
        edges.extend(control.chars().rev().find(|&character| can_mark(character)));
    }
    edges.into_iter().collect()
}

/// Whether templates are indifferent to a character: they trim white space, and write quotes and backslashes in other ways.
fn can_mark(character: char) -> bool {
    !character.is_whitespace()
        && !character.is_control()
        && !matches!(character, '"' | '\'' | '\\')
        && u32::from(character) < MARKABLE
}

/// Which characters are exchanged, and for which.
struct Marks<'a> {
    plane: u32,
    marked: &'a dyn Fn(char) -> bool,
}

impl Marks<'_> {
    fn exchanged(&self, character: char) -> char {
        match can_mark(character) && (self.marked)(character) {
            true => char::from_u32(self.plane + u32::from(character)).unwrap_or(character),
            false => character,
        }
    }

    fn text(&self, text: &str) -> Secret<str> {
        let mut out = Secret::<[u8]>::with_capacity(text.len());
        text.chars().for_each(|character| push(&mut out, self.exchanged(character)));
        Secret::from_utf8(out).expect("characters are UTF-8")
    }

    /// Exchanges what is in the strings of a JSON text, also where it is written as `\u003c`. What is no JSON is text.
    fn json(&self, text: &str) -> Secret<str> {
        if serde_json::from_str::<IgnoredAny>(text).is_err() {
            return self.text(text);
        }
        let mut out = Secret::<[u8]>::with_capacity(text.len());
        let (mut rest, mut inside) = (text.chars(), false);
        while let Some(character) = rest.next() {
            match character {
                '"' => inside = !inside,
                '\\' => {
                    self.escape(&mut rest, &mut out);
                    continue;
                }
                _ => {}
            }
            push(&mut out, if inside { self.exchanged(character) } else { character });
        }
        Secret::from_utf8(out).expect("characters are UTF-8")
    }

    /// Writes what stands behind a backslash.
    fn escape(&self, rest: &mut std::str::Chars<'_>, out: &mut Secret<[u8]>) {
        let spelled = rest.as_str();
        let meant = match spelled.as_bytes().first() {
            Some(b'u') => spelled.get(1..5).and_then(|digits| u32::from_str_radix(digits, 16).ok()),
            Some(b'/') => Some(u32::from('/')),
            _ => None,
        };
        let meant = meant.and_then(char::from_u32).map(|meant| (meant, self.exchanged(meant)));
        let taken = if spelled.starts_with('u') { 5 } else { 1 };
        match meant.filter(|(meant, exchanged)| meant != exchanged) {
            Some((_, exchanged)) => {
                push(out, exchanged);
                rest.by_ref().take(taken).for_each(drop);
            }
            None => {
                push(out, '\\');
                rest.next().into_iter().for_each(|character| push(out, character));
            }
        }
    }

    /// What a template made of exchanged characters, exchanged back; without tags, of which it may have written more.
    fn back(&self, text: &str, tag: Option<char>) -> Rendered {
        let mut out = Secret::<[u8]>::with_capacity(text.len());
        let mut literal = Secret::<[u32]>::default();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if Some(character) == tag {
                let _ = characters.next_if_eq(&' ');
                continue;
            }
            let low = u32::from(character).wrapping_sub(self.plane);
            let typed = char::from_u32(low).filter(|&typed| can_mark(typed) && (self.marked)(typed));
            let start = out.expose().len() as u32;
            push(&mut out, typed.unwrap_or(character));
            if typed.is_some() {
                join(&mut literal, start, out.expose().len() as u32);
            }
        }
        let text = Secret::from_utf8(out).expect("characters are UTF-8");
        Rendered { text, literal }
    }
}

impl Rendered {
    /// Where almost all characters were exchanged, what could not be and stands between two that were is literal, too.
    fn joined(self) -> Self {
        let mut literal = Secret::<[u32]>::default();
        let text = self.text.expose();
        for &[start, end] in self.literal.expose().as_chunks::<2>().0 {
            let before = literal.expose().last().copied();
            let between = before.map(|before| &text[before as usize..start as usize]);
            let start = match (before, between) {
                (Some(before), Some(between)) if !between.chars().any(can_mark) => before,
                _ => start,
            };
            join(&mut literal, start, end);
        }
        Self { literal, ..self }
    }
}

/// Appends a range, or makes the last one longer.
fn join(ranges: &mut Secret<[u32]>, start: u32, end: u32) {
    match ranges.expose_mut().last_mut() {
        Some(last) if *last == start => *last = end,
        _ => ranges.extend(&[start, end]),
    }
}

fn push(out: &mut Secret<[u8]>, character: char) {
    out.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
}
