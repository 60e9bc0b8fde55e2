//! The tensors of a checkpoint, found under their family's names and of the right shapes, before a backend takes them in.

use std::cell::RefCell;

use super::arch::{
    Arch, ClassifierShape, HeadNormShape, LatentShape, LayerShape, LookupShape, Moe, NormPlacement,
};
use super::decoder::for_tables;
use super::families::{Experts, HeadStep, Inner, Qkv, Shared};
use crate::backend::{Activation, Backend, NormKind, Quantize};
use crate::error::{Error, Result};
use crate::weights::adapter::{Adapter, Delta, factors, merged, rounded, transposed};
use crate::weights::checkpoint::Unread;
use crate::weights::tensors::Tensors;
use crate::weights::{Dtype, Tensor};

/// Tensors that some checkpoints have and nobody reads: buffers that old versions of transformers stored.
const NOT_READ: [&str; 5] = [
    ".rotary_emb.inv_freq",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.original_inv_freq",
    "embeddings.position_ids",
];

/// With so many problems the rest of the layers is not looked at.
const MANY: usize = 10_000;

/// How many problems an error shows.
const SHOWN: usize = 3;

/// How tensors are taken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Tensors that nobody reads are no error.
    pub extra: bool,
    /// Quantized matrices become bf16.
    pub dequantize: bool,
    /// No logits are wanted: heads are not read.
    pub encodes: bool,
    /// Becomes a part of the weights.
    pub merged: Option<&'a Adapter>,
    /// Are taken beside them.
    pub beside: &'a [Adapter],
}

/// See the module.
#[derive(Debug)]
pub struct Weights {
    pub embed: Tensor,
    pub lookup: LookupWeights,
    /// (buckets, heads)
    pub distances: Option<Tensor>,
    pub layers: Vec<LayerWeights>,
    pub norm: Option<NormWeights>,
    /// What a checkpoint for classifying texts has behind its layers.
    pub classifier: Vec<StepWeights>,
    pub head: Option<Tensor>,
    pub head_bias: Option<Tensor>,
    /// What each adapter adds.
    pub adapters: Vec<AdapterWeights>,
}

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
    fn factor_bytes(&self) -> u64 {
        self.factors.as_ref().map_or(0, |factors| (2 * factors.len() * size_of::<f32>()) as u64)
    }
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

/// What an adapter adds in a layer, by [`Site`].
pub type Additions = [Option<Addition>; Site::COUNT];

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
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.weight.iter().chain(&self.bias)
    }
}

/// What is added to embeddings.
#[derive(Debug, Default)]
pub struct LookupWeights {
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
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let Self { q_latent, norm, keys, values, .. } = self;
        let q_latent = q_latent.iter().flat_map(|(linear, norm)| linears([linear]).chain(norm.iter()));
        q_latent.chain(norm.iter()).chain([keys, values])
    }

    /// What the matrices to keys become, but for the values: (heads * rank, still).
    pub fn folded(&self) -> Tensor {
        let mut folded = self.keys.clone();
        let heads = folded.shape[0] / self.shape.still;
        folded.shape = vec![heads * self.shape.rank, self.shape.still];
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

/// The tensors of an MLP.
#[derive(Debug)]
pub struct MlpWeights {
    pub gate: Option<LinearWeights>,
    pub up: LinearWeights,
    pub down: LinearWeights,
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

impl MlpWeights {
    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        linears([&self.up, &self.down].into_iter().chain(&self.gate))
    }
}

impl FeedWeights {
    /// What decides where a token goes.
    fn routers(&self) -> impl Iterator<Item = &Tensor> {
        let mixture = match self {
            Self::One(_) => None,
            Self::Moe(mixture) => Some(mixture),
        };
        let both =
            mixture.into_iter().flat_map(|mixture| [&mixture.router].into_iter().chain(&mixture.shared_gate));
        both.map(|(weight, _)| weight)
    }

    fn iter(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
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

impl Weights {
    /// Finds every tensor that `arch` asks for.
    ///
    /// # Errors
    /// Tensors are missing, or of another shape or type, or nobody reads them though they are not known to be needless;
    /// the error names the first ones.
    pub fn find(arch: &Arch, checkpoint: &dyn Tensors, options: Options<'_>) -> Result<Self> {
        let names = &arch.family.names;
        let problems = RefCell::default();
        let base = base(checkpoint, names.embed);
        let finder = Finder { arch, checkpoint, options, base, problems: &problems, layer: String::new() };
        let table = [arch.vocab, arch.hidden];
        if checkpoint.is_empty() {
            checkpoint.tensor(&format!("{}.weight", names.embed), &table)?;
        }
        let embed = finder.matrix(names.embed, arch.vocab, arch.hidden);
        let lookup = arch.lookup.map(|shape| finder.lookup(shape)).unwrap_or_default();
        let lookup = LookupWeights { norm: finder.norm_if(names.lookup.norm), ..lookup };
        let distances = arch
            .buckets
            .map(|buckets| finder.tensor(&format!("{}.weight", names.distances), &[buckets, arch.heads]));
        let headed = !options.encodes;
        let tied = match arch.tied {
            Some(true) => !headed || !finder.has_head_of_its_own(),
            Some(false) => false,
            None => !finder.has_matrix(names.head),
        };
        let head = match (headed, tied) {
            (false, _) => None,
            (true, false) => Some(finder.matrix(names.head, arch.vocab, arch.hidden)),
            (true, true) => finder.untied(),
        };
        let head_bias =
            (headed && arch.head_bias).then(|| finder.tensor(&format!("{}.bias", names.head), &[arch.vocab]));
        let norm = finder.norm_if(names.norm);
        let classifier = arch.classifier.as_ref().filter(|_| options.encodes);
        let classifier = classifier.map(|shape| finder.classifier(shape)).unwrap_or_default();
        let layers = arch.shapes.iter().enumerate().map(|(layer, shape)| {
            let norm = arch.family.first_norm || layer > 0;
            Finder { layer: format!("{}{layer}.", names.layers), ..finder }.layer(shape, norm)
        });
        let layers = layers.take_while(|_| problems.borrow().count < MANY).collect();
        if !options.extra {
            finder.refuse_unread();
        }
        let adapters = options.beside.iter().map(|adapter| finder.beside(adapter)).collect::<Result<_>>()?;
        problems.into_inner().into_result(checkpoint)?;
        if let Some(adapter) = options.merged {
            adapter.refuse_unread()?;
        }
        Ok(Self { adapters, embed, lookup, distances, layers, norm, classifier, head, head_bias })
    }

    /// What adapters add.
    pub fn additions(&self) -> impl Iterator<Item = &Addition> {
        let of_layers = self.adapters.iter().flat_map(|adapter| &adapter.layers).flatten().flatten();
        of_layers.chain(self.adapters.iter().flat_map(|adapter| adapter.embed.iter().chain(&adapter.head)))
    }

    /// What adapters need of buffers.
    pub fn adapters_need(&self) -> AdapterNeeds {
        let layers = || self.adapters.iter().flat_map(|adapter| &adapter.layers);
        let has = |layer: &Additions, sites: [Site; 2], which: fn(&Addition) -> bool| {
            sites.iter().any(|site| layer[*site as usize].as_ref().is_some_and(which))
        };
        AdapterNeeds {
            rank: self.additions().map(|addition| addition.b.shape[1]).max().unwrap_or(0),
            feeds: layers().any(|layer| has(layer, [Site::Gate, Site::Up], |_| true)),
            branches: layers()
                .any(|layer| has(layer, [Site::O, Site::Down], |addition| addition.factors.is_some())),
        }
    }

    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(LayerWeights::iter);
        let tables = [&self.embed].into_iter().chain(&self.head).chain(&self.head_bias);
        let adapters = self.additions().flat_map(|addition| [&addition.a, &addition.b]);
        tables.chain(self.others()).chain(layers).chain(adapters)
    }

    /// What is neither in a layer nor a table of the vocabulary.
    fn others(&self) -> impl Iterator<Item = &Tensor> {
        let LookupWeights { positions, types, norm } = &self.lookup;
        let norms = self.norm.iter().chain(norm).flat_map(NormWeights::iter);
        let steps = self.classifier.iter().flat_map(StepWeights::iter);
        norms.chain(positions).chain(types).chain(&self.distances).chain(steps)
    }

    /// Bytes of the table that is added to embeddings: f32, a row for each position in each part.
    fn lookup_bytes(&self) -> u64 {
        let LookupWeights { positions, types, .. } = &self.lookup;
        let rows = |table: &Option<Tensor>| table.as_ref().map(|table| table.shape[0]);
        match (rows(positions), rows(types)) {
            (None, None) => 0,
            (a, b) => (a.unwrap_or(1) * b.unwrap_or(1) * self.embed.shape[1] * size_of::<f32>()) as u64,
        }
    }

    /// Bytes of all tensors in their files.
    pub fn file_bytes(&self) -> u64 {
        self.iter().map(Tensor::bytes).sum()
    }

    /// Bytes of memory that `B` takes for all tensors.
    pub fn bytes<B: Backend>(&self, quantize: Option<Quantize>) -> u64 {
        let tables = [&self.embed].into_iter().chain(&self.head);
        let tables: u64 = tables.map(|tensor| B::weight_bytes(tensor, for_tables(quantize))).sum();
        let others = self.others().chain(&self.head_bias);
        let looked_up = [&self.lookup.positions, &self.lookup.types].into_iter().flatten();
        let looked_up: u64 = looked_up.map(|tensor| B::weight_bytes(tensor, quantize)).sum();
        let others: u64 = others.map(|tensor| B::weight_bytes(tensor, quantize)).sum();
        let routers = self.layers.iter().flat_map(|layer| layer.feed.routers());
        let routers = routers.map(|tensor| {
            B::weight_bytes(tensor, for_tables(quantize)) as i64 - B::weight_bytes(tensor, quantize) as i64
        });
        let folded = self.layers.iter().flat_map(|layer| &layer.latent).map(|latent| {
            let q8 = latent.keys.dtype.is_quantized().then_some(Quantize::Q8);
            B::weight_bytes(&latent.folded(), quantize.or(q8)) as i64
                - B::weight_bytes(&latent.keys, quantize) as i64
        });
        let routers = routers.chain(folded);
        let layers = self.layers.iter().flat_map(LayerWeights::iter);
        let layers: u64 = layers.map(|tensor| B::weight_bytes(tensor, quantize)).sum();
        let adapters = self.additions().flat_map(|addition| [&addition.a, &addition.b]);
        let adapters: u64 = adapters.map(|tensor| B::weight_bytes(tensor, None)).sum();
        let adapters = adapters + self.additions().map(Addition::factor_bytes).sum::<u64>();
        tables + adapters + self.lookup_bytes() + others - looked_up
            + layers.saturating_add_signed(routers.sum())
    }

    /// The type of the embedding table: that of activations in the checkpoint's own framework, and of the cache.
    pub fn dtype(&self) -> Dtype {
        self.embed.dtype
    }
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

    fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let Self { attention_norm, attention_post, mlp_norm, mlp_post, head_norms, .. } = self;
        let norms = [attention_norm, attention_post, mlp_norm, mlp_post].into_iter().flatten();
        let norms = norms.chain(head_norms.iter().flatten()).flat_map(NormWeights::iter);
        let latent = self.latent.iter().flat_map(LatentWeights::iter);
        let linears = linears([&self.q, &self.k, &self.v, &self.o]);
        norms.chain(latent).chain(linears).chain(&self.sinks).chain(self.feed.iter())
    }
}

/// What is wrong with a checkpoint's tensors.
#[derive(Debug, Default)]
struct Problems {
    count: usize,
    /// The first ones.
    first: Vec<Error>,
}

impl Problems {
    fn add(&mut self, problem: Error) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(problem);
        }
    }

    fn into_result(mut self, checkpoint: &dyn Tensors) -> Result<()> {
        let shown = self.first.iter().map(|problem| match problem {
            Error::Tensor { tensor, expected, .. } => format!("`{tensor}` must {expected}"),
            other => other.to_string(),
        });
        match self.count {
            0 => Ok(()),
            1 => Err(self.first.remove(0)),
            count => Err(Error::Tensors {
                folder: checkpoint.folder().to_owned(),
                count,
                first: shown.collect::<Vec<_>>().join("; "),
            }),
        }
    }
}

/// Finds tensors below a prefix. What is missing or wrong it notes, and goes on with another tensor in its place.
#[derive(Clone)]
struct Finder<'a> {
    arch: &'a Arch,
    checkpoint: &'a dyn Tensors,
    options: Options<'a>,
    problems: &'a RefCell<Problems>,
    /// What names of the table begin with, and those of the checkpoint do not.
    base: &'static str,
    layer: String,
}

/// Models are stored as a part of one with a head, or alone: then names lack the part's own.
fn base(checkpoint: &dyn Tensors, embed: &'static str) -> &'static str {
    let Some(dot) = embed.find('.') else { return "" };
    let (base, rest) = embed.split_at(dot + 1);
    let has = |name: &str| checkpoint.has(&format!("{name}.weight"));
    if !has(embed) && has(rest) { base } else { "" }
}

impl Finder<'_> {
    /// A name of the table as the checkpoint has it.
    fn name<'n>(&self, name: &'n str) -> std::borrow::Cow<'n, str> {
        let name = name.strip_prefix(self.base).unwrap_or(name);
        // as TensorFlow called them
        let old = [(".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")];
        for (new, old) in old {
            if let Some(start) = name.strip_suffix(new)
                && !self.checkpoint.has(name)
                && self.checkpoint.has(&format!("{start}{old}"))
            {
                return format!("{start}{old}").into();
            }
        }
        name.into()
    }

    /// What `find` finds, and the tensor itself where that is wrong: the problem is noted.
    fn or_noted(&self, tensor: Tensor, find: impl FnOnce(&Tensor) -> Result<Tensor>) -> Tensor {
        find(&tensor).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            tensor
        })
    }

    /// A module's name as an adapter has it: it may have been made for the model alone, without its part's name.
    fn in_adapter<'n>(&self, adapter: &Adapter, module: &'n str) -> &'n str {
        let names = &self.arch.family.names;
        let base = names.embed.find('.').map_or("", |dot| &names.embed[..=dot]);
        match module.strip_prefix(base) {
            Some(rest) if !adapter.has(module) && adapter.has(rest) => rest,
            _ => module,
        }
    }

    /// A matrix with what an adapter has for it: another one in its place, and what is added.
    fn merge(&self, adapter: &Adapter, module: &str, tensor: Tensor) -> Tensor {
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
    fn replace(&self, adapter: &Adapter, name: &str, tensor: Tensor) -> Tensor {
        self.or_noted(tensor, |tensor| {
            Ok(adapter.replacement(name, &tensor.shape)?.unwrap_or_else(|| tensor.clone()))
        })
    }

    /// The head of a model whose head is its embedding table, where an adapter gives the two different values: what was
    /// trained on one of them is no part of the other. None where they stay one.
    fn untied(&self) -> Option<Tensor> {
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

    /// Whether there is a head though config.json says that it is the embedding table, and it has other values: then it is
    /// not, as transformers takes it.
    fn has_head_of_its_own(&self) -> bool {
        let (arch, names) = (self.arch, &self.arch.family.names);
        if !self.has_matrix(names.head) {
            return false;
        }
        let find = |name| self.checkpoint.matrix(&self.name(name), arch.vocab, arch.hidden);
        let (Ok(embed), Ok(head)) = (find(names.embed), find(names.head)) else { return false };
        let rows = 0..embed.rows();
        let differs = |row| match embed.dtype == head.dtype {
            true => embed.row(row) != head.row(row),
            false => embed.row_values(row) != head.row_values(row),
        };
        let found = rows.clone().any(differs);
        embed.forget(rows.clone());
        head.forget(rows);
        found
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

    /// What an adapter adds in each layer, where it stays beside the weights.
    fn beside(&self, adapter: &Adapter) -> Result<AdapterWeights> {
        self.refuse_other_tables(adapter)?;
        adapter.refuse_beside()?;
        let (arch, names) = (self.arch, &self.arch.family.names);
        let (hidden, inner, q, kv) = (arch.hidden, arch.intermediate, arch.q_width(), arch.k_width());
        let rows_of = |all: &Option<Addition>, first, group, stride, rows| {
            Some(all.as_ref()?.part(first, group, stride, rows))
        };
        let embed = self.embed_addition(adapter)?;
        let layers = arch.shapes.iter().enumerate().map(|(layer, shape)| {
            let find = |name: &str, rows, cols| {
                self.addition(adapter, &format!("{}{layer}.{name}", names.layers), rows, cols)
            };
            let mut additions = Additions::default();
            let mut put = |site: Site, addition| additions[site as usize] = addition;
            match names.qkv {
                Qkv::Apart([a, b, c]) => {
                    put(Site::Q, find(a, q, hidden)?);
                    put(Site::K, find(b, kv, hidden)?);
                    put(Site::V, find(c, kv, hidden)?);
                }
                Qkv::Joined(name) => {
                    let all = find(name, q + 2 * kv, hidden)?;
                    put(Site::Q, rows_of(&all, 0, q, q, q));
                    put(Site::K, rows_of(&all, q, kv, kv, kv));
                    put(Site::V, rows_of(&all, q + kv, kv, kv, kv));
                }
                Qkv::ByHead(name) => {
                    let all = find(name, q + 2 * kv, hidden)?;
                    let (queries, dim) = (q / arch.kv_heads, arch.head_dim);
                    let stride = queries + 2 * dim;
                    put(Site::Q, rows_of(&all, 0, queries, stride, q));
                    put(Site::K, rows_of(&all, queries, dim, stride, kv));
                    put(Site::V, rows_of(&all, queries + dim, dim, stride, kv));
                }
                // what goes to and from the heads is in a product with queries and with what attention gives
                Qkv::Latent { q, q_latent: [_, _, q_up], kv_latent: [all, _, _] } => {
                    let Some(LatentShape { q_rank, rank, still, turning, .. }) = arch.latent else {
                        unreachable!("read with the row");
                    };
                    let (q, ins) = q_rank.map_or((q, hidden), |q_rank| (q_up, q_rank));
                    put(Site::Q, find(q, arch.heads * (still + turning), ins)?);
                    let all = find(all, rank + turning, hidden)?;
                    put(Site::K, rows_of(&all, rank, turning, turning, turning));
                    put(Site::V, rows_of(&all, 0, rank, rank, rank));
                }
            }
            put(Site::O, find(names.o, hidden, arch.o_width())?);
            if !shape.mixture {
                match names.inner {
                    Inner::Gated([gate, up]) => {
                        put(Site::Gate, find(gate, inner, hidden)?);
                        put(Site::Up, find(up, inner, hidden)?);
                    }
                    Inner::Joined(name) | Inner::JoinedUpFirst(name) => {
                        let (gate, up) = match names.inner {
                            Inner::Joined(_) => (0, inner),
                            _ => (inner, 0),
                        };
                        let both = find(name, 2 * inner, hidden)?;
                        put(Site::Gate, rows_of(&both, gate, inner, inner, inner));
                        put(Site::Up, rows_of(&both, up, inner, inner, inner));
                    }
                    Inner::Plain(name) => put(Site::Up, find(name, inner, hidden)?),
                }
                put(Site::Down, find(names.down, hidden, inner)?);
            }
            Ok(additions)
        });
        let layers = layers.collect::<Result<_>>()?;
        let head = match self.options.encodes {
            true => None,
            false => self.head_addition(adapter)?,
        };
        adapter.refuse_unread()?;
        Ok(AdapterWeights { embed, layers, head })
    }

    fn lookup(&self, shape: LookupShape) -> LookupWeights {
        let (names, hidden) = (self.arch.family.names.lookup, self.arch.hidden);
        let table = |name: &str, rows: usize| self.tensor(&format!("{name}.weight"), &[rows, hidden]);
        LookupWeights {
            positions: shape.positions.map(|positions| {
                let all = table(names.positions, shape.skipped + positions);
                all.part(shape.skipped, positions, positions, positions)
            }),
            types: shape.types.map(|types| table(names.types, types)),
            norm: None,
        }
    }

    fn classifier(&self, shape: &ClassifierShape) -> Vec<StepWeights> {
        let steps = self.arch.family.classifier.map_or(&[][..], |row| row.steps);
        let (hidden, last) = (self.arch.hidden, steps.len() - 1);
        let step = |(index, step): (usize, &HeadStep)| match *step {
            HeadStep::Dense { name, activation, .. } => {
                let rows = if index == last { shape.labels } else { hidden };
                StepWeights::Dense(self.linear(name, rows, hidden, shape.biases[index]), activation)
            }
            HeadStep::Norm(name) => StepWeights::Norm(self.norm(name)),
        };
        steps.iter().enumerate().map(step).collect()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Tensor {
        let own = &*self.name(name);
        let found = self.checkpoint.tensor(own, shape).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            self.checkpoint.stand_in(own, shape)
        });
        match (self.options.merged, name.rsplit_once('.')) {
            (Some(adapter), Some((module, end))) => {
                let module = self.in_adapter(adapter, module);
                self.replace(adapter, &format!("{module}.{end}"), found)
            }
            _ => found,
        }
    }

    /// Whether there is a matrix `name`, stored or quantized.
    fn has_matrix(&self, name: &str) -> bool {
        self.checkpoint.has_below(&self.name(name))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Tensor {
        let own = &*self.name(name);
        let found = self.checkpoint.matrix(own, rows, cols).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            self.checkpoint.stand_in(own, &[rows, cols])
        });
        let found = if self.options.dequantize { found.dequantized() } else { found };
        match self.options.merged {
            Some(adapter) => self.merge(adapter, name, found),
            None => found,
        }
    }

    fn gpt_oss(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Vec<Tensor> {
        let name = &*self.name(name);
        let found = self.checkpoint.gpt_oss(name, experts, rows, cols).unwrap_or_else(|problem| {
            self.problems.borrow_mut().add(problem);
            (0..experts).map(|_| self.checkpoint.stand_in(name, &[rows, cols])).collect()
        });
        let dequantize = self.options.dequantize;
        found.into_iter().map(|tensor| if dequantize { tensor.dequantized() } else { tensor }).collect()
    }

    /// Whatever nobody asked for may mean that the model is another than we take it for.
    fn refuse_unread(&self) {
        let head = format!("{}.weight", self.arch.family.names.head); // some tied ones have it twice
        let names = &self.arch.family.names;
        let base = match names.embed.find('.') {
            Some(dot) if self.base.is_empty() => &names.embed[..=dot],
            _ => "",
        };
        // of a model without a head, what is of none of its parts, and a pooler that nobody asked for
        let of_heads = |name: &str| {
            let rest = name.strip_prefix(base);
            self.options.encodes && rest.is_none_or(|rest| rest.starts_with("pooler."))
        };
        for Unread { name, stored_name, file } in self.checkpoint.unread() {
            if name != head
                && !self.of_further_layers(name)
                && !of_heads(name)
                && !NOT_READ.iter().any(|end| name.ends_with(end))
            {
                let expected = "not be there: a model of this config.json does not read it";
                self.problems.borrow_mut().add(Error::tensor(file, stored_name, expected));
            }
        }
    }

    /// Whether a tensor is of one of the layers that guess further tokens: they stand behind the others.
    fn of_further_layers(&self, name: &str) -> bool {
        let layers = self.name(self.arch.family.names.layers);
        let layer = name.strip_prefix(&*layers).and_then(|rest| rest.split_once('.'));
        let layer = layer.and_then(|(layer, _)| layer.parse::<usize>().ok());
        let first = self.arch.layers;
        layer.is_some_and(|layer| (first..first + self.arch.further_layers).contains(&layer))
    }

    fn layer(&self, shape: &LayerShape, norm: bool) -> LayerWeights {
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
        let LatentShape { q_rank, rank, still, turning, value } = shape;
        let norm_of = |name: &str, cols: usize| NormWeights {
            kind: NormKind::Rms,
            weight: vec![self.tensor(&format!("{}{name}.weight", self.layer), &[cols])],
            bias: None,
        };
        let queries = arch.heads * (still + turning);
        let q = match q_rank {
            None => self.linear(q, queries, hidden, false),
            Some(q_rank) => self.linear(q_up, queries, q_rank, false),
        };
        let q_latent = q_rank
            .map(|q_rank| (self.linear(q_down, q_rank, hidden, arch.qkv_bias), norm_of(q_norm, q_rank)));
        let all = self.linear(down, rank + turning, hidden, arch.qkv_bias);
        let k = part(&all, rank, turning, turning, turning);
        let v = part(&all, 0, rank, rank, rank);
        let (up, _) = self.linear(up, arch.heads * (still + value), rank, false);
        let latent = LatentWeights {
            shape,
            q_latent,
            norm: norm_of(norm, rank),
            keys: up.part(0, still, still + value, arch.heads * still),
            values: up.part(still, value, still + value, arch.heads * value),
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

    /// A norm of the residual stream; none without a name.
    fn norm_if(&self, name: &str) -> Option<NormWeights> {
        (!name.is_empty()).then(|| self.norm(name))
    }

    fn norm(&self, name: &str) -> NormWeights {
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

    fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> LinearWeights {
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
