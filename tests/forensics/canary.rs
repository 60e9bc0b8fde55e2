//! The canary: a checkpoint, a request, and what is known of its reply before any child runs.

use std::path::Path;

use amnesic::forensics::{Needles, learn};
use amnesic::testing::{LogitsTap, Tokenizer};
use amnesic::{Builder, FinishReason, Reply, Request, ResponseFormat, Session};
use serde::{Deserialize, Serialize};

use super::rows::Rows;
use crate::common::Recipe;

pub const VOCAB: usize = 704;
/// Tokens of a reply that nothing else ends.
pub const REPLY_TOKENS: usize = 48;

/// The canary prompt, inverted at compile time: no plain copy is in the program.
const PROMPT: [u8; 71] =
    inverted(*b"The patient Zebulon Quartzwick of Kraehwinkel has acute spectrophobia, ");

/// Its longest words.
const WORD_PLACES: [std::ops::Range<usize>; 3] = [20..30, 34..45, 56..69];

/// What a grammar asks for, word for word: text that is in no prompt, so that it is told apart.
const WORDS: [u8; 58] = inverted(*b"Xaver Quobbel of Pfefferminz shall never juggle 47 walnuts");

const fn inverted<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    let mut i = 0;
    while i < N {
        bytes[i] = !bytes[i];
        i += 1;
    }
    bytes
}

/// Text from inverted bytes, in one allocation that does not move.
pub fn text(inverted: &[u8]) -> String {
    let mut text = String::with_capacity(inverted.len());
    inverted.iter().for_each(|&byte| text.push(char::from(!byte)));
    text
}

pub fn prompt() -> String {
    text(&PROMPT)
}

pub fn canary() -> Request {
    Request::prompt(prompt()).temperature(0.0)
}

/// The grammar of a secret text.
pub fn grammar() -> ResponseFormat {
    ResponseFormat::regex(text(&WORDS))
}

pub fn recipe() -> Recipe {
    let mut recipe = Recipe::small(VOCAB);
    recipe.config["num_hidden_layers"] = 1.into(); // `Rows` knows the first layer only
    recipe.config["max_position_embeddings"] = 65_536.into();
    recipe.config["tie_word_embeddings"] = false.into(); // tied random weights repeat one token
    recipe
}

/// Opens with the system's allocator, too: what is then left is what this test looks for.
pub fn builder(folder: &Path) -> Builder {
    let builder = Session::builder(folder).accept_unscrubbed_heap();
    builder.threads(2).kv_tokens(4096).max_sequences(16).step_tokens(16)
}

/// Which reply a way of asking gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// Under the grammar.
    Structured,
    /// The second turn of a conversation whose first was the same.
    SecondTurn,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Plain, Self::Structured, Self::SecondTurn];
}

/// What is known of a reply. Content is inverted.
#[derive(Serialize, Deserialize)]
pub struct Known {
    pub needles: Needles,
    prompt: Vec<u32>,
    reply: Vec<u32>,
    /// Text that ends the reply, as a stop string, behind the gate.
    stop: Vec<u8>,
    /// A token that ends it there.
    pub end: u32,
    /// The token before which the reply stands still.
    pub gate: usize,
}

impl Known {
    pub fn load(folder: &Path, kind: Kind) -> Self {
        let file = std::fs::read(folder.join(format!("{kind:?}.json"))).unwrap();
        let known: Self = serde_json::from_slice(&file).unwrap();
        Self { needles: known.needles.prepare(), ..known }
    }

    pub fn stop(&self) -> String {
        text(&self.stop)
    }

    /// Whether these tokens begin the reply that is known: else nothing that a search says means anything.
    pub fn begins_with(&self, tokens: &[u32]) -> bool {
        !tokens.is_empty() && self.reply.iter().zip(tokens).all(|(known, token)| !known == *token)
    }

    /// The ids of the prompt behind others.
    pub fn late_prompt(&self, others: usize) -> Vec<u32> {
        std::iter::repeat_n(1, others).chain(self.prompt.iter().map(|id| !id)).collect()
    }
}

/// Writes the checkpoint.
pub fn write_checkpoint(folder: &Path) {
    recipe().write(folder, Some("byte_level"));
    // a chat whose prompt is that of the plain request
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
}

/// Writes the checkpoint, asks for all kinds of replies, and writes what is known of them. Returns all needles.
pub fn prepare(folder: &Path) -> Needles {
    let recipe = recipe();
    write_checkpoint(folder);
    let session = builder(folder).open().unwrap();
    let mut all = Needles::new();
    for kind in Kind::ALL {
        let known = know(folder, &recipe, &session, kind);
        std::fs::write(folder.join(format!("{kind:?}.json")), serde_json::to_vec(&known).unwrap()).unwrap();
        all = all.and(known.needles);
    }
    all
}

/// The request, and the reply's turn before it if there is one.
fn ask(session: &Session, kind: Kind, change: impl FnOnce(Request) -> Request) -> (Option<Reply>, Reply) {
    match kind {
        Kind::Plain => (None, session.generate(change(canary().max_tokens(REPLY_TOKENS))).unwrap()),
        Kind::Structured => {
            let request = change(canary().max_tokens(64).response_format(grammar()));
            (None, session.generate(request).unwrap())
        }
        Kind::SecondTurn => {
            let mut conversation = session.conversation();
            let first = conversation.generate(canary().max_tokens(REPLY_TOKENS)).unwrap();
            let second = conversation.generate(change(canary().max_tokens(REPLY_TOKENS))).unwrap();
            (Some(first), second)
        }
    }
}

fn know(folder: &Path, recipe: &Recipe, session: &Session, kind: Kind) -> Known {
    let tap = LogitsTap::default();
    let (before, reply) = ask(session, kind, |request| request.tap_logits(&tap));
    let ids = Tokenizer::open(folder, VOCAB).unwrap().encode(&prompt(), true);
    let mut all = ids.clone();
    if let Some(before) = before {
        all.extend(before.tokens());
        all.extend(&ids);
    }
    let tokens = reply.tokens();
    let distinct = tokens[..12].iter().collect::<std::collections::HashSet<_>>().len();
    assert!(distinct > 6 && tokens.len() > 20 && reply.text().len() > 24, "{kind:?}: the reply is no canary");
    let mut needles = learn(builder(folder), &all, tokens).unwrap().text("text: prompt", &prompt());
    // parts may cut a word, which is how far a tokenizer looks at once
    needles =
        WORD_PLACES.into_iter().fold(needles, |needles, word| needles.text("text: word", &prompt()[word]));
    needles = match kind {
        Kind::Structured => needles.text("text: grammar", reply.text()),
        _ => needles.text("reply text", reply.text()),
    };
    let rows = Rows::new(recipe, session.device());
    let last = tokens.len() - 2; // the last one that is computed: its query stays in the scratch
    needles = needles.and(rows.needles(all[9], 9)).and(rows.needles(tokens[last], all.len() + last));
    needles = needles.bytes("sampler keys", &sampler_keys(&tap.values()[..VOCAB]));
    let gate = 12;
    let stop = stop_string(session, kind, &reply, gate);
    let end = (gate + 4..tokens.len()).find(|&at| !tokens[..at].contains(&tokens[at])).map(|at| tokens[at]);
    Known {
        needles,
        prompt: all.iter().map(|id| !id).collect(),
        reply: tokens.iter().map(|id| !id).collect(),
        stop: stop.bytes().map(|byte| !byte).collect(),
        end: end.expect("a token that comes late for the first time"),
        gate,
    }
}

/// The sampler's keys of the likeliest tokens: logits made monotonous and inverted, above the token id.
fn sampler_keys(logits: &[f32]) -> Vec<u8> {
    let rising = |logit: f32| if logit < 0.0 { !logit.to_bits() } else { logit.to_bits() | 1 << 31 };
    let mut keys: Vec<u64> =
        (0..logits.len()).map(|id| u64::from(!rising(logits[id])) << 32 | id as u64).collect();
    keys.sort_unstable();
    keys[..8].iter().flat_map(|key| key.to_le_bytes()).collect()
}

/// ASCII text that ends the reply a few tokens behind the gate, and before its end.
fn stop_string(session: &Session, kind: Kind, reply: &Reply, gate: usize) -> String {
    let text = reply.text();
    let candidates = (0..text.len().saturating_sub(4)).filter_map(|at| text.get(at..at + 4));
    for stop in candidates.filter(|stop| stop.is_ascii()) {
        let (_, stopped) = ask(session, kind, |request| request.stop(stop));
        let tokens = stopped.tokens().len();
        if stopped.finish_reason() == FinishReason::Stop && tokens > gate + 3 && tokens < reply.tokens().len()
        {
            return stop.to_owned();
        }
    }
    panic!("{kind:?}: no text of the reply ends it behind token {gate}");
}
