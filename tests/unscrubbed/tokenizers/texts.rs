//! Texts that tell tokenizers apart.

use crate::common::Random;

const SPACES: &[&str] = &[
    " ", "  ", "     ", "\n", "\n\n", "\r\n", "\r", "\t", "\u{a0}", "\u{3000}", "\u{2003}", "\u{85}",
    "\u{2028}", "\u{200b}", "\u{b}", "\u{c}", "\u{1680}", " \n ", "\n \n", "  \n",
];

/// Contractions, letters that have another case of two characters, digits of several scripts, characters that are
/// composed, decomposed and reordered, emoji that are joined, marks of SentencePiece and GPT-2, controls.
const WORDS: &[&str] = &[
    "the",
    "The",
    "THE",
    "hello",
    "HTTPServer",
    "don't",
    "I'LL",
    "we'Re",
    "it's",
    "'s",
    "'S",
    "'d",
    "'ve",
    "\u{17f}",
    "'\u{17f}",
    "ſt",
    "fn main() {",
    "let x = 0x1F;",
    "->",
    "//",
    "a",
    "I",
    "İ",
    "ß",
    "ﬁ",
    "Ǆ",
    "Ⅷ",
    "½",
    "²",
    "٣",
    "१२३",
    "一二",
    "①",
    "don’t",
    "e\u{301}",
    "\u{1e9b}\u{323}",
    "각",
    "\u{1100}\u{1161}\u{11a8}",
    "👩\u{200d}👧\u{200d}👦",
    "🏳\u{fe0f}\u{200d}🌈",
    "🇩🇪🇫🇷",
    "1️⃣",
    "▁",
    "Ġ",
    "Ċ",
    "<0x0A>",
    "<0xF0>",
    "<s",
    "s>",
    "\0",
    "\u{7f}",
    "\u{feff}",
    "\u{fffd}",
    "\u{10ffff}",
    "\u{e000}",
    "\u{ad}",
    "\u{94d}",
    "\u{e33}",
    "ゞ",
    "ー",
    "x\u{301}\u{323}\u{300}\u{31b}",
    "\u{344}",
    "\u{f73}",
    "\u{2126}",
    "\u{fb1d}",
    "\u{958}",
];

const ENDINGS: &[&str] =
    &["ing", "tion", "er", " the", "ly", "pre", " a", " un", "'", "\"", ",", ". ", "-", "_", "##", "``"];

/// Blocks of code points: twenty scripts, marks, symbols, presentation forms, emoji.
const BLOCKS: [(u32, u32); 24] = [
    (0x20, 0x7e),
    (0xa0, 0x24f),
    (0x250, 0x2ff),
    (0x300, 0x36f),
    (0x370, 0x3ff),
    (0x400, 0x4ff),
    (0x530, 0x58f),
    (0x590, 0x5ff),
    (0x600, 0x6ff),
    (0x900, 0x97f),
    (0x980, 0x9ff),
    (0xb80, 0xbff),
    (0xe00, 0xe7f),
    (0xf00, 0xfff),
    (0x10a0, 0x10ff),
    (0x1100, 0x11ff),
    (0x1e00, 0x1fff),
    (0x2000, 0x2bff),
    (0x3000, 0x30ff),
    (0x4e00, 0x9fff),
    (0xac00, 0xd7a3),
    (0xf900, 0xfdff),
    (0xfe00, 0xffff),
    (0x1_f300, 0x1_faff),
];

/// Of how many texts a test without another wish takes: `AMNESIC_TOKENIZER_TEXTS`, or 20,000.
pub fn count() -> usize {
    std::env::var("AMNESIC_TOKENIZER_TEXTS").map_or(20_000, |count| count.parse().expect("a number of texts"))
}

impl Random {
    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    fn character(&mut self, (first, last): (u32, u32)) -> char {
        char::from_u32(first + self.below((last - first + 1) as usize) as u32).unwrap_or('x')
    }

    /// A text of up to `most` pieces; among them are `own` ones: added tokens and others of the vocabulary.
    pub fn hostile_text(&mut self, most: usize, own: &[String]) -> String {
        let mut text = String::new();
        for _ in 0..=self.below(most) {
            match self.below(16) {
                0 | 1 => (0..=self.below(8)).for_each(|_| text.push(self.character((0x20, 0x7e)))),
                2 => (0..=self.below(7)).for_each(|_| text.push(self.character((0x30, 0x39)))),
                3 | 4 => text.push_str(self.pick(SPACES)),
                5 | 6 => text.push_str(self.pick(WORDS)),
                7 | 8 => {
                    let block = BLOCKS[self.below(BLOCKS.len())];
                    (0..=self.below(8)).for_each(|_| text.push(self.character(block)));
                }
                9..12 if !own.is_empty() => text.push_str(&own[self.below(own.len())]),
                12 => {
                    let last = if self.below(8) == 0 { 0x2_ffff } else { 0x7ff };
                    text.push(self.character((0, last)));
                }
                13 if self.below(12) == 0 => text.push_str(&self.pick(WORDS).repeat(self.below(60))),
                14 => (0..=self.below(3)).for_each(|_| text.push(self.character((0x300, 0x345)))),
                _ => text.push_str(self.pick(ENDINGS)),
            }
        }
        text
    }
}

/// Strings of a tokenizer's own that belong in texts: its added tokens, and some hundreds of others as they read.
pub fn own_strings(tokenizer: &tokenizers::Tokenizer) -> Vec<String> {
    let mut added: Vec<_> =
        tokenizer.get_added_tokens_decoder().into_iter().map(|(_, token)| token.content).collect();
    added.sort();
    let mut tokens: Vec<_> = tokenizer.get_vocab(false).into_keys().collect();
    tokens.sort();
    let step = (tokens.len() / 500).max(1);
    let read = |token: String| token.replace(['Ġ', '▁'], " ").replace("##", "");
    // as many of either kind
    let tokens: Vec<_> = tokens.into_iter().step_by(step).map(read).collect();
    let added = added.iter().cycle().take(if added.is_empty() { 0 } else { tokens.len() / 2 + added.len() });
    added.cloned().chain(tokens.iter().cloned()).collect()
}
