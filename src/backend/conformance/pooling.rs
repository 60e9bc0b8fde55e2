//! Embeddings added to rows, activations of single values, and texts that become one row.

use super::*;
use crate::backend::{Pointwise, Pooling};

/// Rows added to rows, activated, and pooled.
struct Pool {
    rows: usize,
    x: Vec<f32>,
    table: Vec<f32>,
    texts: Vec<std::ops::Range<u32>>,
    activation: Activation,
    pooling: Pooling,
}

impl Body for Pool {
    fn run<B: Testable>(&self, mut backend: B) -> Vec<f32> {
        let cols = self.x.len() / self.rows;
        let shapes = [(self.rows, cols, false), (self.texts.len(), cols, false)];
        let bufs = reserve(&mut backend, &shapes, NO_CACHE);
        fill(&mut backend, bufs[0], &self.x);
        let table = backend.upload_table(self.table.clone(), cols).unwrap();
        let rows = self.table.len() / cols;
        let ids: Vec<u32> = (0..self.rows).map(|row| ((row * 7 + 3) % rows) as u32).collect();
        let batch = Batch { position_types: &ids, ..Batch::default() };
        backend.embed(&batch, EmbedBy::PositionType, &table, 1.0, true, bufs[0]);
        backend.pointwise(self.rows, bufs[0], Pointwise::Activate(self.activation));
        backend.pool(&self.texts, self.pooling, bufs[0], bufs[1]);
        read(&mut backend, bufs[1], self.texts.len())
    }
}

#[test]
fn pooling_agrees_with_the_reference() {
    let poolings = [
        Pooling::First,
        Pooling::Last,
        Pooling::Mean,
        Pooling::MeanSqrtLen,
        Pooling::Max,
        Pooling::Weighted { from: 1 },
        Pooling::Weighted { from: 5 },
    ];
    for seed in 0..42 {
        let source = &mut Source::new(seed);
        let (texts, cols) = (source.size(1, 5), source.size(1, 70));
        let mut rows = 0;
        let texts: Vec<_> = (0..texts)
            .map(|_| {
                let first = rows + source.size(0, 2) as u32; // what is between belongs to nobody
                rows = first + source.size(1, 40) as u32;
                first..rows
            })
            .collect();
        let rows = rows as usize;
        let tolerance = vec![1e-5; texts.len() * cols];
        let body = Pool {
            rows,
            x: source.values(rows * cols),
            table: source.values(9 * cols),
            activation: ACTIVATIONS[seed as usize % ACTIVATIONS.len()],
            pooling: poolings[seed as usize % poolings.len()],
            texts,
        };
        compare(body, &Near { tolerance, own_way: None, device: 0.0 });
    }
}
