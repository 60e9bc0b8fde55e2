//! A conversation as bytes: its messages, its token ids, and the adapter that they were computed with. No keys and values:
//! computed again from the ids they are the same to the bit, and a hundred times the size.

use crate::chat::{Message, Role, ToolCall};
use crate::identity::Hash;
use crate::memory::Secret;

/// What is padded to a multiple of it, so that a length tells little.
const PAGE: usize = 4096;

/// A conversation between two turns.
#[derive(Debug, Default)]
pub struct Record {
    pub messages: Vec<Message>,
    pub ids: Secret<[u32]>,
    /// Its name, and what it is.
    pub adapter: Option<(String, Hash)>,
}

/// Numbers that stand for roles. A new role gets a new one.
const ROLES: [Role; 5] = [Role::System, Role::User, Role::Assistant, Role::Tool, Role::Developer];
/// Is added to the number of a message that is literal.
const LITERAL: usize = 1 << 16;

/// Writes a record's bytes, all into one block that does not move.
pub fn encode(messages: &[Message], ids: &[u32], adapter: Option<(&str, &Hash)>) -> Secret<[u8]> {
    // counted first, so that nothing is copied when the block grows
    let mut count = Counter(0);
    write(&mut count, messages, ids, adapter);
    let mut bytes = Secret::<[u8]>::with_capacity(count.0.next_multiple_of(PAGE));
    write(&mut bytes, messages, ids, adapter);
    let padding = count.0.next_multiple_of(PAGE) - count.0;
    (0..padding).for_each(|_| bytes.push(0));
    bytes
}

/// Where bytes go.
trait Out {
    fn put(&mut self, bytes: &[u8]);

    fn number(&mut self, number: usize) {
        self.put(&(number as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.put(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        self.number(usize::from(text.is_some()));
        text.into_iter().for_each(|text| self.text(text));
    }
}

struct Counter(usize);

impl Out for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Out for Secret<[u8]> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend(bytes);
    }
}

/// Is added to the number of a message that has no content.
const WITHOUT_CONTENT: usize = 1 << 17;

fn write(out: &mut impl Out, messages: &[Message], ids: &[u32], adapter: Option<(&str, &Hash)>) {
    out.number(messages.len());
    for message in messages {
        let role = ROLES.iter().position(|role| *role == message.role());
        let literal = if message.is_literal() { LITERAL } else { 0 };
        let without_content = if message.is_without_content() { WITHOUT_CONTENT } else { 0 };
        out.number(role.expect("every role has a number") + literal + without_content);
        out.text(message.content());
        out.optional(message.reasoning());
        out.optional(message.tool_call_id());
        out.optional(message.name());
        out.number(message.tool_calls().len());
        for call in message.tool_calls() {
            [call.id(), call.name(), call.arguments()].into_iter().for_each(|text| out.text(text));
        }
    }
    out.optional(adapter.map(|(name, _)| name));
    adapter.into_iter().for_each(|(_, hash)| out.put(hash));
    out.number(ids.len());
    ids.iter().for_each(|id| out.put(&id.to_le_bytes()));
}

/// Reads what [`encode`] wrote; none if it is anything else. Ids may be any.
pub fn decode(bytes: &[u8]) -> Option<Record> {
    let mut input = Input(bytes);
    let mut record = Record::default();
    for _ in 0..input.number()? {
        record.messages.push(input.message()?);
    }
    if let Some(name) = input.optional()? {
        let hash = input.take(32)?.try_into().ok()?;
        record.adapter = Some((name.expose().to_owned(), hash));
    }
    let count = input.number()?;
    let ids = input.take(count.checked_mul(4)?)?.as_chunks::<4>().0;
    record.ids.refill(ids.iter().map(|id| u32::from_le_bytes(*id)));
    let rest = input.0;
    (rest.len() < PAGE && rest.iter().all(|&byte| byte == 0)).then_some(record)
}

/// What is not read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<usize> {
        let bytes = self.take(8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    }

    fn text(&mut self) -> Option<Secret<str>> {
        let count = self.number()?;
        Secret::from_utf8(Secret::copy(self.take(count)?))
    }

    fn optional(&mut self) -> Option<Option<Secret<str>>> {
        match self.number()? {
            0 => Some(None),
            1 => self.text().map(Some),
            _ => None,
        }
    }

    fn message(&mut self) -> Option<Message> {
        let number = self.number()?;
        let role = *ROLES.get(number & !LITERAL & !WITHOUT_CONTENT)?;
        let content = self.text()?;
        let [reasoning, tool_call_id, name] = [self.optional()?, self.optional()?, self.optional()?];
        let mut tool_calls = Vec::new();
        for _ in 0..self.number()? {
            tool_calls.push(ToolCall::of([self.text()?, self.text()?, self.text()?]));
        }
        let message = Message::of(role, content, [reasoning, tool_call_id, name], tool_calls);
        let message = message.literal_text(number & LITERAL != 0);
        Some(if number & WITHOUT_CONTENT == 0 { message } else { message.without_content() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> Vec<Message> {
        vec![
            Message::new(Role::System, ""),
            Message::new(Role::User, "Grüße 🦀").literal_text(true),
            Message::new(Role::Assistant, "Well.")
                .with_reasoning("why")
                .with_tool_calls(vec![ToolCall::new("1", "f", "{}"), ToolCall::new("2", "g", r#"{"a": 1}"#)]),
            Message::new(Role::Tool, "sun").with_tool_call_id("1").with_name("f"),
            Message::new(Role::Developer, "x"),
            Message::new(Role::Assistant, "").without_content(),
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let ids: Vec<u32> = (0..3000).map(|i| i * 77).collect();
        for adapter in [None, Some(("legal", &[9; 32]))] {
            let bytes = encode(&messages(), &ids, adapter);
            assert!(bytes.expose().len().is_multiple_of(PAGE));
            let record = decode(bytes.expose()).unwrap();
            assert_eq!(record.ids.expose(), ids);
            assert_eq!(record.adapter.as_ref().map(|(name, hash)| (name.as_str(), hash)), adapter);
            let again = encode(&record.messages, &ids, adapter);
            assert_eq!(again.expose(), bytes.expose());
            let call = &record.messages[2].tool_calls()[1];
            assert_eq!((call.id(), call.name(), call.arguments()), ("2", "g", r#"{"a": 1}"#));
            assert_eq!(record.messages[3].tool_call_id(), Some("1"));
            let literal: Vec<bool> = record.messages.iter().map(Message::is_literal).collect();
            assert_eq!(literal, [false, true, false, false, false, false]);
            let without_content: Vec<_> = record.messages.iter().map(Message::is_without_content).collect();
            assert_eq!(without_content, [false, false, false, false, false, true]);
        }
    }

    /// Who has the key may still hand in anything.
    #[test]
    fn anything_else_is_refused() {
        let bytes = encode(&messages(), &[1, 2, 3], Some(("legal", &[9; 32])));
        let used = bytes.expose().iter().rposition(|&byte| byte != 0).unwrap() + 1;
        for cut in 0..used {
            assert!(decode(&bytes.expose()[..cut]).is_none(), "cut off at {cut}");
        }
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut changed = bytes.expose()[..used].to_vec();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % used;
                changed[at] = (state >> 20) as u8;
            }
            let _ = decode(&changed); // gives something or nothing, and never panics
        }
        let mut longer = bytes.expose().to_vec();
        longer.push(1);
        assert!(decode(&longer).is_none());
    }
}
