//! What adapters do to the tensors of a checkpoint: merged into them, or beside them.

use super::Options;
use super::find::Finder;
use crate::error::Result;
use crate::model::arch::{LatentShape, LayerShape};
use crate::model::families::{Inner, Qkv};
use crate::weights::Tensor;
use crate::weights::adapter::{Adapter, Delta, factors, merged, rounded, transposed};

/// What an adapter adds beside the weights.
#[derive(Debug)]
pub struct AdapterWeights {
    /// To embeddings. Its first matrix is a table, (vocab, rank); the second one (hidden, rank).
    pub embed: Option<Addition>,
    /// Layer by layer.
    pub layers: Vec<Additions>,
    /// To the logits.
    pub head: Option<Addition>,
}

/// What an adapter adds to a product, beside the weights.
#[derive(Clone, Debug)]
pub struct Addition {
    /// (rank, inputs)
    pub a: Tensor,
    /// (outputs, rank)
    pub b: Tensor,
    pub scale: f32,
    /// What DoRA multiplies the sum by, without the bias: one factor for each output.
    pub factors: Option<Vec<f32>>,
}

impl Addition {
    fn of(delta: Delta, factors: Option<Vec<f32>>) -> Self {
        let Delta { a, b, scale, .. } = delta;
        Self { a, b, scale, factors }
    }

    /// The [`Tensor::part`] of its outputs.
    fn part(&self, first: usize, group: usize, stride: usize, rows: usize) -> Self {
        let at = |row: usize| first + row / group * stride + row % group;
        let factors = self.factors.as_ref().map(|factors| (0..rows).map(|row| factors[at(row)]).collect());
        Self { a: self.a.clone(), b: self.b.part(first, group, stride, rows), scale: self.scale, factors }
    }

    /// Bytes of its factors, and of what they leave of the bias.
    pub(super) fn factor_bytes(&self) -> u64 {
        self.factors.as_ref().map_or(0, |factors| (2 * factors.len() * size_of::<f32>()) as u64)
    }
}

/// What an adapter adds in a layer, by [`Site`].
pub type Additions = [Option<Addition>; Site::COUNT];

/// The matrices of a layer that an adapter can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Site {
    /// All.
    pub const COUNT: usize = 7;
}

/// What adapters need of a decoder's buffers.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdapterNeeds {
    /// The largest rank.
    pub rank: usize,
    /// One changes what comes before an MLP's activation.
    pub feeds: bool,
    /// One scales what a branch adds to the residual stream.
    pub branches: bool,
}

/// How an adapter becomes a part of the weights.
impl Finder<'_> {
    /// A module's name as an adapter has it: it may have been made for the model alone, without its part's name.
    pub(super) fn in_adapter<'n>(&self, adapter: &Adapter, module: &'n str) -> &'n str {
        let names = &self.arch.family.names;
        let base = names.embed.find('.').map_or("", |dot| &names.embed[..=dot]);
        match module.strip_prefix(base) {
            Some(rest) if !adapter.has(module) && adapter.has(rest) => rest,
            _ => module,
        }
    }

    /// A matrix with what an adapter has for it: another one in its place, and what is added.
    pub(super) fn merge(&self, adapter: &Adapter, module: &str, tensor: Tensor) -> Tensor {
        let [rows, cols] = tensor.shape[..] else { return tensor };
        let module = self.in_adapter(adapter, module);
        let tensor = self.replace(adapter, &format!("{module}.weight"), tensor);
        self.or_noted(tensor, |tensor| {
            let delta = match adapter.delta(module, rows, cols)? {
                None => adapter.embedding_delta(module, rows, cols)?,
                delta => delta,
            };
            delta.map_or_else(|| Ok(tensor.clone()), |delta| merged(tensor.clone(), &delta))
        })
    }

    /// The tensor that an adapter has in place of one of the model's.
    pub(super) fn replace(&self, adapter: &Adapter, name: &str, tensor: Tensor) -> Tensor {
        self.or_noted(tensor, |tensor| {
            Ok(adapter.replacement(name, &tensor.shape)?.unwrap_or_else(|| tensor.clone()))
        })
    }

    /// The head of a model whose head is its embedding table, where an adapter gives the two different values: what was
    /// trained on one of them is no part of the other. None where they stay one.
    pub(super) fn untied(&self) -> Option<Tensor> {
        let (adapter, names) = (self.options.merged?, &self.arch.family.names);
        let embed = self.in_adapter(adapter, names.embed);
        if adapter.ties() {
            adapter.ask(names.head);
            return None;
        }
        if !adapter.has(embed) && !adapter.has(names.head) {
            return None;
        }
        let plain = Finder { options: Options { merged: None, ..self.options }, ..self.clone() };
        let table = plain.matrix(names.embed, self.arch.vocab, self.arch.hidden);
        let table = match adapter.saves(embed) {
            true => table,
            false => self.replace(adapter, &format!("{embed}.weight"), table), // the vocabulary grew: that is in both
        };
        Some(self.merge(adapter, names.head, table))
    }
}

/// How one stays beside them.
impl Finder<'_> {
    /// What an adapter adds in each layer, where it stays beside the weights.
    pub(super) fn beside(&self, adapter: &Adapter) -> Result<AdapterWeights> {
        self.refuse_other_tables(adapter)?;
        adapter.refuse_beside()?;
        let embed = self.embed_addition(adapter)?;
        let layers = self.arch.shapes.iter().enumerate();
        let layers = layers.map(|(layer, shape)| self.layer_additions(adapter, layer, shape));
        let layers = layers.collect::<Result<_>>()?;
        let head = match self.options.encodes {
            true => None,
            false => self.head_addition(adapter)?,
        };
        adapter.refuse_unread()?;
        Ok(AdapterWeights { embed, layers, head })
    }

    fn layer_additions(&self, adapter: &Adapter, layer: usize, shape: &LayerShape) -> Result<Additions> {
        let (arch, names) = (self.arch, &self.arch.family.names);
        let find = |name: &str, rows, cols| {
            self.addition(adapter, &format!("{}{layer}.{name}", names.layers), rows, cols)
        };
        let [q, k, v] = self.qkv_additions(find)?;
        let o = find(names.o, arch.hidden, arch.o_width())?;
        let [gate, up, down] = match shape.mixture {
            true => [None, None, None],
            false => self.feed_additions(find)?,
        };
        let mut additions = Additions::default();
        let sites = [Site::Q, Site::K, Site::V, Site::O, Site::Gate, Site::Up, Site::Down];
        for (site, addition) in sites.into_iter().zip([q, k, v, o, gate, up, down]) {
            additions[site as usize] = addition;
        }
        Ok(additions)
    }

    /// What an adapter adds to queries, keys and values, which may be rows of one matrix.
    fn qkv_additions(
        &self,
        find: impl Fn(&str, usize, usize) -> Result<Option<Addition>>,
    ) -> Result<[Option<Addition>; 3]> {
        let arch = self.arch;
        let (hidden, q, kv) = (arch.hidden, arch.q_width(), arch.k_width());
        Ok(match arch.family.names.qkv {
            Qkv::Apart([a, b, c]) => [find(a, q, hidden)?, find(b, kv, hidden)?, find(c, kv, hidden)?],
            Qkv::Joined(name) => {
                let all = find(name, q + 2 * kv, hidden)?;
                [(0, q), (q, kv), (q + kv, kv)].map(|(first, rows)| part_of(&all, first, rows, rows, rows))
            }
            Qkv::ByHead(name) => {
                let all = find(name, q + 2 * kv, hidden)?;
                let (queries, dim) = (q / arch.kv_heads, arch.head_dim);
                let stride = queries + 2 * dim;
                [
                    part_of(&all, 0, queries, stride, q),
                    part_of(&all, queries, dim, stride, kv),
                    part_of(&all, queries + dim, dim, stride, kv),
                ]
            }
            // what goes to and from the heads is in a product with queries and with what attention gives
            Qkv::Latent { q, q_latent: [_, _, q_up], kv_latent: [all, _, _] } => {
                let Some(LatentShape { q_rank, rank, nope_dim, rope_dim, .. }) = arch.latent else {
                    unreachable!("read with the row");
                };
                let (q, ins) = q_rank.map_or((q, hidden), |q_rank| (q_up, q_rank));
                let q = find(q, arch.heads * (nope_dim + rope_dim), ins)?;
                let all = find(all, rank + rope_dim, hidden)?;
                [q, part_of(&all, rank, rope_dim, rope_dim, rope_dim), part_of(&all, 0, rank, rank, rank)]
            }
        })
    }

    /// What an adapter adds to the gate, to up and to down. Gate and up may be rows of one matrix.
    fn feed_additions(
        &self,
        find: impl Fn(&str, usize, usize) -> Result<Option<Addition>>,
    ) -> Result<[Option<Addition>; 3]> {
        let (names, hidden, inner) = (&self.arch.family.names, self.arch.hidden, self.arch.intermediate);
        let (gate, up) = match names.inner {
            Inner::Gated([gate, up]) => (find(gate, inner, hidden)?, find(up, inner, hidden)?),
            Inner::Joined(name) => {
                let both = find(name, 2 * inner, hidden)?;
                (part_of(&both, 0, inner, inner, inner), part_of(&both, inner, inner, inner, inner))
            }
            Inner::JoinedUpFirst(name) => {
                let both = find(name, 2 * inner, hidden)?;
                (part_of(&both, inner, inner, inner, inner), part_of(&both, 0, inner, inner, inner))
            }
            Inner::Plain(name) => (None, find(name, inner, hidden)?),
        };
        Ok([gate, up, find(names.down, hidden, inner)?])
    }

    /// What an adapter adds to embeddings.
    fn embed_addition(&self, adapter: &Adapter) -> Result<Option<Addition>> {
        let (arch, name) = (self.arch, self.arch.family.names.embed);
        let module = self.in_adapter(adapter, name);
        let Some(delta) = adapter.embedding_delta(module, arch.vocab, arch.hidden)? else { return Ok(None) };
        let factors = match delta.magnitude {
            Some(_) => factors(&self.matrix(name, arch.vocab, arch.hidden), &delta)?,
            None => None,
        };
        let (a, b) = (delta.b.clone(), transposed(&delta.a)?);
        Ok(Some(Addition::of(Delta { a, b, ..delta }, factors)))
    }

    /// What an adapter adds to the head, which may be the embedding table.
    fn head_addition(&self, adapter: &Adapter) -> Result<Option<Addition>> {
        let (arch, names) = (self.arch, &self.arch.family.names);
        let module = self.in_adapter(adapter, names.head);
        let Some(delta) = adapter.delta(module, arch.vocab, arch.hidden)? else { return Ok(None) };
        let own = if self.has_matrix(names.head) { names.head } else { names.embed };
        let factors = match delta.magnitude {
            Some(_) => factors(&self.matrix(own, arch.vocab, arch.hidden), &delta)?,
            None => None,
        };
        Ok(Some(Addition::of(delta, factors)))
    }

    /// What an adapter adds to a matrix: with DoRA's factors, for which the matrix is read.
    fn addition(&self, adapter: &Adapter, name: &str, rows: usize, cols: usize) -> Result<Option<Addition>> {
        let Some(delta) = adapter.delta(self.in_adapter(adapter, name), rows, cols)? else { return Ok(None) };
        let factors = match delta.magnitude {
            Some(_) => factors(&self.matrix(name, rows, cols), &delta)?,
            None => None,
        };
        Ok(Some(Addition::of(delta, factors)))
    }

    /// A table or a head that was saved below what an adapter adds to it stays beside the weights where it is the model's own.
    fn refuse_other_tables(&self, adapter: &Adapter) -> Result<()> {
        let (arch, names) = (self.arch, &self.arch.family.names);
        for name in [names.embed, names.head] {
            let Some(saved) = adapter.below(self.in_adapter(adapter, name), arch.vocab, arch.hidden)? else {
                continue;
            };
            let own = if self.has_matrix(name) { name } else { names.embed };
            let own = self.checkpoint.matrix(&self.name(own), arch.vocab, arch.hidden)?;
            let own = rounded(&own, saved.dtype); // training may have had another type
            if (0..saved.rows()).any(|row| saved.row_values(row) != own.row_values(row)) {
                return Err(Adapter::only_merged(&saved.file, &saved.name));
            }
        }
        Ok(())
    }
}

/// The [`Addition::part`] of an addition that may not be there.
fn part_of(
    all: &Option<Addition>,
    first: usize,
    group: usize,
    stride: usize,
    rows: usize,
) -> Option<Addition> {
    Some(all.as_ref()?.part(first, group, stride, rows))
}
