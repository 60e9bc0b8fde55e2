//! The arguments of kernels: each struct is one of `kernels/cuda`, field by field. The emulated device asserts at every launch
//! that the sizes are the same.

use super::driver::Address;
use crate::backend;

/// What a kernel takes.
///
/// # Safety
/// It is laid out as in C, and of numbers alone.
pub unsafe trait Args: Copy {}

macro_rules! args {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $(pub $field: $kind),* }

        // SAFETY: `repr(C)`, and its fields are numbers or such structs.
        unsafe impl Args for $name {}
    )*};
}

args! {
    /// `Matrix` of `matrix.cuh`.
    Matrix { data: Address, scales: Address, rows: u32, cols: u32, format: u32, stride: u32 }
    /// `Linear` of `matrix.cuh`.
    Linear { weight: Matrix, bias: Address }
    /// `Activation` of `activation.cuh`.
    Activation { kind: u32, alpha: f32, limit: f32 }
    /// `Cache` of `cache.cuh`.
    Cache {
        base: Address,
        block_bytes: u64,
        layer_bytes: u64,
        kind: u32,
        kv_heads: u32,
        head_dim: u32,
        value_dim: u32,
        key_bytes: u32,
        value_bytes: u32,
    }
    EmbedArgs { table: Matrix, ids: Address, out: Address, cols: u32, out_stride: u32, scale: f32, add: u32 }
    NormArgs {
        x: Address,
        weight: Address,
        bias: Address,
        out: Address,
        x_stride: u32,
        width: u32,
        pieces: u32,
        weight_len: u32,
        bias_len: u32,
        kind: u32,
        eps: f32,
        add: u32,
        out_stride: u32,
        out_form: u32,
        pad: u32,
        scale: f32,
    }
    ActAndMulArgs {
        gate: Address,
        up: Address,
        out: Address,
        cols: u32,
        gate_stride: u32,
        up_stride: u32,
        out_stride: u32,
        out_form: u32,
        activation: Activation,
    }
    PointArgs { x: Address, cols: u32, stride: u32, kind: u32, scale: f32, cap: f32, activation: Activation }
    MoeCombineArgs {
        from: Address,
        places: Address,
        weights: Address,
        out: Address,
        cols: u32,
        from_stride: u32,
        out_stride: u32,
        count: u32,
        weights_stride: u32,
        places_stride: u32,
        sigmoid: u32,
        add: u32,
        scale: f32,
    }
    CopyArgs { x: Address, rows: Address, out: Address, cols: u32, x_stride: u32, out_stride: u32, out_first: u32 }
    CutArgs {
        x: Address,
        pieces: Address,
        out: Address,
        rows: u32,
        from: u32,
        to: u32,
        ins: u32,
        x_stride: u32,
        out_stride: u32,
        pieces_stride: u32,
        pieces_form: u32,
    }
    OrderArgs {
        x: Address,
        places: Address,
        starts: Address,
        out: Address,
        read_bytes: Address,
        bytes_each: u64,
        row_bytes: u32,
        count: u32,
        places_stride: u32,
        experts: u32,
    }
    PoolArgs {
        x: Address,
        texts: Address,
        out: Address,
        cols: u32,
        x_stride: u32,
        out_stride: u32,
        kind: u32,
        from: u32,
    }
    /// `Product` of `products.cuh`.
    Product { linear: Linear, out: Address, rows: u32, out_stride: u32 }
    LinearArgs {
        products: [Product; LinearArgs::MOST],
        table: Address,
        starts: Address,
        x: Address,
        sums: Address,
        sums_each: u64,
        x_each: u64,
        from_table: u32,
        x_stride: u32,
        x_form: u32,
        out_each: u32,
        out_form: u32,
        tiles_each: u32,
        tokens: u32,
        slice: u32,
        slices: u32,
        mode: u32,
        scale: f32,
        pair: u32,
        activation: Activation,
    }
    RopeArgs {
        cache: Cache,
        q: Address,
        k: Address,
        v: Address,
        table: Address,
        positions: Address,
        slots: Address,
        layer: u32,
        q_stride: u32,
        k_stride: u32,
        v_stride: u32,
        dims: u32,
        interleaved: u32,
        q_heads: u32,
    }
    AttentionArgs {
        cache: Cache,
        q: Address,
        out: Address,
        spans: Address,
        blocks: Address,
        sinks: Address,
        relative_bias: Address,
        parts: Address,
        layer: u32,
        heads: u32,
        q_stride: u32,
        out_stride: u32,
        out_form: u32,
        window: u32,
        reach: u32,
        scale: f32,
        softcap: f32,
        tiles: u32,
        pieces: u32,
        splits: u32,
    }
    RouteArgs {
        scores: Address,
        correction: Address,
        experts: Address,
        weights: Address,
        all: u32,
        per_token: u32,
        scoring: u32,
        normalized: u32,
        groups: u32,
        chosen_groups: u32,
        best_of_group: u32,
        scale: f32,
        jitter: f32,
    }
    PlaceArgs { experts: Address, places: Address, starts: Address, pairs: u32, all: u32 }
    SampleArgs {
        logits: Address,
        queries: Address,
        lists: Address,
        answers: Address,
        rows: Address,
        keys: Address,
        vocab: u32,
        stride: u32,
    }
    /// `Place` of `memory.cu`.
    Place { at: Address, bytes: u64, middle: u64 }
    ScrubArgs { places: [Place; ScrubArgs::MOST], dirty: Address, count: u32 }
    VerifyArgs { at: Address, bytes: u64, dirty: Address }
    CleanArgs { shared_bytes: u32 }
}

impl LinearArgs {
    /// Matrices of one call.
    pub const MOST: usize = 3;
}

impl Product {
    /// None.
    pub const NONE: Self = Self { linear: Linear::NONE, out: 0, rows: 0, out_stride: 0 };
}

impl ScrubArgs {
    /// Places of one call.
    pub const MOST: usize = 64;
}

impl Matrix {
    /// None.
    pub const NONE: Self = Self { data: 0, scales: 0, rows: 0, cols: 0, format: 0, stride: 0 };
}

impl Linear {
    /// None.
    pub const NONE: Self = Self { weight: Matrix::NONE, bias: 0 };
}

impl From<backend::Activation> for Activation {
    fn from(activation: backend::Activation) -> Self {
        use backend::Activation::{Clamped, Gelu, GeluTanh, Relu, ReluSquared, Silu, Tanh};
        let kind = match activation {
            Silu => 0,
            Gelu => 1,
            GeluTanh => 2,
            Relu => 3,
            ReluSquared => 4,
            Tanh => 5,
            Clamped { .. } => 6,
        };
        let (alpha, limit) = match activation {
            Clamped { alpha, limit } => (alpha, limit),
            _ => (0.0, 0.0),
        };
        Self { kind, alpha, limit }
    }
}
