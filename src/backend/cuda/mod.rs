//! NVIDIA: [`Cuda`], on a driver that is looked for at run time.
//!
//! The kernels are in `kernels/cuda`; each op fills in the arguments of one or a few and asks for it. All of a
//! session's activations and cache lie in one piece of plain device memory, planned like the CPU's arena; what a step is
//! told (ids, positions, block tables) goes there through pinned memory, which is overwritten like it.
//!
//! **Invariant:** a row's result is the same bits whatever else is in the batch: the kernels say how. And what is asked
//! for happens in order: an overwrite comes after all use of the memory and before any other, and is waited for before a
//! proof of it is given. Once the device has failed nothing is done any more, and every proof says so.
#![expect(unsafe_code, reason = "asks for kernels; each names the sizes it checked")]

mod args;
mod attention;
#[cfg(feature = "testing")]
pub mod blas;
pub mod driver;
#[cfg(any(test, feature = "testing"))]
pub mod emulated;
mod graphs;
mod inputs;
mod kernels;
mod memory;
mod moe;
pub mod native;
mod ops;
mod products;
#[cfg(feature = "testing")]
pub mod rates;
mod rows;
mod sampling;
#[cfg(test)]
mod sampling_tests;
mod scrub;
#[cfg(feature = "testing")]
pub mod search;
#[cfg(test)]
mod tests;
mod weight;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use self::driver::{Address, DeviceAllocation, Driver, Host, Shape};
use self::graphs::Graphs;
use self::inputs::{Input, Inputs};
pub(crate) use self::products::wgmma_agrees;
use self::sampling::Sampling;
use self::weight::{Staging, Weight};
use super::packed::{OperandType, PackedKv};
use super::{Batch, Buf, Counters, Linear, Mask};
use crate::memory::Region;

/// What is reserved once all weights are there.
#[derive(Debug)]
struct Arena<D: Driver> {
    memory: DeviceAllocation<D>,
    kv: PackedKv,
    regions: usize,
    /// What several blocks add to one result: of attention's splits, (how many, floats), or of a product's slices.
    parts: Region,
    /// Bytes of that which were written since they were overwritten.
    parts_used: usize,
    /// A word that is not zero when something read back was not, and 64 bits of counted bytes.
    status: Region,
    /// The status, as the host reads it.
    told: Host<D>,
    /// For what else the host reads.
    host: Host<D>,
    /// Where each buffer of the plan lies.
    buffers: Vec<Range<usize>>,
    /// Where tokens are chosen, if there are logits.
    sampling: Option<Sampling<D>>,
    /// Rows that lie there.
    read: Option<(Region, Range<usize>)>,
}

/// A device of NVIDIA's.
pub struct Cuda<D: Driver> {
    driver: Arc<D>,
    /// Whether products with many tokens go by wgmma.
    wgmma: bool,
    /// Whether they may.
    #[cfg(test)]
    plain: bool,
    staging: Staging<D>,
    arena: Option<Arena<D>>,
    inputs: Inputs<D>,
    /// Tables of experts' matrices, by where the experts lie.
    experts: HashMap<(usize, usize), Weight<D>>,
    graphs: Graphs<D>,
    /// Rows of logits of the last step.
    outputs: usize,
    /// What is to be overwritten as soon as something else is asked for.
    pending: Vec<args::Place>,
    counters: Counters,
    /// A Weyl sequence: where places are read back.
    place: u64,
}

impl<D: Driver> std::fmt::Debug for Cuda<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("driver", &self.driver.name()).finish_non_exhaustive()
    }
}

/// Numbers of forms, as in `common.cuh`.
fn form(form: OperandType) -> u32 {
    match form {
        OperandType::F32 => 0,
        OperandType::Bf16 => 1,
        OperandType::F16 => 2,
        OperandType::Bytes => unreachable!("no matrix of this backend asks for it"),
    }
}

fn small(size: usize) -> u32 {
    u32::try_from(size).expect("sizes of models are below 2^32")
}

fn shape(grid: [usize; 3], threads: usize, shared: usize) -> Shape {
    Shape { grid: grid.map(small), threads: small(threads), shared: small(shared) }
}

/// Threads of a block that works on `count` values of a row.
fn threads_for(count: usize) -> usize {
    count.next_multiple_of(32).clamp(32, 256)
}

impl<D: Driver> Cuda<D> {
    /// A backend on that device.
    pub fn new(driver: Arc<D>) -> Self {
        Self {
            inputs: Inputs::new(driver.clone()),
            driver,
            wgmma: false,
            #[cfg(test)]
            plain: false,
            staging: Staging::default(),
            arena: None,
            experts: HashMap::new(),
            graphs: Graphs::default(),
            outputs: 0,
            pending: Vec::new(),
            counters: Counters::default(),
            place: 0,
        }
    }

    fn arena(&self) -> &Arena<D> {
        self.arena.as_ref().expect("reserved before the first step")
    }

    fn kv(&self) -> PackedKv {
        self.arena().kv
    }

    /// Room for what several blocks add to one result, until the next op; none if there is not so much.
    fn parts(&mut self, bytes: usize) -> Option<Address> {
        let arena = self.arena.as_mut().expect("reserved before the first step");
        if bytes > arena.parts.bytes() {
            return None;
        }
        arena.parts_used = arena.parts_used.max(bytes);
        let parts = arena.parts;
        Some(self.address(parts))
    }

    fn address(&self, region: Region) -> Address {
        let arena = self.arena();
        let buffer = &arena.buffers[region.buffer()];
        assert!(region.offset() + region.bytes() <= buffer.len(), "the region is not of this arena");
        arena.memory.at() + (buffer.start + region.offset()) as u64
    }

    /// The address of `rows` rows of a buffer.
    fn at(&self, buf: Buf, rows: usize) -> Address {
        self.address(buf.region.part(0, rows * buf.row_bytes()))
    }

    /// Asks for a kernel, after what is to be overwritten.
    fn launch<A: args::Args>(&mut self, kernel: &'static str, shape: Shape, args: &A) {
        self.flush();
        self.ask(kernel, shape, args);
    }

    fn ask<A: args::Args>(&self, kernel: &'static str, shape: Shape, args: &A) {
        if shape.grid.contains(&0) {
            return;
        }
        // SAFETY: each launcher below names the kernel that takes its struct, and `at` checked the rows of every buffer
        // against the plan, the asserts the columns.
        unsafe { self.driver.launch(kernel, shape, std::ptr::from_ref(args).cast(), size_of::<A>()) };
    }

    /// Brings words to where kernels find them.
    fn input(&mut self, input: Input, words: impl ExactSizeIterator<Item = u32> + Clone) -> Address {
        self.inputs.put(input, words)
    }

    fn put_spans(&mut self, batch: &Batch<'_>) -> Address {
        let words = batch.spans.iter().flat_map(|span| {
            let [row, rows, position, table] = [span.row, span.rows, span.position, span.table].map(small);
            [row, rows, position, table, u32::from(span.mask == Mask::Bidirectional)]
        });
        self.input(Input::Spans, Exact(words, 5 * batch.spans.len()))
    }

    /// Brings all of a batch over, so that its ops find it there.
    fn put(&mut self, batch: &Batch<'_>) {
        let Batch { ids, positions, slots, blocks, outputs, position_types, .. } = *batch;
        for (input, words) in [
            (Input::Ids, ids),
            (Input::Positions, positions),
            (Input::Slots, slots),
            (Input::Blocks, blocks),
            (Input::Outputs, outputs),
            (Input::PositionTypes, position_types),
        ] {
            if !words.is_empty() {
                self.input(input, words.iter().copied());
            }
        }
        if !batch.spans.is_empty() {
            self.put_spans(batch);
        }
    }
}

fn linear<D: Driver>(linear: &Linear<Weight<D>>) -> args::Linear {
    args::Linear { weight: linear.weight.matrix(), bias: bias_of(&linear.weight, linear.bias.as_ref()) }
}

/// Where a bias is, checked to be as long as the matrix has rows.
fn bias_of<D: Driver>(weight: &Weight<D>, bias: Option<&Weight<D>>) -> Address {
    assert!(bias.is_none_or(|bias| bias.rows * bias.cols == weight.rows), "bias: columns differ");
    bias.map_or(0, Weight::table)
}

/// An iterator that knows its length.
#[derive(Clone)]
struct Exact<I>(I, usize);

impl<I: Iterator> Iterator for Exact<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1, Some(self.1))
    }
}

impl<I: Iterator> ExactSizeIterator for Exact<I> {}
