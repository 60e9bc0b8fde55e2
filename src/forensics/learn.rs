//! What a model makes of a canary, computed again without a session.

use super::needles::{Cache, Element, Needles, Tolerance};
use crate::backend::cpu::Reference;
use crate::backend::{Batch, Fence, Mask, Side, Span};
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::memory::thread::{self, Depth};
use crate::memory::{BufferLimits, Secret};
use crate::model::decoder::{Decoder, blocks_for};

/// Positions of the prompt, and of the reply, whose rows are looked for.
const POSITIONS: usize = 8;
/// Rows of logits that are looked for, and values of each.
const LOGITS: usize = 64;
/// Every path rounds in its own way, and roundings add up from layer to layer.
const RECOMPUTED: Tolerance = Tolerance::Share(0.03);

/// Needles for what the session that `builder` opens makes of `prompt` and `reply`: their ids, and from the weights
/// alone, through the slow reference backend, rows of
///
/// - embeddings, as `f32`: they are the weights' own values, and other forms of them are no secret;
/// - keys and values of every layer and one head of it, each in turn, at up to eight positions of the prompt and of
///   the reply: as `f32`, `f16` and `bf16`, and packed as in the session's cache (the builder's type of it);
/// - logits from the prompt's last position on, up to 64 values of up to 64 rows, as `f32`.
///
/// Rows of the first position are left out where there are others, since prompts have it in common. In the first layer
/// values depend on their token alone, and keys on token and position: what another request with the same tokens holds
/// is found, too.
///
/// Text is not known here: add it by [`Needles::text`]. All that is computed is overwritten before this returns.
///
/// # Errors
/// Returns the errors of [`Builder::open`], or refuses ids outside the vocabulary, or a prompt or a reply that says too little:
/// see [`Needles::ids`].
pub fn learn(builder: Builder, prompt: &[u32], reply: &[u32]) -> Result<Needles> {
    std::thread::scope(|scope| {
        let learn = || thread::confined(Depth::Kernels, || from_weights(builder, prompt, reply));
        let thread = thread::builder("amnesic-learn", Depth::Kernels);
        let learned = thread.spawn_scoped(scope, learn).map_err(Error::Thread)?;
        learned.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn from_weights(builder: Builder, prompt: &[u32], reply: &[u32]) -> Result<Needles> {
    let mut needles = Needles::new();
    for (field, ids) in [("prompt", prompt), ("reply", reply)] {
        if !needles.add_ids(&format!("{field} ids"), ids) {
            return Err(Error::request(field, "six ids in a row, four of them different"));
        }
    }
    let tokens = prompt.len() + reply.len();
    let builder = builder.max_sequences(tokens).step_tokens(tokens).kv_tokens(tokens);
    let parts = builder.parts()?;
    let (layers, heads, vocab) = (parts.arch.layers, parts.arch.kv_heads, parts.arch.vocab);
    if prompt.iter().chain(reply).any(|&id| id as usize >= vocab) {
        return Err(Error::request("prompt", format!("token ids below {vocab}")));
    }
    let mut backend = Reference::default();
    let plan = parts.plan::<Reference>(BufferLimits::default())?;
    let decoder = Decoder::new(parts.arch, &parts.weights, plan, builder.quantize, &mut backend, |_| ())?;
    let fence = forward(&decoder, &mut backend, prompt, reply);

    let (mut row, cache) = (Secret::<[f32]>::default(), Cache::of(backend.kv().cache));
    for (what, range) in [("prompt", 0..prompt.len()), ("reply", prompt.len()..tokens)] {
        for position in spread(range.start.max(1)..range.end, POSITIONS) {
            let id = prompt.iter().chain(reply).nth(position).expect("a position of the canary");
            let embedding = row.refill(decoder.embedding().row(*id as usize));
            needles.add_element(
                &format!("embedding of the {what}"),
                embedding,
                Tolerance::Ulps(1),
                Element::F32,
            );
            for layer in 0..layers {
                let head = (layer + position) % heads;
                let slot = position as u32; // blocks in order
                let keys = row.refill(backend.cached_row(slot, layer, Side::K, head));
                needles.add_keys(&format!("keys of the {what}"), keys, cache, RECOMPUTED);
                let values = row.refill(backend.cached_row(slot, layer, Side::V, head));
                needles.add_values(&format!("values of the {what}"), values, cache, RECOMPUTED);
            }
        }
    }
    for position in spread(prompt.len() - 1..tokens, LOGITS) {
        let logits = decoder.logits(&mut backend, &fence, position);
        let name = format!("logits at {position}");
        needles.add_element(&name, &logits[..vocab.min(LOGITS)], RECOMPUTED, Element::F32);
    }
    Ok(needles)
}

/// All positions at once.
fn forward(decoder: &Decoder<Reference>, backend: &mut Reference, prompt: &[u32], reply: &[u32]) -> Fence {
    let mut ids = Secret::<[u32]>::with_capacity(prompt.len() + reply.len());
    ids.extend(prompt);
    ids.extend(reply);
    let positions: Vec<u32> = (0..ids.expose().len() as u32).collect();
    let blocks: Vec<u32> = (0..blocks_for(positions.len()) as u32).collect();
    let spans =
        [Span { row: 0, rows: positions.len(), position: 0, table: 0, adapter: None, mask: Mask::Causal }];
    let batch = Batch {
        ids: ids.expose(),
        positions: &positions,
        slots: &positions, // blocks in order: position i has slot i
        spans: &spans,
        blocks: &blocks,
        outputs: &positions,
        position_types: &[],
    };
    decoder.forward(backend, &batch)
}

/// Some of `range`, the last included.
fn spread(range: std::ops::Range<usize>, most: usize) -> impl Iterator<Item = usize> {
    let taken = range.len().min(most);
    (0..taken).map(move |index| range.end - 1 - index * range.len() / taken)
}
