//! Which kernel multiplies, and with how many blocks. All of them give the same bits (`kernels/cuda/linear.cu`), so it is a
//! matter of speed alone: reading weights once for few tokens, sharing them in a block for many.

#![expect(unsafe_code, reason = "asks for kernels and copies, of sizes that it names")]

use std::sync::Arc;

use half::{bf16, f16};

use super::args::{self, LinearArgs};
use super::driver::{Address, DeviceAllocation, Driver, Host};
use super::weight::Format;
use super::{Cuda, form, shape, small};
use crate::backend::packed::{LANES, OperandType};
use crate::backend::{Activation, Buf};
use crate::error::Result;
use crate::memory::Layout;
use crate::sample::rng::uniform;

/// Slices of a product at most, as in `linear.cu`.
const SLICES: usize = 8;
/// Column tiles that `hopper.cu` takes at once.
const HOPPER_TILES: usize = 4;
/// Bytes of shared memory there: five stages of activations, at a multiple of 1024; the sums that leave need less.
const HOPPER_BYTES: usize = 5 * 128 * 128 + 1024;
/// Row tiles of a block of the gemm kernels.
const GEMM_TILES: usize = 8;
/// Column tiles under way there.
const GEMM_STAGES: usize = 4;
/// Tokens of a block there.
const GEMM_TOKENS: [usize; 3] = [32, 64, 128];
/// Tokens up to which each row tile's block reads the activations for itself. From there on it would read more of them than
/// of the weights.
const GEMV: usize = 16;
/// That number for experts, whose tokens are counted on the device.
const GEMV_EXPERTS: usize = 64;

/// Kernels by format (bf16, f16, q8, q4, f8) and by tokens that they take at once.
const NAMES: [[&str; 4]; 5] = [
    ["gemv_bf16_8", "gemv_bf16_16", "gemv_bf16_32", "gemv_bf16_64"],
    ["gemv_f16_8", "gemv_f16_16", "gemv_f16_32", "gemv_f16_64"],
    ["gemv_q8_8", "gemv_q8_16", "gemv_q8_32", "gemv_q8_64"],
    ["gemv_q4_8", "gemv_q4_16", "gemv_q4_32", "gemv_q4_64"],
    ["gemv_f8_8", "gemv_f8_16", "gemv_f8_32", "gemv_f8_64"],
];
/// The kernels of pairs of matrices, in the same order.
const PAIRS: [[&str; 3]; 5] = [
    ["gemv_pair_bf16_8", "gemv_pair_bf16_16", "gemv_pair_bf16_32"],
    ["gemv_pair_f16_8", "gemv_pair_f16_16", "gemv_pair_f16_32"],
    ["gemv_pair_q8_8", "gemv_pair_q8_16", "gemv_pair_q8_32"],
    ["gemv_pair_q4_8", "gemv_pair_q4_16", "gemv_pair_q4_32"],
    ["gemv_pair_f8_8", "gemv_pair_f8_16", "gemv_pair_f8_32"],
];
/// Those that share weights in a block, by [`GEMM_TOKENS`].
const GEMM: [[&str; 3]; 5] = [
    ["gemm_bf16_32", "gemm_bf16_64", "gemm_bf16_128"],
    ["gemm_f16_32", "gemm_f16_64", "gemm_f16_128"],
    ["gemm_q8_32", "gemm_q8_64", "gemm_q8_128"],
    ["gemm_q4_32", "gemm_q4_64", "gemm_q4_128"],
    ["gemm_f8_32", "gemm_f8_64", "gemm_f8_128"],
];
/// The kernels of pairs of matrices, in the same order.
const GEMM_PAIRS: [[&str; 3]; 5] = [
    ["gemm_pair_bf16_32", "gemm_pair_bf16_64", "gemm_pair_bf16_128"],
    ["gemm_pair_f16_32", "gemm_pair_f16_64", "gemm_pair_f16_128"],
    ["gemm_pair_q8_32", "gemm_pair_q8_64", "gemm_pair_q8_128"],
    ["gemm_pair_q4_32", "gemm_pair_q4_64", "gemm_pair_q4_128"],
    ["gemm_pair_f8_32", "gemm_pair_f8_64", "gemm_pair_f8_128"],
];

/// Where a format stands in the tables above.
fn index(format: Format) -> usize {
    match format {
        Format::Bf16 => 0,
        Format::F16 => 1,
        Format::Q8 => 2,
        Format::Q4 => 3,
        Format::F8 => 4,
        Format::F32 => unreachable!("has a kernel of its own"),
    }
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub enum To {
    Set,
    Add(f32),
    Activated(Activation),
}

/// Which of several experts or heads a launch does.
#[derive(Clone, Copy)]
pub struct Several {
    pub count: usize,
    pub table: Address,
    pub starts: Address,
    pub from_table: u32,
    pub x_each: usize,
    pub out_each: usize,
    pub tiles_each: usize,
}

impl Several {
    pub const ONE: Self =
        Self { count: 1, table: 0, starts: 0, from_table: 0, x_each: 0, out_each: 0, tiles_each: 0 };
}

/// A product, or several of the same activations.
pub struct Multiply<'a> {
    /// Up to [`LinearArgs::MOST`]; of a pair gate and up; of experts one without a matrix.
    pub products: &'a [args::Product],
    pub pair: bool,
    pub format: Format,
    /// Columns of the matrices.
    pub cols: usize,
    /// Rows of activations: of each head; of all experts.
    pub tokens: usize,
    pub x: (Buf, Address),
    pub out_form: OperandType,
    pub to: To,
    pub several: Several,
}

/// A matrix of `rows` rows, and where its product goes: the address, and bytes from one token to the next.
pub fn product(linear: args::Linear, rows: usize, (out, stride): (Address, usize)) -> args::Product {
    args::Product { linear, out, rows: small(rows), out_stride: small(stride) }
}

impl Multiply<'_> {
    fn args(&self) -> LinearArgs {
        let (mode, scale, activation) = match self.to {
            To::Set => (0, 0.0, Activation::Relu),
            To::Add(scale) => (1, scale, Activation::Relu),
            To::Activated(activation) => (2, 0.0, activation),
        };
        let mut products = [args::Product::NONE; LinearArgs::MOST];
        products[..self.products.len()].copy_from_slice(self.products);
        let Several { table, starts, from_table, x_each, out_each, tiles_each, .. } = self.several;
        LinearArgs {
            products,
            table,
            starts,
            x: self.x.1,
            sums: 0,
            sums_each: 0,
            x_each: x_each as u64,
            from_table,
            x_stride: small(self.x.0.row_bytes()),
            x_form: form(self.x.0.form),
            out_each: small(out_each),
            out_form: form(self.out_form),
            tiles_each: small(tiles_each),
            tokens: small(self.tokens),
            slice: small(self.slice()),
            slices: 1,
            mode,
            scale,
            pair: u32::from(self.pair),
            activation: activation.into(),
        }
    }

    /// Column tiles.
    fn tiles(&self) -> usize {
        self.cols.div_ceil(Buf::GROUP)
    }

    /// Column tiles of a slice: by the matrix alone. A multiple of what `hopper.cu` takes at once.
    fn slice(&self) -> usize {
        self.tiles().div_ceil(SLICES).next_multiple_of(HOPPER_TILES)
    }

    fn of_experts(&self) -> bool {
        self.several.starts != 0
    }

    /// Rows of the largest product.
    fn rows(&self) -> usize {
        self.products.iter().map(|product| product.rows as usize).max().unwrap_or(0)
    }

    /// Products that blocks are told apart by.
    fn count(&self) -> usize {
        if self.pair { self.several.count } else { self.several.count.max(self.products.len()) }
    }

    fn suits_wgmma(&self) -> bool {
        matches!(self.format, Format::Bf16 | Format::F16) && self.tiles().is_multiple_of(HOPPER_TILES)
    }

    /// The kernel that multiplies with wgmma.
    fn hopper(&self) -> &'static str {
        match (self.format == Format::F16, self.pair) {
            (false, false) => "hopper_bf16",
            (true, false) => "hopper_f16",
            (false, true) => "hopper_pair_bf16",
            (true, true) => "hopper_pair_f16",
        }
    }

    /// Tokens of one product, as far as that is known: of experts each has a part only.
    fn expected(&self) -> usize {
        if self.of_experts() { self.tokens.div_ceil(4) } else { self.tokens }
    }
}

impl<D: Driver> Cuda<D> {
    /// Asks for a product.
    pub fn multiply(&mut self, job: &Multiply<'_>) {
        if job.format == Format::F32 {
            let name = if job.pair { "plain_pair" } else { "plain" };
            let grid = [job.rows().div_ceil(8), job.tokens.div_ceil(4).min(1 << 15), job.count()];
            return self.launch(name, shape(grid, 256, 0), &job.args());
        }
        let converted = job.x.0.form == OperandType::F32; // such are read by one kernel alone
        let most = if job.of_experts() { GEMV_EXPERTS } else { GEMV };
        if converted || job.expected() <= most { self.gemv(job) } else { self.gemm(job) }
    }

    fn gemv(&mut self, job: &Multiply<'_>) {
        let most = if job.pair { 2 } else { 3 };
        let size = (job.expected().div_ceil(8).next_power_of_two().trailing_zeros() as usize).min(most);
        let name = if job.pair { PAIRS[index(job.format)][size] } else { NAMES[index(job.format)][size] };
        let at_once = 8 << size;
        let shared = SLICES * at_once * LANES * 4 * if job.pair { 2 } else { 1 };
        let grid = [job.rows().div_ceil(LANES), job.tokens.div_ceil(at_once), job.count()];
        self.launch(name, shape(grid, 256, shared), &job.args());
    }

    fn gemm(&mut self, job: &Multiply<'_>) {
        let size = GEMM_TOKENS.iter().position(|&tokens| job.expected() <= tokens).unwrap_or(2);
        let table = if job.pair { &GEMM_PAIRS } else { &GEMM };
        let (name, at_once) = (table[index(job.format)][size], GEMM_TOKENS[size]);
        let shared = gemm_bytes(at_once);
        let blocks = job.tokens.div_ceil(at_once);
        let by_tokens = if job.of_experts() { blocks.min(4) } else { blocks };
        let bands = job.rows().div_ceil(LANES).div_ceil(if job.pair { GEMM_TILES / 2 } else { GEMM_TILES });
        let grid = [by_tokens, bands, job.count()];
        let args = job.args();
        match self.sliced(job, grid) {
            None if size == 2 && self.wgmma && job.suits_wgmma() => {
                self.launch(job.hopper(), shape(grid, 256, HOPPER_BYTES), &args);
            }
            None => self.launch(name, shape(grid, 256, shared), &args),
            Some((sums, each, slices)) => {
                let args = LinearArgs { sums, sums_each: each as u64, slices: small(slices), ..args };
                let [x, y, count] = grid;
                self.launch(name, shape([x, y, count * slices], 256, shared), &args);
                let grid = [job.rows().div_ceil(256), job.tokens, count];
                self.launch("add_slices", shape(grid, 256, 0), &args);
            }
        }
    }

    /// Whether each slice should have blocks of its own, since there would be fewer than a device can run at once: then
    /// where their sums go, floats of each matrix there, and how many slices there are.
    fn sliced(&mut self, job: &Multiply<'_>, grid: [usize; 3]) -> Option<(Address, usize, usize)> {
        let slices = job.tiles().div_ceil(job.slice());
        let few = grid.iter().product::<usize>() < 2 * self.driver.processors() as usize;
        if !few || slices < 2 || job.several.count > 1 || job.of_experts() || job.tokens >= 1 << 16 {
            return None;
        }
        let each = slices * job.tokens * job.rows();
        let matrices = if job.pair { 2 } else { job.count() };
        Some((self.parts(matrices * each * size_of::<f32>())?, each, slices))
    }
}

/// Whether wgmma gives the same bits as mma on this device: nobody promises it, so both multiply random numbers.
pub fn wgmma_agrees<D: Driver>(driver: &Arc<D>) -> Result<bool> {
    const ROWS: usize = 128;
    const TOKENS: usize = 128;
    const COLS: usize = 2048; // eight slices of four steps
    // magnitudes from 2^-8 to 2^7, so that sums cancel and round
    let random = |seed: u64, i: usize| {
        let [size, sign] = [0, 1].map(|which| uniform(seed, 2 * i as u64 + which));
        (size * 16.0 - 8.0).exp2() * if sign < 0.5 { -1.0 } else { 1.0 }
    };
    let put = |seed: u64, count: usize, half: bool| -> Result<DeviceAllocation<D>> {
        let (host, memory) =
            (Host::new(driver, 2 * count)?, DeviceAllocation::new(driver, 2 * count, "a self-test")?);
        // SAFETY: ours alone.
        let to = unsafe { std::slice::from_raw_parts_mut(host.at(), 2 * count) };
        for (i, to) in to.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let value = random(seed, i);
            *to = if half { f16::from_f64(value).to_le_bytes() } else { bf16::from_f64(value).to_le_bytes() };
        }
        // SAFETY: both have the bytes; `host` waits for the device when it drops.
        unsafe { driver.write(memory.at(), host.at(), 2 * count) };
        Ok(memory)
    };
    let mut agree = true;
    for half in [false, true] {
        // random numbers are as good in any order, so the matrix needs no packing
        let (weight, x) = (put(1, ROWS * COLS, half)?, put(2, TOKENS * COLS, half)?);
        let stride = (COLS / Buf::GROUP) as u32;
        let (rows, cols, format) = (ROWS as u32, COLS as u32, if half { 1 } else { 2 });
        let matrix = args::Matrix { data: weight.at(), scales: 0, rows, cols, format, stride };
        let results = [false, true].map(|wgmma| -> Result<Vec<u8>> {
            let bytes = ROWS * TOKENS * size_of::<f32>();
            let (out, host) =
                (DeviceAllocation::new(driver, bytes, "a self-test")?, Host::new(driver, bytes)?);
            let linear = args::Linear { weight: matrix, bias: 0 };
            let mut layout = Layout::default();
            let buf = Buf::plan_operand(&mut layout, TOKENS, COLS).expect("a small one");
            let job = Multiply {
                products: &[product(linear, ROWS, (out.at(), 4 * ROWS))],
                pair: false,
                format: if half { Format::F16 } else { Format::Bf16 },
                cols: COLS,
                tokens: TOKENS,
                x: (buf.of(if half { OperandType::F16 } else { OperandType::Bf16 }), x.at()),
                out_form: OperandType::F32,
                to: To::Set,
                several: Several::ONE,
            };
            let (args, like) = (job.args(), if half { GEMM[1][2] } else { GEMM[0][2] });
            let (name, shared) =
                if wgmma { (job.hopper(), HOPPER_BYTES) } else { (like, gemm_bytes(TOKENS)) };
            // SAFETY: the kernel takes that struct, and all of its memory is there until it is waited for.
            Ok(unsafe {
                let shape = shape([1, 1, 1], 256, shared);
                driver.launch(name, shape, std::ptr::from_ref(&args).cast(), size_of::<LinearArgs>());
                driver.read(out.at(), host.at(), bytes);
                driver.synchronize();
                std::slice::from_raw_parts(host.at(), bytes).to_vec()
            })
        });
        let [mma, wgmma] = results;
        agree &= mma? == wgmma?;
    }
    Ok(agree && !driver.failed())
}

/// Shared memory of the gemm kernels: four stages of weights and activations, or the sums that leave through the same.
fn gemm_bytes(tokens: usize) -> usize {
    let stage = GEMM_TILES * (1024 + 32) + tokens * 64;
    (GEMM_STAGES * stage).max(tokens * (GEMM_TILES * LANES + 4) * 4)
}
