//! What the reference computed, beside a checkpoint: `expected.json`.

use serde::Deserialize;

/// Several prompts.
#[derive(Deserialize)]
pub struct Expected {
    pub prompts: Vec<Vec<u32>>,
    pub greedy: Vec<Vec<u32>>,
    pub low_max_abs: Vec<f64>,
    pub low_rms: Vec<f64>,
}

/// One prompt.
#[derive(Deserialize)]
pub struct ExpectedOne {
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    pub low_max_abs: f64,
    pub low_rms: f64,
}
