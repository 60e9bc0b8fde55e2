//! What a reply may write before it follows its grammar: reasoning, which is free of it.

use std::sync::Arc;

use crate::chat::ReasoningEnd;

/// The tokens that end reasoning.
#[derive(Debug)]
pub enum Ending {
    /// One token. Where the prompt has not opened reasoning, the reply may begin with one of `opens`.
    Mark { opens: Vec<u32>, close: u32 },
    /// A message on a channel of this name, whose text begins behind `message`.
    Channel { channel: u32, name: Vec<u32>, message: u32 },
}

/// The name of the channel with the answer.
const ANSWER: &str = "final";

impl Ending {
    /// For a vocabulary in which `ids` gives the tokens of a text. None where a mark is not one token: then its end could
    /// be the beginning of the value.
    pub fn of(end: ReasoningEnd, ids: impl Fn(&str) -> Vec<u32>) -> Option<Self> {
        let one = |mark: &str| match ids(mark)[..] {
            [id] => Some(id),
            _ => None,
        };
        Some(match end {
            ReasoningEnd::Mark { opens, close } => {
                Self::Mark { opens: opens.iter().filter_map(|open| one(open)).collect(), close: one(close)? }
            }
            ReasoningEnd::Channel => Self::Channel {
                channel: one("<|channel|>")?,
                name: ids(ANSWER),
                message: one("<|message|>")?,
            },
        })
    }
}

/// Where a reply stands in its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its first token decides whether there is any.
    MayBegin,
    Inside,
    Over,
}

/// A reply's reasoning, as far as its tokens tell.
#[derive(Clone, Debug)]
pub struct Thinking {
    ending: Arc<Ending>,
    phase: Phase,
    /// How many tokens of the channel's name have followed its mark.
    named: Option<usize>,
}

impl Thinking {
    /// At the start of a reply, which begins within reasoning or not. None where there is none to wait for.
    pub fn new(ending: Ending, inside: bool) -> Option<Self> {
        let phase = match &ending {
            Ending::Channel { .. } => Phase::Inside,
            Ending::Mark { .. } if inside => Phase::Inside,
            Ending::Mark { opens, .. } if opens.is_empty() => return None,
            Ending::Mark { .. } => Phase::MayBegin,
        };
        Some(Self { ending: Arc::new(ending), phase, named: None })
    }

    /// Whether the reply is within reasoning: every token may follow.
    pub fn is_inside(&self) -> bool {
        self.phase == Phase::Inside
    }

    /// Whether all that follows is the value.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Tokens with which reasoning may begin, here.
    pub fn opens(&self) -> &[u32] {
        match (&*self.ending, self.phase) {
            (Ending::Mark { opens, .. }, Phase::MayBegin) => opens,
            _ => &[],
        }
    }

    /// Takes a token in; false where it is the value's.
    pub fn take(&mut self, token: u32) -> bool {
        match (&*self.ending, self.phase) {
            (_, Phase::Over) => return false,
            (Ending::Mark { opens, .. }, Phase::MayBegin) => {
                let begins = opens.contains(&token);
                self.phase = if begins { Phase::Inside } else { Phase::Over };
                return begins;
            }
            (Ending::Mark { close, .. }, _) if token == *close => self.phase = Phase::Over,
            (Ending::Mark { .. }, _) => {}
            (Ending::Channel { channel, name, message }, _) => {
                self.named = match self.named {
                    _ if token == *channel => Some(0),
                    Some(count) if count < name.len() => (token == name[count]).then_some(count + 1),
                    // the header may say more, such as that the text is JSON
                    Some(_) if token == *message => {
                        self.phase = Phase::Over;
                        None
                    }
                    Some(count) => Some(count),
                    None => None,
                };
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<u32> {
        match text {
            "<think>" => vec![1],
            "</think>" => vec![2],
            "<|channel|>" => vec![3],
            "<|message|>" => vec![4],
            "final" => vec![5, 6],
            _ => vec![8, 9],
        }
    }

    const MARK: ReasoningEnd = ReasoningEnd::Mark { opens: &["<think>"], close: "</think>" };

    #[test]
    fn a_mark_ends_reasoning() {
        let mut opened = Thinking::new(Ending::of(MARK, ids).unwrap(), true).unwrap();
        assert!(opened.take(7) && opened.take(1) && opened.is_inside());
        assert!(opened.take(2) && opened.is_over() && !opened.take(7));
        let mut begun = Thinking::new(Ending::of(MARK, ids).unwrap(), false).unwrap();
        assert_eq!((begun.opens(), begun.is_inside()), (&[1][..], false));
        assert!(begun.take(1) && begun.is_inside() && begun.opens().is_empty());
        let mut without = Thinking::new(Ending::of(MARK, ids).unwrap(), false).unwrap();
        assert!(!without.take(7) && without.is_over());
        let long = ReasoningEnd::Mark { opens: &[], close: "Here is my response:" };
        assert!(Ending::of(long, ids).is_none());
    }

    #[test]
    fn a_channel_ends_reasoning() {
        let mut thinking = Thinking::new(Ending::of(ReasoningEnd::Channel, ids).unwrap(), false).unwrap();
        // analysis, a word that the channel's name begins with, and the name with a content type behind it
        for token in [3, 9, 4, 5, 6, 4, 3, 5, 9, 4, 3, 5, 6, 8] {
            assert!(thinking.take(token) && thinking.is_inside(), "{token}");
        }
        assert!(thinking.take(4) && thinking.is_over());
    }
}
