//! What the tensors of a checkpoint are grouped into.

use super::Site;
use crate::backend::{Activation, NormKind};
use crate::model::arch::LatentShape;
use crate::weights::Tensor;

/// A matrix and its bias.
pub type LinearWeights = (Tensor, Option<Tensor>);

/// What a norm has.
#[derive(Debug)]
pub struct NormWeights {
    pub kind: NormKind,
    /// One, or one for each head; none where there are no weights.
    pub weight: Vec<Tensor>,
    pub bias: Option<Tensor>,
}

impl NormWeights {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.iter().chain(&self.bias)
    }
}

/// What is added to embeddings.
#[derive(Debug, Default)]
pub struct PositionTypeWeights {
    pub positions: Option<Tensor>,
    pub types: Option<Tensor>,
    pub norm: Option<NormWeights>,
}

/// A step behind the layers.
#[derive(Debug)]
pub enum StepWeights {
    Dense(LinearWeights, Option<Activation>),
    Norm(NormWeights),
}

impl StepWeights {
    /// Its tensors.
    pub fn iter(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        match self {
            Self::Dense(linear, _) => Box::new(linears([linear])),
            Self::Norm(norm) => Box::new(norm.iter()),
        }
    }
}

/// The tensors of a layer.
#[derive(Debug)]
pub struct LayerWeights {
    pub attention_norm: Option<NormWeights>,
    pub attention_post: Option<NormWeights>,
    pub mlp_norm: Option<NormWeights>,
    pub mlp_post: Option<NormWeights>,
    pub head_norms: Option<[NormWeights; 2]>,
    /// Where keys and values are those of a latent, `k` gives the part of the key that turns, `v` the latent; and `q` may
    /// take queries' own.
    pub latent: Option<LatentWeights>,
    pub q: LinearWeights,
    pub k: LinearWeights,
    pub v: LinearWeights,
    pub o: LinearWeights,
    /// One for each head.
    pub sinks: Option<Tensor>,
    pub feed: FeedWeights,
}

impl LayerWeights {
    /// The linear layer that an adapter can change; none of experts.
    pub fn linear(&self, site: Site) -> Option<&LinearWeights> {
        match (site, &self.feed) {
            (Site::Q, _) => Some(&self.q),
            (Site::K, _) => Some(&self.k),
            (Site::V, _) => Some(&self.v),
            (Site::O, _) => Some(&self.o),
            (Site::Gate, FeedWeights::One(mlp)) => mlp.gate.as_ref(),
            (Site::Up, FeedWeights::One(mlp)) => Some(&mlp.up),
            (Site::Down, FeedWeights::One(mlp)) => Some(&mlp.down),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let Self { attention_norm, attention_post, mlp_norm, mlp_post, head_norms, .. } = self;
        let norms = [attention_norm, attention_post, mlp_norm, mlp_post].into_iter().flatten();
        let norms = norms.chain(head_norms.iter().flatten()).flat_map(NormWeights::iter);
        let latent = self.latent.iter().flat_map(LatentWeights::iter);
        let linears = linears([&self.q, &self.k, &self.v, &self.o]);
        norms.chain(latent).chain(linears).chain(&self.sinks).chain(self.feed.iter())
    }
}

/// The tensors of multi-head latent attention.
#[derive(Debug)]
pub struct LatentWeights {
    pub shape: LatentShape,
    /// To the latent of queries, and its norm.
    pub q_latent: Option<(LinearWeights, NormWeights)>,
    /// The norm of the latent of keys and values.
    pub norm: NormWeights,
    /// (heads * still, rank): from the latent to keys.
    pub keys: Tensor,
    /// (heads * value, rank): from the latent to values.
    pub values: Tensor,
}

impl LatentWeights {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let Self { q_latent, norm, keys, values, .. } = self;
        let q_latent = q_latent.iter().flat_map(|(linear, norm)| linears([linear]).chain(norm.iter()));
        q_latent.chain(norm.iter()).chain([keys, values])
    }

    /// What the matrices to keys become, but for the values: (heads * rank, still).
    pub fn folded(&self) -> Tensor {
        let mut folded = self.keys.clone();
        let heads = folded.shape[0] / self.shape.nope_dim;
        folded.shape = vec![heads * self.shape.rank, self.shape.nope_dim];
        folded.dtype = folded.dtype.dequantized();
        folded
    }
}

/// What is behind the attention.
#[derive(Debug)]
pub enum FeedWeights {
    One(Box<MlpWeights>),
    Moe(Box<MixtureWeights>),
}

impl FeedWeights {
    /// What decides where a token goes.
    pub(super) fn routers(&self) -> impl Iterator<Item = &Tensor> {
        let mixture = match self {
            Self::One(_) => None,
            Self::Moe(mixture) => Some(mixture),
        };
        let both =
            mixture.into_iter().flat_map(|mixture| [&mixture.router].into_iter().chain(&mixture.shared_gate));
        both.map(|(weight, _)| weight)
    }

    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        match self {
            Self::One(mlp) => Box::new(mlp.iter()),
            Self::Moe(mixture) => {
                let MixtureWeights { router, correction, experts, shared, shared_gate } = mixture.as_ref();
                let mlps = experts.iter().chain(shared).flat_map(MlpWeights::iter);
                Box::new(linears([router].into_iter().chain(shared_gate)).chain(correction).chain(mlps))
            }
        }
    }
}

/// The tensors of an MLP.
#[derive(Debug)]
pub struct MlpWeights {
    pub gate: Option<LinearWeights>,
    pub up: LinearWeights,
    pub down: LinearWeights,
}

impl MlpWeights {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        linears([&self.up, &self.down].into_iter().chain(&self.gate))
    }
}

/// The tensors of a mixture of experts.
#[derive(Debug)]
pub struct MixtureWeights {
    pub router: LinearWeights,
    /// Added to scores where experts are chosen.
    pub correction: Option<Tensor>,
    pub experts: Vec<MlpWeights>,
    pub shared: Option<MlpWeights>,
    /// (1, hidden): the factor on what the shared expert gives, before the sigmoid.
    pub shared_gate: Option<LinearWeights>,
}

fn linears<'a>(all: impl IntoIterator<Item = &'a LinearWeights>) -> impl Iterator<Item = &'a Tensor> {
    all.into_iter().flat_map(|(weight, bias)| std::iter::once(weight).chain(bias))
}
