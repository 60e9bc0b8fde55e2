//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), in the form in which the latent itself is the
//! value, and with the part of the key that turns the key, of one head for all.
//!
//! A head's key is `[rope_dim, K * latent]`, its value `V * latent`. So `q * (K * latent)` is `(K^T * q) * latent`, and the sum of
//! `p * V * latent` is V times the sum of `p * latent`: `absorb_k` is applied to queries before, `expand_v` to what attention gives after,
//! and neither keys nor values of heads are ever made. The cache of DeepSeek-V2 holds 1,088 numbers a position and
//! layer (the latent twice, as it is packed for both sides), and not 40,960.

use std::sync::Arc;

use super::arch::LatentShape;
use super::decoder::Loader;
use super::weights::{LatentWeights, NormWeights};
use crate::backend::{Backend, Buf, Linear, Norm, OperandType, Quantize};
use crate::error::Result;
use crate::memory::Layout;
use crate::weights::Tensor;
use crate::weights::adapter::Values;

/// What is added below the root of norms of latents, whatever config.json says: as in transformers.
const EPS: f32 = 1e-6;

/// The weights of a layer.
#[derive(Debug)]
pub struct Latent<W> {
    /// To the latent of queries, and its norm.
    pub q_latent: Option<(Linear<W>, Norm<W>)>,
    /// The norm of the latent of keys and values.
    pub norm: Norm<W>,
    /// MLA weight absorption: each head's query is multiplied with its slice of `kv_b_proj`. (heads * rank, still).
    pub absorb_k: W,
    /// The other slices of `kv_b_proj`: from latents to values. (heads * value, rank).
    pub expand_v: W,
    pub absorb_k_form: OperandType,
    pub expand_v_form: OperandType,
    pub shape: LatentShape,
}

/// Buffers for T tokens.
#[derive(Clone, Copy, Debug)]
pub struct LatentBuffers {
    /// (T, q_rank): the latent of queries, and as an operand.
    pub q_latent: Option<[Buf; 2]>,
    /// (T, heads * (still + turning)): queries of heads.
    pub queries: Buf,
    /// (T, turning): the part of the key that turns.
    pub k_rope: Buf,
    /// (heads * T, still or rank): what is multiplied with either, as an operand.
    pub pieces: Buf,
    /// (T, heads * value), and as an operand.
    pub values: Buf,
    pub out: Buf,
}

impl LatentBuffers {
    /// Plans the buffers; none when the sizes overflow.
    pub fn plan(layout: &mut Layout, tokens: usize, heads: usize, shape: LatentShape) -> Option<Self> {
        let LatentShape { q_rank, rank, nope_dim, rope_dim, value } = shape;
        Some(Self {
            q_latent: match q_rank {
                None => None,
                Some(rank) => {
                    Some([Buf::plan(layout, tokens, rank)?, Buf::plan_operand(layout, tokens, rank)?])
                }
            },
            queries: Buf::plan(layout, tokens, heads.checked_mul(nope_dim + rope_dim)?)?,
            k_rope: Buf::plan(layout, tokens, rope_dim)?,
            pieces: Buf::plan_operand(layout, tokens.checked_mul(heads)?, nope_dim.max(rank))?,
            values: Buf::plan(layout, tokens, heads.checked_mul(value)?)?,
            out: Buf::plan_operand(layout, tokens, heads.checked_mul(value)?)?,
        })
    }

    /// Every buffer, with the rows of it that `tokens` tokens use.
    pub fn used(&self, tokens: usize, heads: usize) -> impl Iterator<Item = (Buf, usize)> {
        let Self { q_latent, queries, k_rope, pieces, values, out } = *self;
        let rows = [queries, k_rope, values, out].into_iter().chain(q_latent.into_iter().flatten());
        rows.map(move |buf| (buf, tokens)).chain([(pieces, tokens * heads)])
    }
}

impl<B: Backend> Loader<'_, B> {
    /// Takes a layer's in. `together`: what those are quantized to that read the same operand.
    ///
    /// # Errors
    /// Returns the errors of [`Backend::upload`].
    pub fn latent(
        &mut self,
        weights: &LatentWeights,
        together: Option<Quantize>,
    ) -> Result<Latent<B::Weight>> {
        let LatentWeights { shape, q_latent, norm, keys, values } = weights;
        let norm_of =
            |this: &mut Self, norm: &NormWeights| -> Result<_> { Ok(Norm { eps: EPS, ..this.norm(norm)? }) };
        let q_latent = match q_latent {
            Some((down, norm)) => Some((self.linear(down, together)?, norm_of(self, norm)?)),
            None => None,
        };
        // both are of one stored matrix
        let quantize = self.together([&(keys.clone(), None)]);
        let absorb_k = self.backend.upload(&folded(weights)?, quantize)?;
        (self.loaded)(keys.bytes());
        let expand_v = self.matrix(values, quantize)?;
        Ok(Latent {
            q_latent,
            norm: norm_of(self, norm)?,
            absorb_k_form: self.backend.operand_type(&[&absorb_k]),
            expand_v_form: self.backend.operand_type(&[&expand_v]),
            absorb_k,
            expand_v,
            shape: *shape,
        })
    }
}

/// The matrix of each head turned round: (heads * still, rank) to (heads * rank, still).
fn folded(weights: &LatentWeights) -> Result<Tensor> {
    let LatentWeights { keys, shape: LatentShape { nope_dim, rank, .. }, .. } = weights;
    let (nope_dim, rank) = (*nope_dim, *rank);
    let values = keys.finite_values()?;
    let of_head = |head: &[f32]| -> Vec<f32> {
        (0..rank).flat_map(|col| (0..nope_dim).map(move |row| head[row * rank + col])).collect()
    };
    let turned: Vec<f32> = values.chunks_exact(nope_dim * rank).flat_map(of_head).collect();
    keys.forget(0..keys.rows());
    let like = weights.folded();
    Ok(Tensor::made(Arc::new(Values(turned)), &like, like.dtype.worked_out()))
}
