//! NVIDIA: [`Cuda`], on a driver that is looked for at run time.
//!
//! The kernels are in `kernels/cuda`; each verb fills in the arguments of one or a few and asks for it. All of a
//! session's activations and cache lie in one piece of plain device memory, planned like the CPU's arena; what a step is
//! told (ids, positions, block tables) goes there through pinned memory, which is overwritten like it.
//!
//! **Invariant:** a row's result is the same bits whatever else is in the batch: the kernels say how. And what is asked
//! for happens in order: an overwrite comes after all use of the memory and before any other, and is waited for before a
//! proof of it is given. Once the device has failed nothing is done any more, and every proof says so.
#![expect(unsafe_code, reason = "asks for kernels; each names the sizes it checked")]

mod args;
#[cfg(feature = "testing")]
pub mod blas;
pub mod driver;
#[cfg(any(test, feature = "testing"))]
pub mod emulated;
mod graphs;
mod inputs;
mod kernels;
pub mod native;
mod products;
#[cfg(feature = "testing")]
pub mod rates;
mod sampling;
#[cfg(test)]
mod sampling_tests;
#[cfg(feature = "testing")]
pub mod search;
#[cfg(test)]
mod tests;
mod weight;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use self::args::{
    AttentionArgs, Cache, CleanArgs, CombineArgs, CopyArgs, CutArgs, EmbedArgs, MixArgs, NormArgs, OrderArgs,
    Place, PlaceArgs, PointArgs, PoolArgs, RopeArgs, RouteArgs, ScrubArgs, VerifyArgs,
};
use self::driver::{Address, Driver, Host, Memory, Shape};
use self::graphs::{Graphs, Key};
use self::inputs::{Input, Inputs};
pub(crate) use self::products::wgmma_agrees;
use self::products::{Multiply, Several, To, product};
use self::sampling::Sampling;
use self::weight::{Staging, Weight};
use super::sample_batch::SampleBatch;
use super::{
    Activation, Attention, AttentionBias, BLOCK, Backend, Batch, Buf, Cap, Counters, Expert, HeadSizes, Kv,
    KvType, LANES, Linear, Norm, NormKind, OperandType, Pooling, Projection, Quantize, Rope, Routed, Routing,
    Scoring, Side,
};
use crate::error::{Error, Result};
use crate::memory::ledger::NotCovered;
use crate::memory::scrub::SAMPLE_BYTES;
use crate::memory::{Layout, Region, Scrubbed, arena::Closed, scrub};
use crate::weights::Tensor;

/// Positions of a split, as in `attention.cu`.
const SPLIT: usize = 256;
/// Queries of a warp there.
const QUERIES: usize = 16;
/// Values of a warp there.
const VALUES: usize = 128;
/// Floats of a split's result there.
const PART: usize = VALUES * QUERIES + 2 * QUERIES;
/// Splits for each processor that have a place for their result.
const PARTS_EACH: usize = 32;
/// Bytes of all of them, at most.
const PARTS_BYTES: usize = 48 << 20;

/// What is reserved once all weights are there.
#[derive(Debug)]
struct Arena<D: Driver> {
    memory: Memory<D>,
    kv: Kv,
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
    /// Rows of the step that are copies.
    copies: usize,
    /// What is to be overwritten as soon as something else is asked for.
    pending: Vec<Place>,
    counters: Counters,
    /// A Weyl sequence: where places are read back.
    place: u64,
}

impl<D: Driver> std::fmt::Debug for Cuda<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda").field("driver", &self.driver.name()).finish_non_exhaustive()
    }
}

/// Bytes from one row of a buffer to the next.
fn row_bytes(buf: Buf) -> usize {
    match buf.form {
        OperandType::F32 => buf.stride * size_of::<f32>(),
        form => form.row_bytes(buf.cols),
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

/// Splits of the longest request, up to a power of two: so that steps stay alike for a while.
fn splits_of(batch: &Batch<'_>) -> usize {
    let last = batch.spans.iter().map(|span| span.position + span.rows).max().unwrap_or(0);
    last.div_ceil(SPLIT).max(1).next_power_of_two()
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
            copies: 0,
            pending: Vec::new(),
            counters: Counters::default(),
            place: 0,
        }
    }

    fn arena(&self) -> &Arena<D> {
        self.arena.as_ref().expect("reserved before the first verb")
    }

    fn kv(&self) -> Kv {
        self.arena().kv
    }

    /// Room for what several blocks add to one result, until the next verb; none if there is not so much.
    fn parts(&mut self, bytes: usize) -> Option<Address> {
        let arena = self.arena.as_mut().expect("reserved before the first verb");
        if bytes > arena.parts.bytes() {
            return None;
        }
        arena.parts_used = arena.parts_used.max(bytes);
        let parts = arena.parts;
        Some(self.address(parts))
    }

    fn address(&self, region: Region) -> Address {
        let memory = &self.arena().memory;
        assert!(region.offset() + region.bytes() <= memory.bytes(), "the region is not of this arena");
        memory.at() + region.offset() as u64
    }

    /// The address of `rows` rows of a buffer.
    fn at(&self, buf: Buf, rows: usize) -> Address {
        self.address(buf.region.part(0, rows * row_bytes(buf)))
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

    /// Overwrites what is pending, and looks at places of it.
    fn flush(&mut self) {
        if let Some(arena) = &mut self.arena {
            arena.read = None;
        }
        if self.pending.is_empty() {
            return;
        }
        const NOTHING: Place = Place { at: 0, bytes: 0, middle: 0 };
        let dirty = self.address(self.arena().status);
        for places in std::mem::take(&mut self.pending).chunks(ScrubArgs::MOST) {
            let mut args =
                ScrubArgs { places: [NOTHING; ScrubArgs::MOST], dirty, count: places.len() as u32 };
            args.places[..places.len()].copy_from_slice(places);
            let most = places.iter().map(|place| place.bytes).max().unwrap_or(0);
            // 16 bytes a thread and turn, some turns each, and no more blocks than keep the device busy
            let blocks = (most / (16 * 256 * 4)).clamp(1, 16 * u64::from(self.driver.processors()));
            self.ask("scrub", shape([blocks as usize, places.len(), 1], 256, 0), &args);
            self.ask("sample", shape([places.len(), 1, 1], 32, 0), &args);
        }
    }

    /// Overwrites what processors keep between kernels, after what is pending.
    fn clean(&mut self) {
        let shared_bytes = self.driver.shared_bytes() / 1024 * 1024;
        let args = CleanArgs { shared_bytes };
        let blocks = self.driver.processors() as usize;
        self.launch("clean", shape([blocks, 1, 1], 1024, shared_bytes as usize), &args);
    }

    /// Puts memory down to be overwritten.
    fn forget(&mut self, at: Address, bytes: usize) -> Asked {
        if bytes == 0 {
            return Asked::default();
        }
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        self.place = self.place.wrapping_add(STEP);
        let spare = bytes.saturating_sub(SAMPLE_BYTES) as u128;
        let middle = ((u128::from(self.place) * (spare + 1)) >> 64) as u64 / 4 * 4;
        self.pending.push(Place { at, bytes: bytes as u64, middle });
        Asked { bytes: bytes as u64, samples: 3, dirty: false }
    }

    /// Waits until all that was put down is overwritten: the proof of it.
    fn prove(&mut self, asked: Asked) -> Scrubbed {
        let dirty = self.arena.is_some() && self.settle();
        self.proof(asked.bytes, asked.samples, asked.dirty | dirty)
    }

    /// Puts down what steps leave besides their buffers: inputs, questions, scratch, what processors keep between kernels.
    fn forget_threads(&mut self) -> Asked {
        self.graphs.abandon(&*self.driver);
        let mut asked = self.inputs.forget(&mut self.pending).and(self.forget_sampling());
        if let Some(arena) = &mut self.arena {
            let used = std::mem::take(&mut arena.parts_used);
            let (host, bytes) = (arena.host.at(), arena.host.bytes());
            let at = arena.memory.at() + arena.parts.offset() as u64;
            asked = asked.and(self.forget(at, used));
            self.clean();
            self.driver.synchronize();
            // SAFETY: ours alone, and the device is done with it.
            asked = asked.and(scrub(unsafe { std::slice::from_raw_parts_mut(host, bytes) }).into());
        }
        asked
    }

    /// A proof; of a device that failed, that there is none.
    fn proof(&self, bytes: u64, samples: u64, dirty: bool) -> Scrubbed {
        match self.driver.failed() {
            true => Scrubbed::by_device(0, 0, true),
            false => Scrubbed::by_device(bytes, samples, dirty),
        }
    }

    /// Waits for all that was asked for; says whether something that was read back was not zero, or may not be.
    fn settle(&mut self) -> bool {
        self.flush();
        let words = self.read_status();
        words[0] != 0 || self.driver.failed()
    }

    /// The first words of the status, once all is done.
    fn read_status(&self) -> [u32; 4] {
        let Some(arena) = &self.arena else { return [0; 4] };
        let mut words = [0; 4];
        // SAFETY: both have 16 bytes; what is read is looked at once it is there.
        unsafe {
            self.driver.read(self.address(arena.status), arena.told.at(), 16);
            self.driver.synchronize();
            std::ptr::copy_nonoverlapping(arena.told.at(), words.as_mut_ptr().cast(), 16);
        }
        words
    }

    /// Copies rows to the host; false if there is no memory for them.
    fn bring(&mut self, buf: Buf, rows: Range<usize>) -> bool {
        let stride = row_bytes(buf);
        let bytes = rows.len() * stride;
        let from = self.address(buf.region.part(rows.start * stride, bytes));
        let arena = self.arena.as_mut().expect("reserved before the first verb");
        if arena.host.bytes() < bytes {
            match Host::new(&self.driver, bytes) {
                Ok(host) => arena.host = host,
                Err(_) => {
                    self.driver.fail();
                    return false;
                }
            }
        }
        // SAFETY: both have the bytes, and the device has written them when `synchronize` returns.
        unsafe {
            self.driver.read(from, arena.host.at(), bytes);
            self.driver.synchronize();
            if self.driver.failed() {
                arena.host.at().write_bytes(0, bytes);
            }
        }
        arena.read = Some((buf.region, rows));
        true
    }

    /// Brings words to where kernels find them.
    fn input(&mut self, input: Input, words: impl ExactSizeIterator<Item = u32> + Clone) -> Address {
        self.inputs.put(input, words)
    }

    fn put_spans(&mut self, batch: &Batch<'_>) -> Address {
        let words =
            batch.spans.iter().flat_map(|span| [span.row, span.rows, span.position, span.table].map(small));
        self.input(Input::Spans, Exact(words, 4 * batch.spans.len()))
    }

    /// Brings all of a batch over, so that its verbs find it there.
    fn put(&mut self, batch: &Batch<'_>) {
        let Batch { ids, positions, slots, blocks, outputs, .. } = *batch;
        for (input, words) in [
            (Input::Ids, ids),
            (Input::Positions, positions),
            (Input::Slots, slots),
            (Input::Blocks, blocks),
            (Input::Outputs, outputs),
        ] {
            self.input(input, words.iter().copied());
        }
        self.put_spans(batch);
    }

    fn cache(&self) -> Cache {
        let kv = self.kv();
        let layer_bytes = kv.layer_bytes();
        Cache {
            base: self.address(kv.region),
            block_bytes: (kv.layers * layer_bytes) as u64,
            layer_bytes: layer_bytes as u64,
            kind: match kv.cache {
                KvType::F32 => 0,
                KvType::F16 => 1,
                KvType::Bf16 => 2,
                KvType::Int8 => 3,
            },
            kv_heads: small(kv.kv_heads),
            head_dim: small(kv.head_dim),
            value_dim: small(kv.value_dim),
            key_bytes: small(kv.bytes_of(Side::K)),
            value_bytes: small(kv.bytes_of(Side::V)),
        }
    }

    /// The first products of an MLP.
    fn inner(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        gate: &Linear<Weight<D>>,
        up: Option<&Linear<Weight<D>>>,
        out: Buf,
    ) {
        assert!(gate.weight.rows == out.cols && gate.weight.cols == x.cols, "MLP: columns differ");
        for up in up.iter().map(|up| &up.weight) {
            let same = (up.rows, up.cols) == (gate.weight.rows, gate.weight.cols);
            assert!(same && up.format() == gate.weight.format(), "MLP: gate and up differ");
        }
        self.counters.weight_bytes += gate.weight.bytes() + up.map_or(0, |up| up.weight.bytes());
        let to = (self.at(out, rows), row_bytes(out));
        let products = [gate, up.unwrap_or(gate)].map(|of| product(linear(of), out.cols, to));
        self.multiply(&Multiply {
            products: &products[..if up.is_some() { 2 } else { 1 }],
            pair: up.is_some(),
            format: gate.weight.format(),
            cols: x.cols,
            tokens: rows,
            x: (x, self.at(x, rows)),
            out_form: out.form,
            to: To::Activated(activation),
            several: Several::ONE,
        });
    }

    fn normalise(
        &mut self,
        rows: usize,
        x: Buf,
        norm: &Norm<Weight<D>>,
        width: usize,
        out: Buf,
        add: Option<f32>,
    ) {
        let cols = x.cols;
        assert!(width > 0 && cols.is_multiple_of(width) && out.cols == cols, "norm: columns differ");
        let table = |weight: &Option<Weight<D>>| {
            weight.as_ref().map_or((0, 1), |weight| (weight.table(), weight.cols))
        };
        let ((weight, weight_len), (bias, bias_len)) = (table(&norm.weight), table(&norm.bias));
        for (table, len) in [(weight, weight_len), (bias, bias_len)] {
            assert!(table == 0 || len == cols || len == width, "norm: columns differ");
        }
        let args = NormArgs {
            x: self.at(x, rows),
            weight,
            bias,
            out: self.at(out, rows),
            x_stride: small(x.stride),
            width: small(width),
            pieces: small(cols / width),
            weight_len: small(weight_len),
            bias_len: small(bias_len),
            kind: match norm.kind {
                NormKind::Identity => 0,
                NormKind::Rms => 1,
                NormKind::Layer => 2,
            },
            eps: norm.eps,
            add: u32::from(add.is_some()),
            out_stride: small(row_bytes(out)),
            out_form: form(out.form),
            pad: u32::from(out.stride > out.cols && width == cols),
            scale: add.unwrap_or(0.0),
        };
        let threads = (width / 4).next_multiple_of(32).clamp(32, 1024);
        self.launch("norm", shape([rows, cols / width, 1], threads, 32 * 4), &args);
    }

    fn lookup(&mut self, input: Input, ids: &[u32], table: &Weight<D>, scale: f32, out: Buf, add: bool) {
        assert!(
            out.cols == table.cols && ids.iter().all(|&id| (id as usize) < table.rows),
            "ids outside the table"
        );
        let args = EmbedArgs {
            table: table.matrix(),
            ids: self.input(input, ids.iter().copied()),
            out: self.at(out, ids.len()),
            cols: small(out.cols),
            out_stride: small(out.stride),
            scale,
            add: u32::from(add),
        };
        self.launch("embed", shape([ids.len(), 1, 1], threads_for(out.cols), 0), &args);
    }

    fn rotate(
        &mut self,
        batch: &Batch<'_>,
        (q, k, v): (Buf, Buf, Option<Buf>),
        rope: Option<&Rope<Weight<D>>>,
        layer: usize,
    ) {
        let (rows, kv) = (batch.positions.len(), self.kv());
        assert!(
            k.cols == kv.kv_heads * kv.head_dim && q.cols.is_multiple_of(kv.head_dim),
            "rope: columns differ"
        );
        assert!(rope.is_none_or(|rope| rope.dims <= kv.head_dim), "rope: more than a head");
        if let Some(rope) = rope {
            self.graphs.limits.positions = self.graphs.limits.positions.min(rope.table.rows);
            let known = batch.positions.iter().all(|&position| (position as usize) < rope.table.rows);
            assert!(known, "rope: a position behind the table");
        }
        let slots = if v.is_some() { self.input(Input::Slots, batch.slots.iter().copied()) } else { 0 };
        let q_heads = q.cols / kv.head_dim;
        let args = RopeArgs {
            cache: self.cache(),
            q: self.at(q, rows),
            k: self.at(k, rows),
            v: v.map_or(0, |v| self.at(v, rows)),
            table: rope.map_or(0, |rope| rope.table.table()),
            positions: self.input(Input::Positions, batch.positions.iter().copied()),
            slots,
            layer: small(layer),
            q_stride: small(q.stride),
            k_stride: small(k.stride),
            v_stride: v.map_or(0, |v| small(v.stride)),
            dims: rope.map_or(0, |rope| small(rope.dims)),
            interleaved: u32::from(rope.is_some_and(|rope| rope.interleaved)),
            q_heads: small(q_heads),
        };
        let heads = kv.kv_heads + if rope.is_some() { q_heads } else { 0 };
        self.launch("rope_store", shape([rows, heads, 1], 32, 0), &args);
    }

    fn point(&mut self, rows: usize, x: Buf, kind: u32, [scale, cap]: [f32; 2], activation: Activation) {
        let args = PointArgs {
            x: self.at(x, rows),
            cols: small(x.cols),
            stride: small(x.stride),
            kind,
            scale,
            cap,
            activation: activation.into(),
        };
        self.launch("point", shape([rows, 1, 1], threads_for(x.cols), 0), &args);
    }

    fn copy_rows(&mut self, rows: usize, of: Address, x: Buf, (out, first): (Buf, usize)) {
        let args = CopyArgs {
            x: self.address(x.region),
            rows: of,
            out: self.at(out, rows),
            cols: small(x.cols),
            x_stride: small(x.stride),
            out_stride: small(out.stride),
            out_first: small(first),
        };
        self.launch("copy_rows", shape([rows, 1, 1], threads_for(x.cols), 0), &args);
    }

    /// The table of the experts' matrices and biases, made when it is first asked for.
    fn table(&mut self, experts: &[Expert<Weight<D>>]) -> Result<Address> {
        let key = (experts.as_ptr() as usize, experts.len());
        if !self.experts.contains_key(&key) {
            let all = experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
            let linears: Vec<args::Linear> = all.map(linear).collect();
            let words = linears.iter().flat_map(|of| {
                let m = of.weight;
                let halves = |value: u64| [value as u32, (value >> 32) as u32];
                let [a, b] = [m.data, m.scales].map(halves);
                let [c, d] = halves(of.bias);
                [a[0], a[1], b[0], b[1], m.rows, m.cols, m.format, m.stride, c, d]
            });
            let words: Vec<f32> = words.map(f32::from_bits).collect();
            let table = Weight::from_table(&self.driver, &mut self.staging, &words, 30)?;
            self.staging = Staging::default();
            self.experts.insert(key, table);
        }
        Ok(self.experts[&key].table())
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

impl<D: Driver> Backend for Cuda<D> {
    type Weight = Weight<D>;

    fn name(&self) -> String {
        self.driver.name().into()
    }

    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64 {
        weight::bytes_for(tensor, quantize)
    }

    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Weight<D>> {
        Weight::from_tensor(&self.driver, &mut self.staging, tensor, quantize)
    }

    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Result<Weight<D>> {
        Weight::from_table(&self.driver, &mut self.staging, &values, cols)
    }

    fn form(&self, readers: &[&Weight<D>]) -> OperandType {
        let forms = readers.iter().map(|weight| weight.form());
        forms.reduce(|a, b| if a == b { a } else { OperandType::F32 }).expect("somebody reads it")
    }

    fn scratch_bytes(logits: Option<(usize, usize)>) -> u64 {
        (PARTS_BYTES + logits.map_or(0, sampling::scratch_bytes)) as u64
    }

    fn reserve(&mut self, mut layout: Layout, kv: Kv, logits: Option<Buf>) -> Result<()> {
        self.driver.synchronize();
        self.staging = Staging::default();
        self.wgmma = self.driver.trusts_wgmma(wgmma_agrees);
        #[cfg(test)]
        {
            self.wgmma &= !self.plain;
        }
        let parts_bytes = self.driver.processors() as usize * PARTS_EACH * PART * size_of::<f32>();
        let needed = layout.bytes() as u64;
        let what = "activations and KV cache";
        let too_large = || Error::Memory { needed, what, limit: "that is more than there can be".into() };
        let parts = layout.region(parts_bytes.min(PARTS_BYTES)).ok_or_else(too_large)?;
        let status = layout.region(64).ok_or_else(too_large)?;
        let sampling = logits.filter(|logits| logits.region.bytes() > 0);
        let sampling =
            sampling.map(|logits| Sampling::plan(&self.driver, &mut layout, logits)).transpose()?;
        let memory = Memory::new(&self.driver, layout.bytes(), what)?;
        let (told, host) = (Host::new(&self.driver, 16)?, Host::new(&self.driver, 4096)?);
        let regions = layout.regions();
        self.arena = Some(Arena {
            memory,
            kv,
            regions,
            parts,
            parts_used: 0,
            status,
            told,
            host,
            sampling,
            read: None,
        });
        // it holds what the last owner left
        self.pending.push(Place { at: self.address(status), bytes: 16, middle: 0 });
        self.flush();
        let _ = self.scrub_all();
        Ok(())
    }

    fn padded_rows(&self, rows: usize) -> usize {
        graphs::bucket(rows)
    }

    fn begin(&mut self, batch: &Batch<'_>) -> bool {
        let known = self.graphs.knows(batch);
        self.copies = batch.ids.len() - batch.tokens();
        self.outputs = batch.outputs.len();
        self.put(batch);
        if !known {
            return true;
        }
        let key = Key {
            rows: batch.ids.len(),
            outputs: batch.outputs.len(),
            splits: splits_of(batch),
            generation: self.inputs.generation(),
        };
        self.flush();
        if let Some((counted, parts_used)) = self.graphs.replay(key, &*self.driver) {
            for &block in batch.blocks {
                let _ = self.kv().block(block); // panics outside the cache
            }
            self.counters.steps += counted.steps;
            self.counters.tokens += batch.tokens() as u64;
            self.counters.weight_bytes += counted.weight_bytes;
            let arena = self.arena.as_mut().expect("reserved before the first verb");
            arena.parts_used = arena.parts_used.max(parts_used);
            self.copies = 0;
            return false;
        }
        self.graphs.record(key, self.counters, &*self.driver);
        true
    }

    fn end(&mut self) {
        self.copies = 0;
        let parts_used = self.arena().parts_used;
        self.graphs.recorded(self.counters, parts_used, &*self.driver);
    }

    fn embed(&mut self, ids: &[u32], table: &Weight<D>, scale: f32, out: Buf) {
        self.graphs.limits.ids = table.rows;
        self.counters.steps += 1;
        self.counters.tokens += (ids.len() - self.copies) as u64;
        self.counters.weight_bytes += ids.len() as u64 * (table.bytes() / table.rows.max(1) as u64);
        self.lookup(Input::Ids, ids, table, scale, out, false);
    }

    fn look_up(&mut self, ids: &[u32], table: &Weight<D>, out: Buf) {
        self.counters.weight_bytes += ids.len() as u64 * (table.bytes() / table.rows.max(1) as u64);
        self.lookup(Input::Ids, ids, table, 1.0, out, false);
    }

    fn add_embed(&mut self, ids: &[u32], table: &Weight<D>, out: Buf) {
        self.lookup(Input::Lookup, ids, table, 1.0, out, true);
    }

    fn norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight<D>>, out: Buf) {
        self.normalise(rows, x, norm, x.cols, out, None);
    }

    fn add_norm(&mut self, rows: usize, x: Buf, norm: &Norm<Weight<D>>, scale: f32, out: Buf) {
        self.normalise(rows, x, norm, x.cols, out, Some(scale));
    }

    fn group_norm_in_place(&mut self, rows: usize, x: Buf, norm: &Norm<Weight<D>>, width: usize) {
        self.normalise(rows, x, norm, width, x, None);
    }

    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Weight<D>>]) {
        // those that are alike go together: a small matrix alone would leave most of a device idle
        let alike = |a: &Projection<'_, Weight<D>>, b: &Projection<'_, Weight<D>>| {
            a.add == b.add && a.weight.format() == b.weight.format()
        };
        for projections in projections.chunk_by(alike).flat_map(|all| all.chunks(args::LinearArgs::MOST)) {
            let like = &projections[0];
            let mut products = [args::Product::NONE; args::LinearArgs::MOST];
            for (to, Projection { weight, bias, out, .. }) in products.iter_mut().zip(projections) {
                assert!(out.cols == weight.rows && x.cols == weight.cols, "linear: columns differ");
                self.counters.weight_bytes += weight.bytes();
                let linear = args::Linear { weight: weight.matrix(), bias: bias_of(weight, *bias) };
                *to = product(linear, weight.rows, (self.at(*out, rows), row_bytes(*out)));
            }
            self.multiply(&Multiply {
                products: &products[..projections.len()],
                pair: false,
                format: like.weight.format(),
                cols: x.cols,
                tokens: rows,
                x: (x, self.at(x, rows)),
                out_form: OperandType::F32,
                to: like.add.map_or(To::Set, To::Add),
                several: Several::ONE,
            });
        }
    }

    fn per_head_linear(
        &mut self,
        rows: usize,
        x: Buf,
        heads: usize,
        weight: &Weight<D>,
        pieces: Buf,
        out: Buf,
    ) {
        let HeadSizes { ins, outs, from, to } =
            HeadSizes::of(heads, [weight.rows, weight.cols], x, pieces, out);
        self.counters.weight_bytes += weight.bytes();
        let args = CutArgs {
            x: self.at(x, rows),
            pieces: self.at(pieces, heads * rows),
            out: self.at(out, rows),
            rows: small(rows),
            from: small(from),
            to: small(to),
            ins: small(ins),
            x_stride: small(x.stride),
            out_stride: small(out.stride),
            pieces_stride: small(row_bytes(pieces)),
            pieces_form: form(pieces.form),
        };
        self.launch("cut", shape([rows, heads, 1], 128, 0), &args);
        let linear = args::Linear { weight: weight.matrix(), bias: 0 };
        let behind = self.at(out, rows) + ((from - ins) * size_of::<f32>()) as u64;
        self.multiply(&Multiply {
            products: &[product(linear, outs, (behind, row_bytes(out)))],
            pair: false,
            format: weight.format(),
            cols: ins,
            tokens: rows,
            x: (pieces, args.pieces),
            out_form: OperandType::F32,
            to: To::Set,
            several: Several {
                count: heads,
                x_each: rows * row_bytes(pieces),
                out_each: to * size_of::<f32>(),
                tiles_each: outs / LANES,
                ..Several::ONE
            },
        });
    }

    fn concat(&mut self, rows: usize, parts: [Buf; 2], out: Buf) {
        assert_eq!(parts[0].cols + parts[1].cols, out.cols, "join: columns differ");
        self.copy_rows(rows, 0, parts[0], (out, 0));
        self.copy_rows(rows, 0, parts[1], (out, parts[0].cols));
    }

    fn activated(&mut self, rows: usize, x: Buf, activation: Activation, up: &Linear<Weight<D>>, out: Buf) {
        self.inner(rows, x, activation, up, None, out);
    }

    fn gated(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        gate: &Linear<Weight<D>>,
        up: &Linear<Weight<D>>,
        out: Buf,
    ) {
        self.inner(rows, x, activation, gate, Some(up), out);
    }

    fn act_and_mul(&mut self, rows: usize, activation: Activation, gate: Buf, up: Option<Buf>, out: Buf) {
        assert!(gate.cols == out.cols && up.is_none_or(|up| up.cols == out.cols), "MLP: columns differ");
        let args = CombineArgs {
            gate: self.at(gate, rows),
            up: up.map_or(0, |up| self.at(up, rows)),
            out: self.at(out, rows),
            cols: small(out.cols),
            gate_stride: small(gate.stride),
            up_stride: up.map_or(0, |up| small(up.stride)),
            out_stride: small(row_bytes(out)),
            out_form: form(out.form),
            activation: activation.into(),
        };
        self.launch("combine", shape([rows, 1, 1], threads_for(out.cols), 0), &args);
    }

    fn route(&mut self, rows: usize, routing: &Routing, correction: Option<&Weight<D>>, with: &Routed) {
        let (all, per_token) = (with.scores.cols, with.experts.cols);
        assert!(routing.per_token == per_token && per_token <= all, "route: more choices than experts");
        assert!(correction.is_none_or(|correction| correction.cols == all), "route: columns differ");
        let groups = routing.groups.unwrap_or(super::Groups { count: 1, chosen: 1, best: 1 });
        let args = RouteArgs {
            scores: self.at(with.scores, rows),
            correction: correction.map_or(0, Weight::table),
            experts: self.at(with.experts, rows),
            weights: self.at(with.weights, rows),
            all: small(all),
            per_token: small(per_token),
            scoring: match routing.scoring {
                Scoring::Softmax => 0,
                Scoring::Chosen => 1,
                Scoring::Sigmoid => 2,
                Scoring::Mixer { .. } => 3,
            },
            normalized: u32::from(routing.normalized),
            groups: small(groups.count),
            chosen_groups: small(groups.chosen),
            best_of_group: small(groups.best),
            scale: routing.scale,
            jitter: if let Scoring::Mixer { jitter } = routing.scoring { jitter } else { 0.0 },
        };
        let shared = (2 * all + groups.count) * 4;
        self.launch("route", shape([rows, 1, 1], 32, shared), &args);
        let args = PlaceArgs {
            experts: args.experts,
            places: self.at(with.places, rows),
            starts: self.at(with.starts, 1),
            pairs: small(rows * per_token),
            all: small(all),
        };
        self.launch("place", shape([1, 1, 1], all.next_multiple_of(32).min(1024), 0), &args);
    }

    fn experts(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        experts: &[Expert<Weight<D>>],
        with: &Routed,
    ) {
        let (pairs, count) = (rows * with.experts.cols, with.experts.cols);
        assert!(x.form == with.x.form, "experts: forms differ");
        assert!(
            x.cols == with.x.cols && x.cols == with.out.cols && experts.len() + 1 == with.starts.cols,
            "experts: columns differ"
        );
        let like = &experts[0];
        for Expert { gate, up, down } in experts {
            let [gate, up, down] = [gate, up, down].map(|linear| &linear.weight);
            let same = (gate.rows, gate.cols) == (with.inner.cols, x.cols)
                && (up.rows, up.cols, up.format()) == (gate.rows, gate.cols, gate.format())
                && (down.rows, down.cols) == (x.cols, gate.rows)
                && gate.format() == like.gate.weight.format()
                && down.format() == like.down.weight.format();
            assert!(same, "experts: they differ");
        }
        let Ok(table) = self.table(experts) else {
            return self.driver.fail(); // no memory for a few kilobytes
        };
        let of_one = [&like.gate, &like.up, &like.down].map(|linear| linear.weight.bytes());
        let args = OrderArgs {
            x: self.at(x, rows),
            places: self.at(with.places, rows),
            starts: self.at(with.starts, 1),
            out: self.at(with.x, pairs),
            read_bytes: self.address(self.arena().status) + 8,
            bytes_each: of_one.iter().sum(),
            row_bytes: small(row_bytes(x)),
            count: small(count),
            places_stride: small(count),
            experts: small(experts.len()),
        };
        self.launch("order", shape([rows, count, 1], 128, 0), &args);
        let several = Several { count: experts.len(), table, starts: args.starts, ..Several::ONE };
        let to = (self.at(with.inner, pairs), row_bytes(with.inner));
        self.multiply(&Multiply {
            products: &[product(args::Linear::NONE, with.inner.cols, to)],
            pair: true,
            format: like.gate.weight.format(),
            cols: x.cols,
            tokens: rows,
            x: (with.x, args.out),
            out_form: with.inner.form,
            to: To::Activated(activation),
            several,
        });
        let to = (self.at(with.out, pairs), row_bytes(with.out));
        self.multiply(&Multiply {
            products: &[product(args::Linear::NONE, x.cols, to)],
            pair: false,
            format: like.down.weight.format(),
            cols: with.inner.cols,
            tokens: rows,
            x: (with.inner, self.at(with.inner, pairs)),
            out_form: OperandType::F32,
            to: To::Set,
            several: Several { from_table: 2, ..several },
        });
    }

    fn moe_combine(&mut self, rows: usize, with: &Routed, add: Option<f32>, out: Buf) {
        assert_eq!(with.out.cols, out.cols, "mix: columns differ");
        let count = with.experts.cols;
        let args = MixArgs {
            from: self.at(with.out, rows * count),
            places: self.at(with.places, rows),
            weights: self.at(with.weights, rows),
            out: self.at(out, rows),
            cols: small(out.cols),
            from_stride: small(with.out.stride),
            out_stride: small(out.stride),
            count: small(count),
            weights_stride: small(with.weights.stride),
            places_stride: small(with.places.stride),
            sigmoid: 0,
            add: u32::from(add.is_some()),
            scale: add.unwrap_or(0.0),
        };
        self.launch("mix", shape([rows, 1, 1], threads_for(out.cols), 0), &args);
    }

    fn add_gated(&mut self, rows: usize, x: Buf, gate: Buf, scale: f32, out: Buf) {
        assert!(x.cols == out.cols && gate.cols == 1, "gate: columns differ");
        let args = MixArgs {
            from: self.at(x, rows),
            places: 0,
            weights: self.at(gate, rows),
            out: self.at(out, rows),
            cols: small(out.cols),
            from_stride: small(x.stride),
            out_stride: small(out.stride),
            count: 1,
            weights_stride: small(gate.stride),
            places_stride: 0,
            sigmoid: 1,
            add: 1,
            scale,
        };
        self.launch("mix", shape([rows, 1, 1], threads_for(out.cols), 0), &args);
    }

    fn rope(&mut self, batch: &Batch<'_>, q: Buf, k: Buf, rope: &Rope<Weight<D>>) {
        self.rotate(batch, (q, k, None), Some(rope), 0);
    }

    fn rope_store(
        &mut self,
        batch: &Batch<'_>,
        layer: usize,
        q: Buf,
        k: Buf,
        v: Buf,
        rope: Option<&Rope<Weight<D>>>,
    ) {
        let (rows, kv) = (batch.positions.len(), self.kv());
        assert!(
            v.cols == kv.kv_heads * kv.value_dim && batch.slots.len() == rows && layer < kv.layers,
            "rope: rows or layer differ"
        );
        for &slot in batch.slots.iter().filter(|&&slot| slot != Batch::NOWHERE) {
            let _ = kv.block(slot / BLOCK as u32); // panics outside the cache
        }
        self.rotate(batch, (q, k, Some(v)), rope, layer);
    }

    fn attention(
        &mut self,
        batch: &Batch<'_>,
        shape: Attention,
        biases: AttentionBias<'_, Weight<D>>,
        q: Buf,
        out: Buf,
    ) {
        let (rows, kv) = (batch.ids.len(), self.kv());
        let AttentionBias { sinks, distances } = biases;
        let reach = distances.map(|distances| distances.rows * distances.cols / shape.heads / 2);
        shape.check(batch, &kv, [q, out], sinks.map(|sinks| sinks.cols), reach);
        let longest = batch.spans.iter().map(|span| span.rows).max().unwrap_or(0);
        let group = shape.heads / kv.kv_heads;
        let each = group.min(QUERIES);
        let (sets, pieces) = (group.div_ceil(each), kv.value_dim.div_ceil(VALUES));
        let (tiles, y) = (longest.div_ceil(QUERIES / each), kv.kv_heads * sets * pieces);
        let splits = splits_of(batch);
        let places = batch.spans.len() * tiles * y * splits;
        // where there is little to do each split has a block, be it the only one
        let few = batch.spans.len() * tiles * y < 8 * self.driver.processors() as usize;
        let wanted = (splits > 1 || few) && kv.cache != KvType::F32;
        let parts = if wanted { self.parts(places * PART * size_of::<f32>()) } else { None };
        let split = parts.is_some();
        let args = AttentionArgs {
            cache: self.cache(),
            q: self.at(q, rows),
            out: self.at(out, rows),
            spans: self.put_spans(batch),
            blocks: self.input(Input::Blocks, batch.blocks.iter().copied()),
            sinks: sinks.map_or(0, Weight::table),
            distances: distances.map_or(0, Weight::table),
            parts: parts.unwrap_or(0),
            layer: small(shape.layer),
            heads: small(shape.heads),
            q_stride: small(q.stride),
            out_stride: small(row_bytes(out)),
            out_form: form(out.form),
            causal: u32::from(shape.causal),
            window: shape.window.map_or(1 << 31, |window| small(window.min(1 << 31))),
            reach: small(reach.unwrap_or(0)),
            scale: shape.scale,
            softcap: shape.softcap.unwrap_or(0.0),
            tiles: small(tiles),
            pieces: small(pieces),
            splits: small(splits),
        };
        let [by_warps, in_shared] = match kv.cache {
            KvType::F32 => {
                let grid = [longest, shape.heads, batch.spans.len()];
                let shared = (BLOCK + kv.value_dim) * 4;
                return self.launch("attention_plain", self::shape(grid, 32, shared), &args);
            }
            KvType::F16 => ["attention_f16", "attention_shared_f16"],
            KvType::Bf16 => ["attention_bf16", "attention_shared_bf16"],
            KvType::Int8 => ["attention_int8", "attention_shared_int8"],
        };
        let queries = kv.padded_dim(Side::K) / 16 * 512;
        if split {
            let grid = [tiles, y, batch.spans.len() * splits];
            // as `attention_shared` lays it out
            let keys = SPLIT * (kv.padded_dim(Side::K) * kv.cache.bytes() + 32);
            let values = SPLIT * kv.padded_dim(Side::V).min(VALUES) * kv.cache.bytes();
            let shared = queries + SPLIT / BLOCK * 32 * 32 * 4 + keys + values;
            if tiles == 1 && shared <= self.driver.shared_bytes() as usize {
                self.launch(in_shared, self::shape(grid, 128, shared), &args);
            } else {
                self.launch(by_warps, self::shape(grid, 32, queries), &args);
            }
            let grid = [tiles, y, batch.spans.len()];
            return self.launch("attention_merge", self::shape(grid, 32, 0), &args);
        }
        let of_warp = queries + VALUES * QUERIES * 4;
        let warps = tiles.min(4).min(self.driver.shared_bytes() as usize / of_warp).max(1);
        let grid = [tiles.div_ceil(warps), y, batch.spans.len()];
        self.launch(by_warps, self::shape(grid, 32 * warps, warps * of_warp), &args);
    }

    fn scale(&mut self, rows: usize, x: Buf, scale: f32, cap: Cap) {
        let (kind, cap) = match cap {
            Cap::None => (1, 0.0),
            Cap::Soft(cap) => (2, cap),
            Cap::Hard(cap) => (3, cap),
        };
        self.point(rows, x, kind, [scale, cap], Activation::Relu);
    }

    fn activate(&mut self, rows: usize, x: Buf, activation: Activation) {
        self.point(rows, x, 0, [0.0; 2], activation);
    }

    fn pool(&mut self, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf) {
        assert!(x.cols == out.cols && texts.iter().all(|text| !text.is_empty()), "pool: texts");
        for text in texts {
            let _ = self.at(x, text.end as usize);
        }
        let ends = texts.iter().flat_map(|text| [text.start, text.end]);
        let args = PoolArgs {
            x: self.address(x.region),
            texts: self.input(Input::Texts, Exact(ends, 2 * texts.len())),
            out: self.at(out, texts.len()),
            cols: small(x.cols),
            x_stride: small(x.stride),
            out_stride: small(out.stride),
            kind: match pooling {
                Pooling::First => 0,
                Pooling::Last => 1,
                Pooling::Mean => 2,
                Pooling::MeanSqrtLen => 3,
                Pooling::Max => 4,
                Pooling::Weighted { .. } => 5,
            },
            from: if let Pooling::Weighted { from } = pooling { from } else { 0 },
        };
        self.launch("pool", shape([texts.len(), 1, 1], threads_for(x.cols), 0), &args);
    }

    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        assert_eq!(x.cols, out.cols, "gather: columns differ");
        for &row in rows {
            let _ = self.at(x, row as usize + 1);
        }
        let of = self.input(Input::Outputs, rows.iter().copied());
        self.copy_rows(rows.len(), of, x, (out, 0));
    }

    fn read(&mut self, buf: Buf, row: usize) -> &[f32] {
        let stride = row_bytes(buf);
        let there = self.arena().read.clone();
        let known = there.filter(|(region, rows)| *region == buf.region && rows.contains(&row));
        let first = match known {
            Some((_, rows)) => rows.start,
            None => {
                self.flush();
                // who reads a row of logits reads those behind it too
                let end = self.outputs.max(row + 1).min(buf.region.bytes() / stride).max(row + 1);
                if !self.bring(buf, row..end) {
                    return &[];
                }
                row
            }
        };
        let at = (row - first) * stride;
        // SAFETY: `bring` saw to it that the row is there.
        unsafe { std::slice::from_raw_parts(self.arena().host.at().add(at).cast::<f32>(), buf.cols) }
    }

    fn samples_on_device(&self) -> bool {
        self.arena().sampling.is_some()
    }

    fn sample_on_device(&mut self, logits: Buf, questions: &mut SampleBatch) {
        self.answer(logits, questions);
    }

    fn scrub_steps(&mut self, used: impl Iterator<Item = (Buf, usize)>) -> (u64, Scrubbed) {
        self.graphs.abandon(&*self.driver);
        let (mut regions, mut asked) = (1, Asked::default());
        for (buf, rows) in used {
            let region = buf.rows(rows);
            asked = asked.and(self.forget(self.address(region), region.bytes()));
            regions += 1;
        }
        asked = asked.and(self.forget_threads());
        (regions, self.prove(asked))
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.flush();
        let [from, to] = [from, to].map(|block| self.kv().block(block));
        assert_ne!(from, to, "a block to itself");
        // SAFETY: both are in the cache, and of one size.
        unsafe { self.driver.copy(self.address(from), self.address(to), from.bytes()) };
    }

    fn arithmetic(&self) -> &'static str {
        "cuda"
    }

    fn scrub_blocks(&mut self, blocks: &[u32]) -> Option<Scrubbed> {
        self.graphs.abandon(&*self.driver);
        let mut sum = Asked::default();
        for &block in blocks {
            let region = self.kv().block(block);
            sum = sum.and(self.forget(self.address(region), region.bytes()));
        }
        (!blocks.is_empty()).then(|| self.prove(sum))
    }

    fn scrub_all(&mut self) -> Option<Scrubbed> {
        let arena = self.arena.as_ref()?;
        let (at, bytes, status) = (arena.memory.at(), arena.memory.bytes(), arena.status);
        self.pending.clear(); // it is part of this
        // all but the status, which tells how it went
        let before = self.forget(at, status.offset());
        let behind = status.offset() + 16;
        let asked = before.and(self.forget(at + behind as u64, bytes - behind)).and(self.forget_threads());
        Some(self.prove(asked))
    }

    fn counters(&self) -> Counters {
        let [_, _, low, high] = if self.experts.is_empty() { [0; 4] } else { self.read_status() };
        let by_experts = u64::from(low) | u64::from(high) << 32;
        Counters { weight_bytes: self.counters.weight_bytes + by_experts, ..self.counters }
    }

    fn protection(&self) -> (u64, Vec<NotCovered>) {
        // the device's memory is not swapped, dumped or forked; but it is out of the reach of the host's ciphers
        let unsealed = self.arena.as_ref().map(|_| NotCovered::IdleCacheNotSealed);
        let arena = self.arena.as_ref().filter(|_| self.driver.failed());
        let failed = arena.map(|arena| NotCovered::DeviceFailed { bytes: arena.memory.bytes() as u64 });
        (0, failed.into_iter().chain(unsealed).collect())
    }

    fn failed(&self) -> bool {
        self.driver.failed()
    }

    fn close(mut self) -> Option<Closed> {
        let all = self.scrub_all()?;
        let arena = self.arena.as_ref()?;
        let (at, status) = (arena.memory.at(), arena.status.offset() as u64);
        let (end, regions) = (arena.memory.bytes() as u64, arena.regions as u64);
        // all but the status, in pieces, so that the report says how much is zero when not all is
        const PIECE: u64 = 1 << 30;
        let pieces = [(0, status), (status + 16, end)].into_iter().flat_map(|(start, end)| {
            (start..end).step_by(PIECE as usize).map(move |piece| (piece, (end - piece).min(PIECE)))
        });
        let (mut bytes, mut verified, mut dirty) = (0, 0, all.is_dirty());
        for (start, count) in pieces {
            bytes += count;
            let args = VerifyArgs { at: at + start, bytes: count, dirty: at + status };
            let blocks = (count / (16 * 256)).clamp(1, 16 * u64::from(self.driver.processors()));
            self.launch("verify", shape([blocks as usize, 1, 1], 256, 0), &args);
            dirty |= self.settle();
            verified += if dirty { 0 } else { count };
        }
        Some(Closed { regions, scrubbed: self.proof(bytes, all.samples(), dirty), verified })
    }
}

/// What was asked to be overwritten, or is already: no proof before the device has done it.
#[derive(Clone, Copy, Default)]
struct Asked {
    bytes: u64,
    samples: u64,
    dirty: bool,
}

impl Asked {
    fn and(self, more: Self) -> Self {
        let Self { bytes, samples, dirty } = self;
        Self { bytes: bytes + more.bytes, samples: samples + more.samples, dirty: dirty | more.dirty }
    }
}

impl From<Scrubbed> for Asked {
    fn from(done: Scrubbed) -> Self {
        Self { bytes: done.bytes(), samples: done.samples(), dirty: done.is_dirty() }
    }
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

#[cfg(test)]
impl<D: Driver> Cuda<D> {
    /// A backend that does without wgmma.
    pub fn plain(driver: Arc<D>) -> Self {
        Self { plain: true, ..Self::new(driver) }
    }

    /// Whether all that it holds of requests is zeros.
    pub fn is_zero(&mut self) -> bool {
        self.flush();
        let arena = self.arena();
        let bytes = arena.memory.bytes();
        let all = Host::new(&self.driver, bytes).unwrap();
        // SAFETY: both have the bytes; they are there when `synchronize` returns.
        let all = unsafe {
            self.driver.read(arena.memory.at(), all.at(), bytes);
            self.driver.synchronize();
            std::slice::from_raw_parts(all.at(), bytes).to_vec()
        };
        let status = arena.status.offset();
        // behind the status are counted bytes of weights
        let rest = all[..status + 8].iter().chain(&all[status + 16..]);
        // SAFETY: ours alone.
        let read = unsafe { std::slice::from_raw_parts(arena.host.at(), arena.host.bytes()) };
        let told = arena.sampling.as_ref().map_or(&[][..], Sampling::told);
        rest.chain(read).chain(told).all(|&byte| byte == 0) && self.inputs.is_zero()
    }

    /// Writes rows of an operand.
    pub fn set_operand(&mut self, buf: Buf, values: &[f32]) {
        let (rows, stride) = (values.len() / buf.cols, row_bytes(buf));
        let host = Host::new(&self.driver, rows * stride).unwrap();
        // SAFETY: ours alone.
        let bytes = unsafe { std::slice::from_raw_parts_mut(host.at(), rows * stride) };
        for (values, row) in values.chunks(buf.cols).zip(bytes.chunks_mut(stride)) {
            for (col, &value) in values.iter().enumerate() {
                match buf.form {
                    OperandType::F32 => row[4 * col..][..4].copy_from_slice(&value.to_le_bytes()),
                    OperandType::Bf16 => {
                        row[2 * col..][..2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes())
                    }
                    OperandType::F16 => {
                        row[2 * col..][..2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes())
                    }
                    OperandType::Bytes => unreachable!("as in `form`"),
                }
            }
        }
        // SAFETY: both have the rows.
        unsafe { self.driver.write(self.at(buf, rows), host.at(), rows * stride) };
    }

    /// One row of an operand.
    pub fn get_operand(&mut self, buf: Buf, row: usize) -> Vec<f32> {
        self.flush();
        let stride = row_bytes(buf);
        let host = Host::new(&self.driver, stride).unwrap();
        let from = self.at(buf, row + 1) + (row * stride) as u64;
        // SAFETY: both have the row; it is there when `synchronize` returns.
        let bytes = unsafe {
            self.driver.read(from, host.at(), stride);
            self.driver.synchronize();
            std::slice::from_raw_parts(host.at(), stride)
        };
        let padded = buf.cols..stride / if buf.form == OperandType::F32 { 4 } else { 2 };
        let value = |col| super::cpu::operand::value(buf.form, bytes, col);
        assert!(padded.into_iter().all(|col| value(col) == 0.0), "what is behind an operand is not zero");
        (0..buf.cols).map(value).collect()
    }
}
