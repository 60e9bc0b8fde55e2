//! Layers of experts (mixture of experts, Shazeer et al. 2017, arXiv 1701.06538), a router before them, and an expert
//! that all tokens share where there is one: their weights, their buffers, and their part of a step.

use super::plan::Buffers;
use super::{Decoder, FeedForward, Forms, Layer, Loader, Mlp, for_tables, to};
use crate::backend::{Backend, Buf, Expert, Linear, OperandType, Projection, Routed};
use crate::error::Result;
use crate::memory::Layout;
use crate::model::arch;
use crate::model::weights::MixtureWeights;

/// The weights of a layer.
#[derive(Debug)]
pub(super) struct Moe<W> {
    router: Linear<W>,
    correction: Option<W>,
    experts: Vec<Expert<W>>,
    shared: Option<Mlp<W>>,
    shared_gate: Option<Linear<W>>,
    /// What reads the operand that decides, and that of the shared expert's last product.
    pub(super) router_form: OperandType,
    shared_form: OperandType,
}

/// The buffers of experts: see [`super`].
#[derive(Clone, Copy, Debug)]
pub(super) struct MixtureBuffers {
    /// The operand of the router.
    pub(super) deciding: Buf,
    pub(super) routed: Routed,
    /// The expert that all tokens share.
    pub(super) shared: Option<Buf>,
    pub(super) gate: Buf,
    pub(super) gated: Buf,
}

impl MixtureBuffers {
    /// Plans the buffers; none when the sizes overflow.
    pub(super) fn plan(layout: &mut Layout, tokens: usize, hidden: usize, shape: &arch::Moe) -> Option<Self> {
        Some(Self {
            deciding: Buf::plan_operand(layout, tokens, hidden)?,
            shared: match shape.shared {
                Some(width) => Some(Buf::plan_operand(layout, tokens, width)?),
                None => None,
            },
            routed: Routed::plan(
                layout,
                tokens,
                shape.experts,
                shape.routing.per_token,
                hidden,
                shape.inner,
            )?,
            gate: Buf::plan(layout, tokens, 1)?,
            gated: Buf::plan(layout, tokens, hidden)?,
        })
    }
}

impl<B: Backend> Loader<'_, B> {
    pub(super) fn mixture(
        &mut self,
        weights: &MixtureWeights,
    ) -> Result<(FeedForward<B::Weight>, [OperandType; 2])> {
        let tables = for_tables(self.quantize);
        let router = self.linear(&weights.router, tables)?;
        let correction = match &weights.correction {
            Some(tensor) => {
                (self.loaded)(tensor.bytes());
                let values = tensor.finite_values()?;
                let cols = values.len();
                Some(self.backend.upload_table(values, cols)?)
            }
            None => None,
        };
        let mlps = || weights.experts.iter().chain(&weights.shared);
        let first = self.together(mlps().flat_map(|mlp| [&mlp.up].into_iter().chain(&mlp.gate)));
        let last = self.together(weights.experts.iter().map(|mlp| &mlp.down));
        let experts = weights.experts.iter().map(|expert| {
            let Mlp { gate, up, down } = self.mlp(expert, first, last)?;
            Ok(Expert { gate: gate.expect("experts are gated"), up, down })
        });
        let experts = experts.collect::<Result<Vec<_>>>()?;
        let shared = match &weights.shared {
            Some(mlp) => Some(self.mlp(mlp, first, self.together([&mlp.down]))?),
            None => None,
        };
        let shared_gate = weights.shared_gate.as_ref().map(|gate| self.linear(gate, tables)).transpose()?;
        let backend = &*self.backend;
        let mut readers: Vec<_> =
            experts.iter().flat_map(|expert| [&expert.gate.weight, &expert.up.weight]).collect();
        readers.extend(
            shared.iter().flat_map(|mlp| [&mlp.up].into_iter().chain(&mlp.gate)).map(|up| &up.weight),
        );
        let downs: Vec<_> = experts.iter().map(|expert| &expert.down.weight).collect();
        let forms = [backend.form(&readers), backend.form(&downs)];
        let deciding: Vec<_> =
            [&router].into_iter().chain(&shared_gate).map(|linear| &linear.weight).collect();
        let router_form = backend.form(&deciding);
        let shared_form = shared.as_ref().map_or(OperandType::F32, |mlp| backend.form(&[&mlp.down.weight]));
        let mixture = Moe { router, correction, experts, shared, shared_gate, router_form, shared_form };
        Ok((FeedForward::Moe(mixture), forms))
    }
}

impl<B: Backend> Decoder<B> {
    /// Adds what the experts give to the residual stream. Their operand is written.
    pub(super) fn mixture(
        &self,
        backend: &mut B,
        rows: usize,
        layer: &Layer<B::Weight>,
        mixture: &Moe<B::Weight>,
    ) {
        let (Buffers { x, xb, branch, .. }, arch) = (self.buffers, &self.arch);
        let (post, Forms { feed, down, .. }) = (layer.mlp_post.as_ref(), layer.forms);
        let (buffers, shape) =
            self.buffers.mixture.as_ref().zip(arch.mixture.as_ref()).expect("planned where layers have them");
        let Routed { x: grouped, inner, .. } = buffers.routed;
        let routed = &Routed { x: grouped.of(feed), inner: inner.of(down), ..buffers.routed };
        let (xb, deciding) = (xb.of(feed), buffers.deciding.of(mixture.router_form));
        backend.linear(rows, deciding, &[to(&mixture.router, routed.scores)]);
        backend.route(rows, &shape.routing, mixture.correction.as_ref(), routed);
        backend.experts(rows, xb, arch.activation, &mixture.experts, routed);
        // what is normed is gathered first
        let branch = branch.filter(|_| post.is_some());
        let (out, scale) = branch.map_or((x, arch.residual_scale), |branch| (branch, 1.0));
        backend.moe_combine(rows, routed, branch.is_none().then_some(scale), out);
        if let (Some(shared), Some(inner)) = (&mixture.shared, buffers.shared) {
            let inner = inner.of(mixture.shared_form);
            self.inner(backend, rows, xb, shared, inner);
            match &mixture.shared_gate {
                None => {
                    backend.linear(rows, inner, &[Projection { add: Some(scale), ..to(&shared.down, out) }])
                }
                Some(gate) => {
                    backend.linear(rows, deciding, &[to(gate, buffers.gate)]);
                    backend.linear(rows, inner, &[to(&shared.down, buffers.gated)]);
                    backend.add_gated(rows, buffers.gated, buffers.gate, scale, out);
                }
            }
        }
        if let (Some(norm), Some(branch)) = (post, branch) {
            backend.add_norm(rows, branch, norm, arch.residual_scale, x);
        }
    }
}
