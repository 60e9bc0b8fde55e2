//! All tensors, and the bytes that they take in files and in memory.

use super::{
    AdapterNeeds, Addition, Additions, LayerWeights, NormWeights, PositionTypeWeights, Site, StepWeights,
    Weights,
};
use crate::backend::{Backend, Quantize};
use crate::model::decoder::for_tables;
use crate::weights::{Dtype, Tensor};

impl Weights {
    /// All tensors.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        let layers = self.layers.iter().flat_map(LayerWeights::iter);
        let tables = [&self.embed].into_iter().chain(&self.head).chain(&self.head_bias);
        let adapters = self.additions().flat_map(|addition| [&addition.a, &addition.b]);
        tables.chain(self.others()).chain(layers).chain(adapters)
    }

    /// What is neither in a layer nor a table of the vocabulary.
    fn others(&self) -> impl Iterator<Item = &Tensor> {
        let PositionTypeWeights { positions, types, norm } = &self.position_type;
        let norms = self.norm.iter().chain(norm).flat_map(NormWeights::iter);
        let steps = self.classifier.iter().flat_map(StepWeights::iter);
        norms.chain(positions).chain(types).chain(&self.relative_bias).chain(steps)
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

    /// Bytes of the table that is added to embeddings: f32, a row for each position in each part.
    fn position_type_bytes(&self) -> u64 {
        let PositionTypeWeights { positions, types, .. } = &self.position_type;
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
        let looked_up = [&self.position_type.positions, &self.position_type.types].into_iter().flatten();
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
        tables + adapters + self.position_type_bytes() + others - looked_up
            + layers.saturating_add_signed(routers.sum())
    }

    /// The type of the embedding table: that of activations in the checkpoint's own framework, and of the cache.
    pub fn dtype(&self) -> Dtype {
        self.embed.dtype
    }
}
