//! Pairs of requests of equal shape: random words of a script, as many bytes and tokens, with replies of as many tokens
//! and bytes. Found by trying: the model is tiny.

use amnesic::privacy::DeviceReceipt;
use amnesic::{FinishReason, Reply, Request, ResponseFormat, Session, Speculation};
use serde::{Deserialize, Serialize};

use super::search::cells::{Cell, Ending, Way};
use crate::common::Random;

/// Tokens of a reply that nothing else ends.
pub const REPLY_TOKENS: usize = 24;
/// The token before which a request stands still where its ending wants that.
pub const GATE: usize = 8;
/// Requests that are tried for a pair.
const TRIES: u64 = 4000;

/// Twelve scripts: the first letters of each, and how many follow.
pub const SCRIPTS: [(&str, char, u32); 12] = [
    ("Latin", 'a', 26),
    ("Greek", 'α', 25),
    ("Cyrillic", 'а', 32),
    ("Armenian", 'ա', 38),
    ("Hebrew", 'א', 27),
    ("Arabic", 'ف', 8),
    ("Devanagari", 'क', 37),
    ("Bengali", 'ক', 19),
    ("Thai", 'ก', 46),
    ("Georgian", 'ა', 33),
    ("Hangul", '가', 11_000),
    ("Han", '一', 20_000),
];

/// What is secret about a request; all the same lengths within a pair.
#[derive(Clone, Serialize, Deserialize)]
pub struct Content {
    pub prompt: String,
    /// Matched word for word, where there is a grammar.
    pub grammar: String,
    /// Ends the reply, where that is its ending.
    pub stop: String,
    /// Ends the reply, where that is its ending.
    pub end: u32,
}

/// Words of a script, always of the same lengths.
fn words(script: usize, random: &mut Random, lengths: &[usize]) -> String {
    let (_, first, count) = SCRIPTS[script];
    let mut text = String::new();
    for (index, length) in lengths.iter().enumerate() {
        if index > 0 {
            text.push(' ');
        }
        for _ in 0..*length {
            let char = u32::from(first) + random.below(count as usize) as u32;
            text.push(char::from_u32(char).expect("scripts have no gaps"));
        }
    }
    text
}

/// A prompt in a script, of the same number of bytes in each: 40, times `times` and spaces between. Another one for each
/// `seed`.
pub fn same_bytes(script: usize, times: usize, seed: u64) -> Content {
    let width = SCRIPTS[script].1.len_utf8();
    let lengths = [12, 6, 6, 6, 6].map(|length| length / width).repeat(times);
    let prompt = words(script, &mut Random(900 + script as u64 + 100 * seed), &lengths);
    Content { prompt, grammar: String::new(), stop: String::new(), end: 0 }
}

/// Two requests of this cell that differ in nothing but content.
pub fn pair(session: &Session, cell: Cell, script: usize) -> [Content; 2] {
    let mut random = Random(1 + script as u64);
    let mut known: Vec<(Content, Vec<usize>)> = Vec::new();
    for _ in 0..TRIES {
        let prompt = words(script, &mut random, &[7, 4, 9, 5, 8]);
        let grammar = match cell.way {
            Way::Structured => words(script, &mut random, &[6, 3, 5]),
            _ => String::new(), // only what a request takes, since nobody else overwrites it
        };
        let content = Content { prompt, grammar, stop: String::new(), end: 0 };
        let Some((content, shape)) = shape(session, cell, content) else { continue };
        if let Some((other, _)) = known.iter().find(|(_, of)| *of == shape) {
            assert_eq!(other.prompt.len(), content.prompt.len());
            return [other.clone(), content];
        }
        known.push((content, shape));
    }
    panic!("{} in {}: no two of {TRIES} requests have the same shape", cell.name(), SCRIPTS[script].0);
}

/// The request as the cell asks it, but for its ending.
pub fn request(cell: Cell, content: Content) -> Request {
    let request = match cell.way {
        Way::Chat => Request::chat([amnesic::user(content.prompt)]),
        _ => Request::prompt(content.prompt),
    };
    let request = match cell.way {
        Way::Structured => request.response_format(ResponseFormat::regex(content.grammar)).max_tokens(100),
        Way::Speculative => {
            let guesses = Speculation::PromptLookup { ngram: 2, tokens: 4 };
            request.max_tokens(REPLY_TOKENS).speculate(guesses)
        }
        _ => request.max_tokens(REPLY_TOKENS),
    };
    // a grammar ends with the end token
    request.temperature(0.0).ignore_eos(cell.way != Way::Structured)
}

/// A plain run of it: what a run with its ending is measured by.
fn run(session: &Session, cell: Cell, content: &Content, change: impl FnOnce(Request) -> Request) -> Reply {
    let request = change(request(cell, content.clone()));
    if cell.way != Way::Conversation {
        return session.generate(request).unwrap();
    }
    let mut conversation = session.conversation();
    drop(conversation.generate(self::request(cell, content.clone())).unwrap());
    conversation.generate(request).unwrap()
}

/// What two requests must have in common, and the content with what ends it.
fn shape(session: &Session, cell: Cell, mut content: Content) -> Option<(Content, Vec<usize>)> {
    let reply = run(session, cell, &content, |request| request);
    let (tokens, text) = (reply.tokens(), reply.text());
    if tokens.len() <= GATE + 4 {
        return None;
    }
    // how many guesses there are and how many are right decides how many steps there are, which receipts count
    let guesses = [reply.usage.drafted_tokens, reply.usage.accepted_tokens];
    let mut shape = vec![reply.usage.prompt_tokens, tokens.len(), text.len(), guesses[0], guesses[1]];
    if cell.way == Way::Speculative {
        // and so how many rows the largest one had, which is what is overwritten then
        let counts = |device: &DeviceReceipt| [device.regions, device.bytes, device.samples];
        shape.extend(reply.receipt.devices.iter().flat_map(counts).map(|count| count as usize));
    }
    match cell.ending {
        // what there is of the reply by then has a length, too
        Ending::Cancel | Ending::Deadline => {
            let begun = |tokens| run(session, cell, &content, |request| request.max_tokens(tokens));
            shape.extend([GATE, GATE + 1].map(|tokens| begun(tokens).text().len()));
        }
        Ending::Success => {
            let at = (GATE + 2..tokens.len()).find(|&at| !tokens[..at].contains(&tokens[at]))?;
            content.end = tokens[at];
            let ended = run(session, cell, &content, |request| request.stop_token(content.end));
            shape = vec![reply.usage.prompt_tokens, ended.tokens().len(), ended.text().len()];
        }
        Ending::StopString => {
            let lengths = |at: usize| [3, 4].map(|length| text.get(at..at + length));
            let candidates = (1..text.len().saturating_sub(4)).rev().flat_map(lengths).flatten();
            for stop in candidates.take(6) {
                let ended = run(session, cell, &content, |request| request.stop(stop));
                if ended.finish_reason() == FinishReason::Stop && ended.tokens().len() > GATE + 1 {
                    content.stop = stop.to_owned();
                    let (tokens, bytes) = (ended.tokens().len(), ended.text().len());
                    return Some((content, vec![reply.usage.prompt_tokens, tokens, bytes, stop.len()]));
                }
            }
            return None;
        }
        _ => {}
    }
    Some((content, shape))
}
