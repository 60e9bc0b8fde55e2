//! How fast a device copies, overwrites and multiplies: for benches.
#![expect(unsafe_code, reason = "copies memory of the device")]

use std::path::Path;
use std::sync::Arc;

use super::Cuda;
use super::driver::{Driver, Memory};
use super::weight::Weight;
use crate::backend::{Backend, Buf, Kv, KvType, Projection};
use crate::error::Result;
use crate::memory::Layout;
use crate::sample::rng;
use crate::weights::Checkpoint;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// Of one piece of memory to another.
    Copy,
    /// A scrub, with the places that are read back.
    Scrub,
    /// A product with so many tokens.
    Product(usize),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Copy => f.write_str("copy"),
            Self::Scrub => f.write_str("scrub"),
            Self::Product(tokens) => write!(f, "product, {tokens} tokens"),
        }
    }
}

/// A device with something to do.
pub struct Rates<D: Driver> {
    driver: Arc<D>,
    backend: Cuda<D>,
    /// Several, so that no cache holds the one that comes next.
    weights: Vec<Weight<D>>,
    next: usize,
    memory: [Memory<D>; 2],
    x: Buf,
    out: Buf,
    shape: (usize, usize),
    tokens: Vec<usize>,
}

impl<D: Driver> Rates<D> {
    /// So often is a thing done in one measurement.
    pub const AGAIN: u32 = 8;

    /// Writes random weights to `folder`, and loads them.
    pub fn new(
        driver: Arc<D>,
        bytes: usize,
        shape: (usize, usize),
        tokens: &[usize],
        folder: &Path,
    ) -> Result<Self> {
        let (rows, cols) = shape;
        let random: Vec<u8> = (0..rows * cols)
            .flat_map(|i| half::bf16::from_f64(rng::uniform(7, i as u64) - 0.5).to_le_bytes())
            .collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![rows, cols], &random);
        let view = view.map_err(|error| crate::Error::read(folder)(std::io::Error::other(error)))?;
        let file = folder.join("model.safetensors");
        let all = safetensors::serialize([("weight", view)], None)
            .map_err(|error| crate::Error::read(&file)(std::io::Error::other(error)))?;
        std::fs::write(&file, all).map_err(crate::Error::read(&file))?;
        let tensor = Checkpoint::open(folder)?.tensor("weight", &[rows, cols])?;
        let mut backend = Cuda::new(driver.clone());
        let weights = (0..4).map(|_| backend.upload(&tensor, None)).collect::<Result<Vec<_>>>()?;
        let most = tokens.iter().copied().max().unwrap_or(1);
        let mut layout = Layout::default();
        let too_large = || crate::Error::request("tokens", "fewer");
        let x = Buf::plan_operand(&mut layout, most, cols).ok_or_else(too_large)?;
        let out = Buf::plan(&mut layout, most, rows).ok_or_else(too_large)?;
        let values = Buf::plan(&mut layout, most, cols).ok_or_else(too_large)?;
        let block = Kv::block_bytes(KvType::Bf16, 1, 1, [16; 2]).ok_or_else(too_large)?;
        let region = layout.region(block).ok_or_else(too_large)?;
        let kv = Kv { region, cache: KvType::Bf16, layers: 1, kv_heads: 1, head_dim: 16, value_dim: 16 };
        let table = backend.upload_table((0..cols).map(|i| (i as f32).sin()).collect(), cols)?;
        backend.reserve(layout, kv, None)?;
        // rates on zeros would be too good
        backend.embed(&vec![0; most], &table, 1.0, values);
        let x = x.of(backend.form(&[&weights[0]]));
        backend.norm(most, values, &crate::model::decoder::identity(), x);
        let memory = [Memory::new(&driver, bytes, "a bench")?, Memory::new(&driver, bytes, "a bench")?];
        Ok(Self { driver, backend, weights, next: 0, memory, x, out, shape, tokens: tokens.to_vec() })
    }

    /// All that can be measured.
    pub fn all(&self) -> Vec<What> {
        [What::Copy, What::Scrub].into_iter().chain(self.tokens.iter().map(|&n| What::Product(n))).collect()
    }

    /// Bytes and operations of one.
    pub fn size(&self, what: &What) -> (u64, u64) {
        let bytes = self.memory[0].bytes() as u64;
        let weights = (self.shape.0 * self.shape.1) as u64;
        match *what {
            What::Copy => (2 * bytes, 0),
            What::Scrub => (bytes, 0),
            What::Product(tokens) => (2 * weights, 2 * weights * tokens as u64),
        }
    }

    /// Does it, [`Self::AGAIN`] times, and waits.
    pub fn run(&mut self, what: &What) {
        let [from, to] = [0, 1].map(|i| self.memory[i].at());
        let bytes = self.memory[0].bytes();
        for _ in 0..Self::AGAIN {
            match *what {
                // SAFETY: both have the bytes.
                What::Copy => unsafe { self.driver.copy(from, to, bytes) },
                What::Scrub => {
                    let _ = self.backend.forget(to, bytes);
                    self.backend.flush();
                }
                What::Product(tokens) => {
                    self.next = (self.next + 1) % self.weights.len();
                    let weight = &self.weights[self.next];
                    let products = [Projection { weight, bias: None, out: self.out, add: None }];
                    self.backend.linear(tokens, self.x, &products);
                }
            }
        }
        self.driver.synchronize();
    }
}
