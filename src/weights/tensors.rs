//! Where a model's tensors are looked for: in a checkpoint, or in what only says which there are.

use std::path::Path;

use super::checkpoint::{Checkpoint, Tensor, Unread};
use crate::error::Result;

/// What [`crate::model::weights::Weights`] are found in.
pub trait Tensors {
    /// The tensor `name`, of exactly `shape`.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::tensor`].
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The matrix `{name}.weight`, or what stands in its place.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::tensor`].
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor>;

    /// The matrices of gpt-oss's experts.
    ///
    /// # Errors
    /// Returns the errors of [`Checkpoint::tensor`].
    fn gpt_oss(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>>;

    /// Whether there is a tensor `name`.
    fn has(&self, name: &str) -> bool;

    /// Whether there is a tensor of the module `name`, whatever it is called there.
    fn has_below(&self, name: &str) -> bool;

    /// Whether there are no tensors.
    fn is_empty(&self) -> bool;

    /// A tensor that stands for a missing one until all are looked for. Its values are of no tensor.
    fn stand_in(&self, name: &str, shape: &[usize]) -> Tensor;

    /// Those that nobody asked for, sorted by their names.
    fn unread(&self) -> Vec<Unread<'_>>;

    /// Where they are, for errors.
    fn folder(&self) -> &Path;
}

impl Tensors for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor(name, shape)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.matrix(name, rows, cols)
    }

    fn gpt_oss(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>> {
        self.gpt_oss(name, experts, rows, cols)
    }

    fn has(&self, name: &str) -> bool {
        self.has(name)
    }

    fn has_below(&self, name: &str) -> bool {
        self.has_below(name)
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn stand_in(&self, name: &str, shape: &[usize]) -> Tensor {
        self.stand_in(name, shape)
    }

    fn unread(&self) -> Vec<Unread<'_>> {
        self.unread()
    }

    fn folder(&self) -> &Path {
        self.folder()
    }
}

/// Which tensors a model reads of those that somebody has who is only asked by name: `VarBuilder`s do not list theirs.
#[cfg(feature = "candle")]
pub struct Listing<'a> {
    has: &'a dyn Fn(&str) -> bool,
    folder: &'a Path,
    /// Those that were asked for and are there, and their shapes.
    found: std::cell::RefCell<std::collections::BTreeMap<String, Vec<usize>>>,
}

#[cfg(feature = "candle")]
impl<'a> Listing<'a> {
    pub fn new(has: &'a dyn Fn(&str) -> bool, folder: &'a Path) -> Self {
        Self { has, folder, found: Default::default() }
    }

    /// Names and shapes.
    pub fn found(self) -> std::collections::BTreeMap<String, Vec<usize>> {
        self.found.into_inner()
    }
}

#[cfg(feature = "candle")]
impl Tensors for Listing<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if !self.has(name) {
            return Err(crate::error::Error::tensor(
                self.folder,
                name,
                format!("be there, with shape {shape:?}"),
            ));
        }
        self.found.borrow_mut().insert(name.to_owned(), shape.to_vec());
        Ok(Tensor::without_values(name, shape))
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.tensor(&format!("{name}.weight"), &[rows, cols])
    }

    fn gpt_oss(&self, name: &str, experts: usize, rows: usize, cols: usize) -> Result<Vec<Tensor>> {
        self.tensor(name, &[experts, cols, rows])?;
        Ok((0..experts).map(|_| Tensor::without_values(name, &[rows, cols])).collect())
    }

    fn has(&self, name: &str) -> bool {
        (self.has)(name)
    }

    fn has_below(&self, name: &str) -> bool {
        self.has(&format!("{name}.weight"))
    }

    fn is_empty(&self) -> bool {
        false
    }

    fn stand_in(&self, name: &str, shape: &[usize]) -> Tensor {
        Tensor::without_values(name, shape)
    }

    fn unread(&self) -> Vec<Unread<'_>> {
        Vec::new()
    }

    fn folder(&self) -> &Path {
        self.folder
    }
}
