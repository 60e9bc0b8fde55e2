//! Products by NVIDIA's cuBLASLt, where it is installed: what benches set beside ours, and what a test holds them to.
//! Sessions never use it.
#![expect(unsafe_code, reason = "calls the library")]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::driver::{Address, DeviceAllocation, Driver};
use super::native::Native;
use super::rates::Library;

/// What NVIDIA recommends for Hopper; more than what it does for others.
const WORKSPACE_BYTES: usize = 32 << 20;

/// The library, and the ways it has chosen.
#[derive(Debug)]
pub struct Blas {
    driver: Arc<Native>,
    handle: sys::cublasLtHandle_t,
    workspace: DeviceAllocation<Native>,
    /// By counts of tokens.
    products: HashMap<usize, Product>,
}

impl Blas {
    /// The library for products of (rows, cols) in bf16 with these counts of tokens, each as many bf16 behind the last one;
    /// none if it is not installed, or has no way to do them.
    pub fn open(
        driver: &Arc<Native>,
        shape: (usize, usize),
        x_stride: usize,
        tokens: &[usize],
    ) -> Option<Self> {
        // SAFETY: looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let workspace = DeviceAllocation::new(driver, WORKSPACE_BYTES, "a library's workspace").ok()?;
        let handle = driver.with_stream(|_| result::create_handle())?.ok()?;
        let mut this = Self { driver: driver.clone(), handle, workspace, products: HashMap::new() };
        for &tokens in tokens {
            let made = driver.with_stream(|_| Product::new(handle, shape, x_stride, tokens))?;
            this.products.insert(tokens, made.ok()?);
        }
        Some(this)
    }
}

impl Library for Blas {
    unsafe fn multiply(&self, tokens: usize, weight: Address, x: Address, out: Address) {
        let product = &self.products[&tokens];
        let (one, zero) = (1.0_f32, 0.0_f32);
        let [weight, x] = [weight, x].map(|at| at as *const c_void);
        let done = self.driver.with_stream(|stream| {
            // SAFETY: the caller's contract; layouts are those of these matrices, and alive.
            unsafe {
                result::matmul(
                    self.handle,
                    product.way,
                    (&raw const one).cast(),
                    (&raw const zero).cast(),
                    weight,
                    product.weight,
                    x,
                    product.x,
                    out as *const c_void,
                    product.out,
                    out as *mut c_void,
                    product.out,
                    &raw const product.chosen.algo,
                    self.workspace.at() as *mut c_void,
                    WORKSPACE_BYTES,
                    stream.cast(),
                )
            }
        });
        if done.is_none_or(|done| done.is_err()) {
            self.driver.fail();
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.products.clear();
        let handle = self.handle;
        // SAFETY: ours, and nothing uses it any more: what was asked for is waited for.
        let _ = self.driver.with_stream(|_| unsafe { result::destroy_handle(handle) });
    }
}

/// One product: how its matrices lie, and the way that the library has chosen for it.
#[derive(Debug)]
struct Product {
    way: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    chosen: sys::cublasLtMatmulHeuristicResult_t,
}

impl Product {
    /// The library counts along columns: what is (rows, cols) here is (cols, rows) there.
    fn new(
        handle: sys::cublasLtHandle_t,
        (rows, cols): (usize, usize),
        x_stride: usize,
        tokens: usize,
    ) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let [row_count, col_count, token_count] = [rows, cols, tokens].map(|count| count as u64);
        let way = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F)?;
        let weight = result::create_matrix_layout(CUDA_R_16BF, col_count, row_count, cols as i64)?;
        let x = result::create_matrix_layout(CUDA_R_16BF, col_count, token_count, x_stride as i64)?;
        let out = result::create_matrix_layout(CUDA_R_32F, row_count, token_count, rows as i64)?;
        let (transposed, room) = (1_i32, WORKSPACE_BYTES);
        let preference = result::create_matmul_pref()?;
        // SAFETY: all of them were just made; the values have the types of their attributes (int32_t, size_t).
        let chosen = unsafe {
            let transposed = (&raw const transposed).cast();
            result::set_matmul_desc_attribute(way, CUBLASLT_MATMUL_DESC_TRANSA, transposed, 4)
                .and_then(|()| {
                    let (which, room) = (CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const room).cast());
                    result::set_matmul_pref_attribute(preference, which, room, size_of::<usize>())
                })
                .and_then(|()| {
                    result::get_matmul_algo_heuristic(handle, way, weight, x, out, out, preference)
                })
        };
        // SAFETY: made above, and not used any more.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        Ok(Self { way, weight, x, out, chosen: chosen? })
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and nobody else's.
        unsafe {
            for layout in [self.weight, self.x, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.way);
        }
    }
}
