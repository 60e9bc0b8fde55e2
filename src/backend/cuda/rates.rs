//! How fast a device copies, overwrites and multiplies, and its makers' own library beside that: for benches, and for a
//! test that compares the two.
#![expect(unsafe_code, reason = "copies memory of the device")]

use std::path::Path;
use std::sync::Arc;

use super::Cuda;
use super::blas::Blas;
use super::driver::{Address, DeviceAllocation, Driver, Host};
use super::emulated::Emulated;
use super::native::Native;
use super::weight::Weight;
use crate::backend::{
    Batch, Buf, DeviceMemory, EmbedBy, Kv, KvShape, OperandType, Ops, Projection, Quantize,
};
use crate::error::Result;
use crate::memory::Layout;
use crate::sample::rng;
use crate::weights::{Checkpoint, Tensor};

/// Who multiplies besides our kernels.
pub trait Library {
    /// `out = x * weight^T`: (tokens, rows) in f32 of (tokens, cols) and (rows, cols) in bf16.
    ///
    /// # Safety
    /// The matrices are there, in the shape that the library was made for.
    unsafe fn multiply(&self, tokens: usize, weight: Address, x: Address, out: Address);
}

/// A device that can be measured.
pub trait Measured: Driver + Sized {
    /// Who multiplies there besides our kernels.
    type Library: Library;

    /// Overwrites memory in the way of the device's makers.
    ///
    /// # Safety
    /// It has the bytes.
    unsafe fn set(&self, at: Address, bytes: usize);

    /// Who multiplies (rows, cols) with these counts of tokens, each `x_stride` values behind the last one; none where it
    /// is not installed.
    fn library(
        this: &Arc<Self>,
        shape: (usize, usize),
        x_stride: usize,
        tokens: &[usize],
    ) -> Option<Self::Library>;
}

impl Measured for Native {
    type Library = Blas;

    unsafe fn set(&self, at: Address, bytes: usize) {
        // SAFETY: the caller's contract.
        unsafe { Native::set(self, at, bytes) };
    }

    fn library(this: &Arc<Self>, shape: (usize, usize), x_stride: usize, tokens: &[usize]) -> Option<Blas> {
        Blas::open(this, shape, x_stride, tokens)
    }
}

/// Plain loops.
#[derive(Debug)]
pub struct Loops {
    shape: (usize, usize),
    x_stride: usize,
}

impl Library for Loops {
    unsafe fn multiply(&self, tokens: usize, weight: Address, x: Address, out: Address) {
        let (rows, cols) = self.shape;
        let value = |of: Address, at: usize| {
            // SAFETY: the caller's contract; memory of the emulated device is the host's.
            unsafe { *(of as *const half::bf16).add(at) }.to_f64()
        };
        for (token, row) in (0..tokens).flat_map(|token| (0..rows).map(move |row| (token, row))) {
            let products =
                (0..cols).map(|col| value(x, token * self.x_stride + col) * value(weight, row * cols + col));
            // SAFETY: as above.
            unsafe { *(out as *mut f32).add(token * rows + row) = products.sum::<f64>() as f32 };
        }
    }
}

impl Measured for Emulated {
    type Library = Loops;

    unsafe fn set(&self, at: Address, bytes: usize) {
        // SAFETY: the caller's contract; its memory is the host's.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
    }

    fn library(_: &Arc<Self>, shape: (usize, usize), x_stride: usize, _: &[usize]) -> Option<Loops> {
        Some(Loops { shape, x_stride })
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// A copy of one piece of memory to another.
    Copy,
    /// An overwrite by the device's makers, of which nothing is read back.
    Set,
    /// A scrub, with the places that are read back.
    Scrub,
    /// A product of the matrix in one format, by its place, with so many tokens.
    Product(usize, usize),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Copy => f.write_str("copy"),
            Self::Set => f.write_str("memset"),
            Self::Scrub => f.write_str("scrub"),
            Self::Product(format, tokens) => {
                let format = match FORMATS[format] {
                    None => "bf16",
                    Some(Quantize::Q8) => "q8",
                    Some(Quantize::Q4) => "q4",
                };
                write!(f, "product, {format}, {tokens} tokens")
            }
        }
    }
}

/// The matrix's formats. The first is the library's.
pub const FORMATS: [Option<Quantize>; 3] = [None, Some(Quantize::Q8), Some(Quantize::Q4)];
/// Matrices of each: several, so that no cache holds the one that comes next.
const COPIES: usize = 4;
/// Tokens that differ from each other.
const TOKENS: usize = 64;

/// A device with something to do.
pub struct Rates<D: Measured> {
    driver: Arc<D>,
    backend: Cuda<D>,
    /// By formats.
    weights: Vec<(Vec<Weight<D>>, Buf)>,
    next: usize,
    memory: [DeviceAllocation<D>; 2],
    out: Buf,
    shape: (usize, usize),
    tokens: Vec<usize>,
    beside: Option<Beside<D>>,
}

/// What the library needs.
struct Beside<D: Measured> {
    library: D::Library,
    weights: Vec<DeviceAllocation<D>>,
    x: Address,
    out: DeviceAllocation<D>,
}

impl<D: Measured> Rates<D> {
    /// So often is a thing done in one measurement.
    pub const AGAIN: u32 = 8;

    /// Writes random weights to `folder`, and loads them in the first `formats` of [`FORMATS`].
    pub fn new(
        driver: Arc<D>,
        bytes: usize,
        shape: (usize, usize),
        formats: usize,
        tokens: &[usize],
        folder: &Path,
    ) -> Result<Self> {
        let (rows, cols) = shape;
        let random: Vec<u8> = (0..rows * cols)
            .flat_map(|i| half::bf16::from_f64(rng::uniform(7, i as u64) - 0.5).to_le_bytes())
            .collect();
        let tensor = write(folder, shape, &random)?;
        let mut backend = Cuda::new(driver.clone());
        let most = tokens.iter().copied().max().unwrap_or(1);
        let mut layout = Layout::default();
        let too_large = || crate::Error::request("tokens", "fewer");
        let mut weights = Vec::new();
        for &quantize in &FORMATS[..formats] {
            let all = (0..COPIES).map(|_| backend.upload(&tensor, quantize)).collect::<Result<Vec<_>>>()?;
            let x = Buf::plan_operand(&mut layout, most, cols).ok_or_else(too_large)?;
            let form = backend.operand_type(&[&all[0]]);
            weights.push((all, x.of(form)));
        }
        let out = Buf::plan(&mut layout, most, rows).ok_or_else(too_large)?;
        let values = Buf::plan(&mut layout, most, cols).ok_or_else(too_large)?;
        let kv = Kv::plan::<Cuda<D>>(&mut layout, KvShape::SMALLEST, 1).ok_or_else(too_large)?;
        let table = (0..TOKENS * cols).map(|i| (i as f32).sin()).collect();
        let table = backend.upload_table(table, cols)?;
        backend.reserve(layout, kv, None)?;
        // rates on zeros would be too good
        let ids: Vec<u32> = (0..most).map(|token| (token % TOKENS) as u32).collect();
        let batch = Batch { ids: &ids, ..Batch::default() };
        backend.embed(&batch, EmbedBy::Token, &table, 1.0, false, values);
        for &(_, x) in &weights {
            backend.norm(most, values, &crate::backend::Norm::identity(), cols, x);
        }
        let memory = [
            DeviceAllocation::new(&driver, bytes, "a bench")?,
            DeviceAllocation::new(&driver, bytes, "a bench")?,
        ];
        let mut this = Self {
            driver,
            backend,
            weights,
            next: 0,
            memory,
            out,
            shape,
            tokens: tokens.to_vec(),
            beside: None,
        };
        this.beside = this.beside(&random, most)?;
        this.driver.synchronize();
        Ok(this)
    }

    /// The library, with its own matrices: ours are packed.
    fn beside(&self, random: &[u8], most: usize) -> Result<Option<Beside<D>>> {
        let x = self.weights[0].1;
        assert!(x.form == OperandType::Bf16, "the first format is bf16");
        let stride = x.row_bytes() / size_of::<half::bf16>();
        let Some(library) = D::library(&self.driver, self.shape, stride, &self.tokens) else {
            return Ok(None);
        };
        let host = Host::new(&self.driver, random.len())?;
        let weights = (0..COPIES).map(|_| DeviceAllocation::new(&self.driver, random.len(), "a bench"));
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let out = DeviceAllocation::new(&self.driver, most * self.shape.0 * size_of::<f32>(), "a bench")?;
        // SAFETY: all of them have the bytes; the host's are ours alone, and stay until they are there.
        unsafe {
            std::ptr::copy_nonoverlapping(random.as_ptr(), host.at(), random.len());
            weights.iter().for_each(|weight| self.driver.write(weight.at(), host.at(), random.len()));
            self.driver.synchronize();
        }
        Ok(Some(Beside { library, weights, x: self.backend.at(x, most), out }))
    }

    /// All that can be measured.
    pub fn all(&self) -> Vec<What> {
        let products = (0..self.weights.len())
            .flat_map(|format| self.tokens.iter().map(move |&tokens| What::Product(format, tokens)));
        [What::Copy, What::Set, What::Scrub].into_iter().chain(products).collect()
    }

    /// Bytes and operations of one.
    pub fn size(&self, what: &What) -> (u64, u64) {
        let bytes = self.memory[0].bytes() as u64;
        match *what {
            What::Copy => (2 * bytes, 0),
            What::Set | What::Scrub => (bytes, 0),
            What::Product(format, tokens) => {
                let weights = (self.shape.0 * self.shape.1) as u64;
                (self.weights[format].0[0].bytes(), 2 * weights * tokens as u64)
            }
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
                // SAFETY: it has the bytes.
                What::Set => unsafe { self.driver.set(to, bytes) },
                What::Scrub => {
                    let _ = self.backend.forget(to, bytes);
                    self.backend.flush();
                }
                What::Product(format, tokens) => self.multiply(format, tokens),
            }
        }
        self.driver.synchronize();
    }

    fn multiply(&mut self, format: usize, tokens: usize) {
        self.next = (self.next + 1) % COPIES;
        let (weights, x) = &self.weights[format];
        let products = [Projection { weight: &weights[self.next], bias: None, out: self.out, add: None }];
        self.backend.linear(tokens, *x, &products);
    }

    /// Runs it with the library; false where there is none, or it does not do such a thing.
    pub fn run_library(&mut self, what: &What) -> bool {
        let (&What::Product(0, tokens), Some(beside)) = (what, &self.beside) else { return false };
        for _ in 0..Self::AGAIN {
            self.next = (self.next + 1) % COPIES;
            let weight = beside.weights[self.next].at();
            // SAFETY: the matrices are there, in the shape of which the library was told.
            unsafe { beside.library.multiply(tokens, weight, beside.x, beside.out.at()) };
        }
        self.driver.synchronize();
        true
    }

    /// Whether the device failed.
    pub fn failed(&self) -> bool {
        self.driver.failed()
    }

    /// How far our products are from the library's at most, in parts of their root mean square; none without a library.
    pub fn difference(&mut self, tokens: usize) -> Result<Option<f64>> {
        if !self.run_library(&What::Product(0, tokens)) {
            return Ok(None);
        }
        self.multiply(0, tokens);
        let (rows, out) = (self.shape.0, self.out);
        let fence = self.backend.submit(&Batch::default(), |_| ());
        let ours: Vec<f32> =
            (0..tokens).flat_map(|token| self.backend.read(&fence, out, token)[..rows].to_vec()).collect();
        let from = self.beside.as_ref().expect("just used").out.at();
        let host = Host::new(&self.driver, tokens * rows * size_of::<f32>())?;
        // SAFETY: both have the bytes, and they are there when `synchronize` returns.
        let theirs = unsafe {
            self.driver.read(from, host.at(), tokens * rows * size_of::<f32>());
            self.driver.synchronize();
            std::slice::from_raw_parts(host.at().cast::<f32>(), tokens * rows)
        };
        assert!(!self.driver.failed(), "the device failed");
        let squares: f64 = theirs.iter().map(|&value| f64::from(value).powi(2)).sum();
        let apart = ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
        // what is not a number is far away
        let most = apart.fold(0.0, |most, apart| if apart <= most { most } else { apart });
        Ok(Some(most / (squares / theirs.len() as f64).sqrt()))
    }
}

/// The matrix as a checkpoint's.
fn write(folder: &Path, (rows, cols): (usize, usize), values: &[u8]) -> Result<Tensor> {
    let file = folder.join("model.safetensors");
    let malformed = |error| crate::Error::read(&file)(std::io::Error::other(error));
    let shape = vec![rows, cols];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape, values);
    let all = safetensors::serialize([("weight", view.map_err(malformed)?)], None).map_err(malformed)?;
    std::fs::write(&file, all).map_err(crate::Error::read(&file))?;
    Checkpoint::open(folder)?.tensor("weight", &[rows, cols])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also what `tests/devices/products.rs` holds devices to.
    #[test]
    fn products_are_those_of_plain_loops() {
        let folder = tempfile::tempdir().unwrap();
        let driver = Arc::new(Emulated::default());
        let mut rates = Rates::new(driver, 1 << 12, (48, 70), 1, &[1, 9, 70], folder.path()).unwrap();
        for tokens in [1, 9, 70] {
            let difference = rates.difference(tokens).unwrap().unwrap();
            assert!(difference < 1e-5, "{tokens} tokens: {difference}");
        }
        // another matrix would be noticed
        let host = Host::new(&rates.driver, 32).unwrap();
        let to = &rates.beside.as_ref().unwrap().weights;
        // SAFETY: both have the bytes.
        to.iter().for_each(|weight| unsafe { rates.driver.write(weight.at(), host.at(), 32) });
        assert!(rates.difference(9).unwrap().unwrap() > 0.01);
    }
}
