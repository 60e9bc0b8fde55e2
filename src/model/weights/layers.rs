//! The tensors of a layer: attention, norms, an MLP or experts.

use super::find::Finder;
use super::{
    FeedWeights, LatentWeights, LayerWeights, LinearWeights, MixtureWeights, MlpWeights, NormWeights,
};
use crate::backend::NormKind;
use crate::model::arch::{HeadNormShape, LatentShape, LayerShape, Moe, NormPlacement};
use crate::model::families::{Experts, Inner, Qkv, Shared};
use crate::weights::Tensor;

impl Finder<'_> {
    pub(super) fn layer(&self, shape: &LayerShape, norm: bool) -> LayerWeights {
        let (arch, names) = (self.arch, &self.arch.family.names);
        let attention_norm = if norm { self.norm_if(names.attention_norm) } else { None };
        let ([q, k, v], latent) = self.qkv();
        LayerWeights {
            latent,
            attention_norm,
            attention_post: self.norm_if(names.attention_post),
            head_norms: self.head_norms(),
            q,
            k,
            v,
            o: self.linear(names.o, arch.hidden, arch.o_width(), arch.o_bias),
            sinks: (!names.sinks.is_empty())
                .then(|| self.tensor(&format!("{}{}", self.layer, names.sinks), &[arch.heads])),
            mlp_norm: match arch.place {
                NormPlacement::Parallel => None,
                _ => self.norm_if(names.mlp_norm),
            },
            mlp_post: self.norm_if(names.mlp_post),
            feed: match &arch.mixture {
                Some(mixture) if shape.mixture => FeedWeights::Moe(Box::new(self.mixture(mixture))),
                _ => {
                    let mlp = self.mlp(
                        "",
                        names.inner,
                        names.down,
                        arch.intermediate,
                        [arch.up_bias, arch.mlp_bias],
                    );
                    FeedWeights::One(Box::new(mlp))
                }
            },
        }
    }

    fn qkv(&self) -> ([LinearWeights; 3], Option<LatentWeights>) {
        let (hidden, bias) = (self.arch.hidden, self.arch.qkv_bias);
        let (q, kv) = (self.arch.q_width(), self.arch.k_width());
        let linears = match self.arch.family.names.qkv {
            Qkv::Apart([a, b, c]) => [
                self.linear(a, q, hidden, bias),
                self.linear(b, kv, hidden, bias),
                self.linear(c, kv, hidden, bias),
            ],
            Qkv::Joined(name) => {
                let all = self.linear(name, q + 2 * kv, hidden, bias);
                [(0, q), (q, kv), (q + kv, kv)].map(|(first, rows)| part(&all, first, rows, rows, rows))
            }
            Qkv::ByHead(name) => {
                let all = self.linear(name, q + 2 * kv, hidden, bias);
                let (queries, dim) = (q / self.arch.kv_heads, self.arch.head_dim);
                let stride = queries + 2 * dim;
                [
                    part(&all, 0, queries, stride, q),
                    part(&all, queries, dim, stride, kv),
                    part(&all, queries + dim, dim, stride, kv),
                ]
            }
            Qkv::Latent { q, q_latent, kv_latent } => return self.latent(q, q_latent, kv_latent),
        };
        (linears, None)
    }

    fn latent(
        &self,
        q: &str,
        [q_down, q_norm, q_up]: [&str; 3],
        [down, norm, up]: [&str; 3],
    ) -> ([LinearWeights; 3], Option<LatentWeights>) {
        let (arch, hidden) = (self.arch, self.arch.hidden);
        let shape = arch.latent.expect("read with the row");
        let LatentShape { q_rank, rank, nope_dim, rope_dim, value } = shape;
        let norm_of = |name: &str, cols: usize| NormWeights {
            kind: NormKind::Rms,
            weight: vec![self.tensor(&format!("{}{name}.weight", self.layer), &[cols])],
            bias: None,
        };
        let queries = arch.heads * (nope_dim + rope_dim);
        let q = match q_rank {
            None => self.linear(q, queries, hidden, false),
            Some(q_rank) => self.linear(q_up, queries, q_rank, false),
        };
        let q_latent = q_rank
            .map(|q_rank| (self.linear(q_down, q_rank, hidden, arch.qkv_bias), norm_of(q_norm, q_rank)));
        let all = self.linear(down, rank + rope_dim, hidden, arch.qkv_bias);
        let k = part(&all, rank, rope_dim, rope_dim, rope_dim);
        let v = part(&all, 0, rank, rank, rank);
        let (up, _) = self.linear(up, arch.heads * (nope_dim + value), rank, false);
        let latent = LatentWeights {
            shape,
            q_latent,
            norm: norm_of(norm, rank),
            keys: up.part(0, nope_dim, nope_dim + value, arch.heads * nope_dim),
            values: up.part(nope_dim, value, nope_dim + value, arch.heads * value),
        };
        ([q, k, v], Some(latent))
    }

    fn head_norms(&self) -> Option<[NormWeights; 2]> {
        let shape = self.arch.head_norm?;
        let (arch, names) = (self.arch, self.arch.family.names.head_norms);
        let one = |name: &str, heads: usize| {
            let dims = match shape {
                HeadNormShape::Head { .. } | HeadNormShape::HeadsApart => vec![arch.head_dim],
                HeadNormShape::Heads => vec![heads, arch.head_dim],
                HeadNormShape::Whole => vec![heads * arch.head_dim],
            };
            let name = format!("{}{name}", self.layer);
            let names = match shape {
                HeadNormShape::HeadsApart => {
                    (0..heads).map(|head| format!("{name}.norms.{head}.weight")).collect()
                }
                _ => vec![format!("{name}.weight")],
            };
            let biased = matches!(shape, HeadNormShape::Head { bias: true });
            NormWeights {
                kind: arch.norm.kind,
                weight: names.iter().map(|name| self.tensor(name, &dims)).collect(),
                bias: biased.then(|| self.tensor(&format!("{name}.bias"), &dims)),
            }
        };
        Some([one(names[0], arch.heads), one(names[1], arch.kv_heads)])
    }

    /// An MLP whose names are below `prefix`. Biases: of gate and up, and of down.
    fn mlp(&self, prefix: &str, inner: Inner, down: &str, width: usize, biases: [bool; 2]) -> MlpWeights {
        let hidden = self.arch.hidden;
        let named = |name: &str, rows, cols, bias| self.linear(&format!("{prefix}{name}"), rows, cols, bias);
        let linear = |name: &str, rows, cols| named(name, rows, cols, biases[0]);
        let (gate, up) = match inner {
            Inner::Gated([gate, up]) => (Some(linear(gate, width, hidden)), linear(up, width, hidden)),
            Inner::Joined(name) => {
                let both = linear(name, 2 * width, hidden);
                (Some(part(&both, 0, width, width, width)), part(&both, width, width, width, width))
            }
            Inner::JoinedUpFirst(name) => {
                let both = linear(name, 2 * width, hidden);
                (Some(part(&both, width, width, width, width)), part(&both, 0, width, width, width))
            }
            Inner::Plain(name) => (None, linear(name, width, hidden)),
        };
        MlpWeights { gate, up, down: named(down, hidden, width, biases[1]) }
    }

    fn mixture(&self, mixture: &Moe) -> MixtureWeights {
        let (hidden, row) = (self.arch.hidden, &mixture.row);
        let (experts, width) = (mixture.experts, mixture.inner);
        let correction = (!row.correction.is_empty()).then(|| {
            let name = format!("{}{}", self.layer, row.correction);
            if row.correction_in_row {
                self.tensor(&name, &[1, experts])
            } else {
                self.tensor(&name, &[experts])
            }
        });
        let shared = mixture.shared.map(|width| match row.shared {
            Shared::Never => unreachable!("a width of none"),
            Shared::Field { names: (inner, down), .. } | Shared::Times { names: (inner, down), .. } => {
                self.mlp("", inner, down, width, [self.arch.up_bias, self.arch.mlp_bias])
            }
        });
        MixtureWeights {
            router: self.linear(row.router, experts, hidden, row.router_bias),
            correction,
            experts: match row.weights {
                Experts::Apart { prefix, names: [gate, up, down], biased } => (0..experts)
                    .map(|expert| {
                        self.mlp(
                            &format!("{prefix}{expert}."),
                            Inner::Gated([gate, up]),
                            down,
                            width,
                            [biased; 2],
                        )
                    })
                    .collect(),
                Experts::Joined { both, down } => {
                    let name = |name: &str| format!("{}{name}.weight", self.layer);
                    let both = self.tensor(&name(both), &[experts, 2 * width, hidden]);
                    let down = self.tensor(&name(down), &[experts, hidden, width]);
                    let one = |expert: usize| {
                        let both = (both.slab(expert), None);
                        MlpWeights {
                            gate: Some(part(&both, 0, width, width, width)),
                            up: part(&both, width, width, width, width),
                            down: (down.slab(expert), None),
                        }
                    };
                    (0..experts).map(one).collect()
                }
                Experts::InTurn { both, down } => {
                    let (both, down) = (format!("{}{both}", self.layer), format!("{}{down}", self.layer));
                    let biases = self.tensor(&format!("{both}_bias"), &[experts, 2 * width]);
                    let down_biases = self.tensor(&format!("{down}_bias"), &[experts, hidden]);
                    let both = self.gpt_oss(&both, experts, 2 * width, hidden);
                    let down = self.gpt_oss(&down, experts, hidden, width);
                    let one = |(expert, (both, down))| {
                        let both = (both, Some(biases.slab(expert)));
                        MlpWeights {
                            gate: Some(part(&both, 0, 1, 2, width)),
                            up: part(&both, 1, 1, 2, width),
                            down: (down, Some(down_biases.slab(expert))),
                        }
                    };
                    both.into_iter().zip(down).enumerate().map(one).collect()
                }
            },
            shared,
            shared_gate: (!row.shared_gate.is_empty())
                .then(|| self.linear(row.shared_gate, 1, hidden, false)),
        }
    }

    /// A norm of the residual stream; none without a name.
    pub(super) fn norm_if(&self, name: &str) -> Option<NormWeights> {
        (!name.is_empty()).then(|| self.norm(name))
    }

    pub(super) fn norm(&self, name: &str) -> NormWeights {
        let norm = self.arch.norm;
        let find = |suffix: &str, there: bool| {
            there.then(|| self.tensor(&format!("{}{name}.{suffix}", self.layer), &[self.arch.hidden]))
        };
        NormWeights {
            kind: norm.kind,
            weight: find("weight", norm.weight).into_iter().collect(),
            bias: find("bias", norm.bias),
        }
    }

    pub(super) fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> LinearWeights {
        let name = format!("{}{name}", self.layer);
        let weight = self.matrix(&name, rows, cols);
        (weight, bias.then(|| self.tensor(&format!("{name}.bias"), &[rows])))
    }
}

/// The [`Tensor::part`] of a matrix and of its bias.
fn part(
    (weight, bias): &LinearWeights,
    first: usize,
    group: usize,
    stride: usize,
    rows: usize,
) -> LinearWeights {
    let part = |tensor: &Tensor| tensor.part(first, group, stride, rows);
    (part(weight), bias.as_ref().map(part))
}
