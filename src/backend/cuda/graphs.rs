//! Steps that were recorded as CUDA graphs: a step in which each request has one token asks for the same kernels with the
//! same arguments as the last one of its size, since all that changes is in memory. Asked for one by one they would cost
//! more than they take.

use super::driver::Driver;
use crate::backend::Batch;

/// So many are kept; then the one goes that was done the longest time ago.
const MOST: usize = 64;

/// How many rows a step of `rows` has that is recorded: the next power of two, or multiple of eight, which is what matrix
/// instructions take at once. So batches of up to 256 come in 36 sizes.
pub fn bucket(rows: usize) -> usize {
    if rows <= 8 { rows.next_power_of_two() } else { rows.next_multiple_of(8) }
}

/// What makes two steps alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub rows: usize,
    pub outputs: usize,
    /// Splits of attention, which has a place in its grid for each.
    pub splits: usize,
    /// Changes with the addresses of what a step is told.
    pub generation: u64,
}

#[derive(Debug)]
struct Recorded<G> {
    key: Key,
    graph: G,
    /// Bytes of weights that it reads.
    weight_bytes: u64,
    /// How much of the scratch it writes, at most: nobody notes that when it is done again.
    parts_used: usize,
}

/// What ids, positions and rows of their table must be below: looked at by ops, which are not called again.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub ids: usize,
    pub positions: usize,
    pub position_types: usize,
}

/// The recorded steps.
#[derive(Debug)]
pub struct Graphs<D: Driver> {
    recorded: Vec<Recorded<D::Graph>>,
    /// Steps that came once: those that come again are recorded. The first time prepares what the second needs.
    once: Vec<Key>,
    recording: Option<(Key, u64)>,
    pub limits: Limits,
}

impl<D: Driver> Default for Graphs<D> {
    fn default() -> Self {
        let limits = Limits { ids: usize::MAX, positions: usize::MAX, position_types: usize::MAX };
        Self { recorded: Vec::new(), once: Vec::new(), recording: None, limits }
    }
}

impl<D: Driver> Graphs<D> {
    /// Whether it is a step of the kind that is recorded: tokens are chosen from it, one of each request.
    ///
    /// # Panics
    /// If an id or a position is outside its table.
    pub fn knows(&self, batch: &Batch<'_>) -> bool {
        let within = |values: &[u32], limit| values.iter().all(|&value| (value as usize) < limit);
        assert!(within(batch.ids, self.limits.ids), "ids outside the table");
        assert!(within(batch.positions, self.limits.positions), "rope: a position behind the table");
        assert!(within(batch.position_types, self.limits.position_types), "ids outside the table");
        !batch.outputs.is_empty() && batch.spans.iter().all(|span| span.rows == 1 && span.adapter.is_none())
    }

    /// Does what was recorded of such a step, and returns the bytes of weights that it reads, and of scratch that it writes;
    /// none if nothing was.
    pub fn replay(&mut self, key: Key, driver: &D) -> Option<(u64, usize)> {
        let at = self.recorded.iter().position(|recorded| recorded.key == key)?;
        self.recorded[at..].rotate_left(1); // the last one is the latest
        let recorded = self.recorded.last()?;
        driver.replay(&recorded.graph);
        Some((recorded.weight_bytes, recorded.parts_used))
    }

    /// Records from here on, unless such a step comes for the first time.
    pub fn record(&mut self, key: Key, weight_bytes: u64, driver: &D) {
        if !self.once.contains(&key) {
            self.recorded.retain(|recorded| recorded.key.generation == key.generation);
            self.once.retain(|once| once.generation == key.generation);
            return self.once.push(key);
        }
        driver.record();
        self.recording = Some((key, weight_bytes));
    }

    /// Drops what is being recorded: the step ended with a panic.
    pub fn abandon(&mut self, driver: &D) {
        if self.recording.take().is_some() {
            drop(driver.recorded());
        }
    }

    /// How many steps are kept.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.recorded.len()
    }

    /// Ends the record, if there is one, and does it.
    pub fn recorded(&mut self, weight_bytes: u64, parts_used: usize, driver: &D) {
        let Some((key, before)) = self.recording.take() else { return };
        let weight_bytes = weight_bytes - before;
        match driver.recorded() {
            Some(graph) => {
                driver.replay(&graph);
                if self.recorded.len() == MOST {
                    self.recorded.remove(0);
                }
                self.recorded.push(Recorded { key, graph, weight_bytes, parts_used });
            }
            None => driver.fail(), // a step is lost
        }
    }
}
