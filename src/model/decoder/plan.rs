//! What a decoder needs besides its weights: how large a step may be, the buffers of a step, and the KV cache, all laid
//! out before the first request.

use super::lora::AdapterBuffers;
use super::moe::MixtureBuffers;
use crate::backend::{BLOCK, Buf, Kv, KvType};
use crate::error::{Error, Result};
use crate::memory::Layout;
use crate::model::arch::{Arch, NormPlacement};
use crate::model::latent::LatentBuffers;
use crate::model::weights::AdapterNeeds;

/// How large a step may be, and how much a session can hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens in one step.
    pub step_tokens: usize,
    /// Sequences that run at once.
    pub sequences: usize,
    /// Rows of logits in one step: at least one for each sequence, and no more than tokens.
    pub outputs: usize,
    /// KV blocks in all.
    pub blocks: usize,
    /// Positions of one sequence.
    pub context: usize,
}

/// The planned memory of a decoder.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(in crate::model) layout: Layout,
    pub(super) buffers: Buffers,
    pub(super) kv: Kv,
    /// Bytes of the tables of angles.
    tables: usize,
    /// Positions of one request.
    pub(super) context: usize,
}

impl Plan {
    /// Plans buffers and cache for `limits`, and for what adapters need.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn new(arch: &Arch, cache: KvType, limits: Limits, adapters: AdapterNeeds) -> Result<Self> {
        Self::checked(arch, cache, limits, arch.layers, adapters).ok_or_else(too_large)
    }

    /// Plans the buffers where whole texts are computed in one step, and no logits are wanted.
    ///
    /// # Errors
    /// The sizes overflow.
    pub fn of_one_layer(arch: &Arch, cache: KvType, limits: Limits) -> Result<Self> {
        Self::checked(arch, cache, Limits { outputs: 0, ..limits }, 1, AdapterNeeds::default())
            .ok_or_else(too_large)
    }

    fn checked(
        arch: &Arch,
        cache: KvType,
        limits: Limits,
        layers: usize,
        adapters: AdapterNeeds,
    ) -> Option<Self> {
        let mut layout = Layout::default();
        let (tokens, outputs) = (limits.step_tokens, limits.outputs);
        let buffers = Buffers {
            x: Buf::plan(&mut layout, tokens, arch.hidden)?,
            xb: Buf::plan_operand(&mut layout, tokens, arch.hidden)?,
            q: Buf::plan(&mut layout, tokens, arch.q_width())?,
            att: Buf::plan_operand(&mut layout, tokens, arch.mixed_width())?,
            k: Buf::plan(&mut layout, tokens, arch.k_width())?,
            v: Buf::plan(&mut layout, tokens, arch.v_width())?,
            latent: match arch.latent {
                None => None,
                Some(shape) => Some(LatentBuffers::plan(&mut layout, tokens, arch.heads, shape)?),
            },
            inner: Buf::plan_operand(&mut layout, tokens, arch.intermediate)?,
            branch: match arch.place {
                NormPlacement::Post | NormPlacement::Both => {
                    Some(Buf::plan(&mut layout, tokens, arch.hidden)?)
                }
                _ => None,
            },
            mixture: match &arch.mixture {
                None => None,
                Some(shape) => Some(MixtureBuffers::plan(&mut layout, tokens, arch.hidden, shape)?),
            },
            adapters: match adapters.rank {
                0 => None,
                _ => Some(AdapterBuffers::plan(&mut layout, tokens, arch, adapters)?),
            },
            last: Buf::plan(&mut layout, outputs, arch.hidden)?,
            logits: Buf::plan(&mut layout, outputs, arch.vocab)?,
        };
        let (kv_heads, head_dim, value_dim) = (arch.kv_heads, arch.head_dim, arch.value_dim);
        let block_bytes = Kv::block_bytes(cache, layers, kv_heads, [head_dim, value_dim])?;
        let region = layout.region(block_bytes.checked_mul(limits.blocks)?)?;
        let kv = Kv { region, cache, layers, kv_heads, head_dim, value_dim };
        let angles = limits.context.checked_mul(arch.ropes.iter().map(|rope| rope.dims).sum())?;
        let tables = angles.checked_mul(size_of::<f32>())?;
        layout.bytes().checked_add(tables)?;
        Some(Self { layout, buffers, kv, tables, context: limits.context })
    }

    /// Bytes of the KV cache.
    pub fn kv_bytes(&self) -> u64 {
        self.kv.region.bytes() as u64
    }

    /// Bytes in all, with the tables of rope angles: those are on the heap, since they hold no content.
    pub fn bytes(&self) -> u64 {
        (self.layout.bytes() + self.tables) as u64
    }
}

/// The buffers of a step: see [`super`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    pub(super) x: Buf,
    pub(super) xb: Buf,
    pub(super) q: Buf,
    pub(super) att: Buf,
    pub(super) k: Buf,
    pub(super) v: Buf,
    pub(super) latent: Option<LatentBuffers>,
    pub(super) inner: Buf,
    pub(super) branch: Option<Buf>,
    pub(super) mixture: Option<MixtureBuffers>,
    pub(super) adapters: Option<AdapterBuffers>,
    pub(super) last: Buf,
    pub(super) logits: Buf,
}

impl Buffers {
    /// The buffers that a step of `tokens` rows, of which `outputs` have logits, writes to, each with its rows.
    pub(super) fn used(
        &self,
        tokens: usize,
        outputs: usize,
        heads: usize,
    ) -> impl Iterator<Item = (Buf, usize)> {
        let Buffers { x, xb, q, att, k, v, latent, inner, branch, mixture, adapters, last, logits } = self;
        let adapters = adapters.iter().flat_map(|buffers| {
            let apart = buffers.feed.into_iter().flatten().chain(buffers.scaled);
            [buffers.low, buffers.low_operand].into_iter().chain(apart)
        });
        let rows = [*x, *xb, *q, *att, *k, *v, *inner].into_iter().chain(*branch).chain(adapters);
        let shared = mixture.iter().flat_map(|mixture| {
            [mixture.deciding, mixture.gate, mixture.gated].into_iter().chain(mixture.shared)
        });
        let routed = mixture.iter().flat_map(move |mixture| mixture.routed.used(tokens));
        let latent = latent.iter().flat_map(move |latent| latent.used(tokens, heads));
        let rows = rows.chain(shared).map(move |buf| (buf, tokens)).chain(routed).chain(latent);
        rows.chain([(*last, outputs), (*logits, outputs)])
    }
}

/// KV blocks that `tokens` positions take.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK)
}

pub(in crate::model) fn too_large() -> Error {
    Error::Memory {
        needed: u64::MAX,
        what: "activations and KV cache",
        limit: "that does not fit the address space".into(),
    }
}
