//! The arguments of mixtures of experts: how tokens choose, and the buffers of those who were chosen.

use super::buffer::Buf;
use super::ops::Linear;
use crate::memory::Layout;

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a token.
    pub per_token: usize,
    /// How logits become weights.
    pub scoring: Scoring,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalized: bool,
    /// Choose from the best groups only.
    pub groups: Option<Groups>,
    /// Factor on the weights.
    pub scale: f32,
}

/// How a router's logits become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scoring {
    /// Their softmax.
    Softmax,
    /// The softmax of the chosen ones.
    Chosen,
    /// Their sigmoid.
    Sigmoid,
    /// For each choice in turn the softmax of those near the best (Liu et al. 2024, arXiv 2409.12136, at inference).
    Mixer {
        /// Those at most twice this below the best, as a part of their magnitude, are near.
        jitter: f32,
    },
}

/// Groups of experts, of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups.
    pub count: usize,
    /// Groups that are chosen from.
    pub chosen: usize,
    /// A group's score is the sum of so many of its best experts'.
    pub best: usize,
}

impl Groups {
    /// So many groups at most.
    pub const MOST: usize = 64;
}

/// The buffers of a mixture of E experts, of which each of T tokens goes to K.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    /// The router's logits: (T, E).
    pub scores: Buf,
    /// The chosen ones' numbers, best first, as u32: (T, K).
    pub experts: Buf,
    /// Their weights: (T, K).
    pub weights: Buf,
    /// Their rows in the buffers below, as u32: (T, K).
    pub places: Buf,
    /// Where the rows of each expert start in the buffers below, and where they end, as u32: (1, E + 1).
    pub starts: Buf,
    /// The tokens, in the experts' order, as an operand: (T * K, hidden).
    pub x: Buf,
    /// Inside the experts, as an operand: (T * K, inner).
    pub inner: Buf,
    /// What they give: (T * K, hidden).
    pub out: Buf,
}

impl Routed {
    /// Plans the buffers; none when the sizes overflow.
    pub fn plan(
        layout: &mut Layout,
        tokens: usize,
        experts: usize,
        per_token: usize,
        hidden: usize,
        inner: usize,
    ) -> Option<Self> {
        let pairs = tokens.checked_mul(per_token)?;
        Some(Self {
            scores: Buf::plan(layout, tokens, experts)?,
            experts: Buf::plan(layout, tokens, per_token)?,
            weights: Buf::plan(layout, tokens, per_token)?,
            places: Buf::plan(layout, tokens, per_token)?,
            starts: Buf::plan(layout, 1, experts + 1)?,
            x: Buf::plan_operand(layout, pairs, hidden)?,
            inner: Buf::plan_operand(layout, pairs, inner)?,
            out: Buf::plan(layout, pairs, hidden)?,
        })
    }

    /// Every buffer, with the rows of it that `tokens` tokens use.
    pub fn used(&self, tokens: usize) -> [(Buf, usize); 8] {
        let pairs = tokens * self.experts.cols;
        let Self { scores, experts, weights, places, starts, x, inner, out } = *self;
        let of_tokens = [scores, experts, weights, places].map(|buf| (buf, tokens));
        let [a, b, c, d] = of_tokens;
        [a, b, c, d, (starts, 1), (x, pairs), (inner, pairs), (out, pairs)]
    }
}

/// A gated MLP, one of several.
#[derive(Debug)]
pub struct Expert<W> {
    /// (inner, hidden).
    pub gate: Linear<W>,
    /// (inner, hidden).
    pub up: Linear<W>,
    /// (hidden, inner).
    pub down: Linear<W>,
}
