//! Rows of the first layer, recomputed from the weights in double precision: a check of what the library itself learns.

use amnesic::forensics::{Cache, Needles, Tolerance};

use crate::common::Recipe;

/// Two sums in another order, rounded to bf16.
const NEAR: Tolerance = Tolerance::Share(0.005);

/// See the module.
pub struct Rows<'a> {
    recipe: &'a Recipe,
    /// Whether the device multiplies bf16 by bf16: then what enters a product is rounded.
    bf16: bool,
}

impl<'a> Rows<'a> {
    pub fn new(recipe: &'a Recipe, device: &str) -> Self {
        Self { recipe, bf16: device.contains("bf16") || device.contains("amx") }
    }

    /// Needles for the second head's key and value of a token, and for the last head's query.
    pub fn needles(&self, id: u32, position: usize) -> Needles {
        let heads = self.recipe.size("num_attention_heads");
        let narrow = |row: Vec<f64>| row.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let key = narrow(self.turned(self.head("k_proj", 1, id), position));
        let query = narrow(self.turned(self.head("q_proj", heads - 1, id), position));
        Needles::new()
            .keys("recomputed keys", &key, Cache::Bf16, NEAR)
            .values("recomputed values", &narrow(self.head("v_proj", 1, id)), Cache::Bf16, NEAR)
            .row("recomputed query", &query, NEAR)
    }

    fn matrix(&self, name: &str) -> Vec<f64> {
        let shape = self.recipe.shapes().into_iter().find(|(other, _)| other == name).unwrap().1;
        self.recipe.values(name, &shape).into_iter().map(f64::from).collect()
    }

    /// One head of a projection of the normed embedding.
    fn head(&self, projection: &str, index: usize, id: u32) -> Vec<f64> {
        let (hidden, dim) = (self.recipe.size("hidden_size"), self.recipe.size("head_dim"));
        let table = self.matrix("model.embed_tokens.weight");
        let x = &table[id as usize * hidden..][..hidden];
        let mean = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
        let norm = self.matrix("model.layers.0.input_layernorm.weight");
        let entering = |x: f64| if self.bf16 { half::bf16::from_f64(x).to_f64() } else { x };
        let normed: Vec<f64> =
            x.iter().zip(norm).map(|(x, norm)| entering(x / (mean + 1e-5).sqrt() * norm)).collect();
        let weight = self.matrix(&format!("model.layers.0.self_attn.{projection}.weight"));
        let row = |row: usize| weight[row * hidden..][..hidden].iter().zip(&normed).map(|(w, x)| w * x).sum();
        (index * dim..(index + 1) * dim).map(row).collect()
    }

    fn turned(&self, row: Vec<f64>, position: usize) -> Vec<f64> {
        let dim = self.recipe.size("head_dim");
        let angle = |i: usize| position as f64 * 10_000_f64.powf(-2.0 * (i % (dim / 2)) as f64 / dim as f64);
        let other = |i: usize| if i < dim / 2 { -row[i + dim / 2] } else { row[i - dim / 2] };
        (0..dim).map(|i| row[i] * angle(i).cos() + other(i) * angle(i).sin()).collect()
    }
}
