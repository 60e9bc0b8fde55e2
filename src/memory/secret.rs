//! `Secret<T>`: an owner that overwrites what it holds when it lets go.

use std::fmt;

use super::scrub::{Plain, Scrubbed, scrub};

/// What a [`Secret`] can hold: heap buffers that can be overwritten, spare capacity included.
pub trait Wipe {
    /// Overwrites the whole allocation with zeros and empties the value.
    fn wipe(&mut self) -> Scrubbed;
}

impl<T: Plain> Wipe for Vec<T> {
    fn wipe(&mut self) -> Scrubbed {
        // The spare capacity may hold elements that were popped or truncated.
        self.resize(self.capacity(), T::default());
        let scrubbed = scrub(self);
        self.clear();
        scrubbed
    }
}

impl Wipe for String {
    fn wipe(&mut self) -> Scrubbed {
        std::mem::take(self).into_bytes().wipe()
    }
}

/// Content of a request: prompt text, token ids, text on its way out.
///
/// No `Clone`, no `Serialize`, and `Debug` prints `[REDACTED]`; [`Secret::expose`] is the one door. Growing copies
/// into a larger buffer and overwrites the old one, which `Vec` and `String` on their own do not. Not guaranteed:
/// what callers copy out through `expose`, and `mem::forget`.
pub struct Secret<T: Wipe>(T);

impl<T: Wipe> Secret<T> {
    /// Takes ownership of `value`; its buffer is overwritten when the secret drops.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The content itself.
    pub fn expose(&self) -> &T {
        &self.0
    }

    /// Overwrites the content now.
    pub fn wipe(&mut self) -> Scrubbed {
        self.0.wipe()
    }

    /// Gives the content away: from here on its new owner answers for it.
    pub fn into_exposed(mut self) -> T
    where
        T: Default,
    {
        std::mem::take(&mut self.0)
    }
}

impl<T: Plain> Secret<Vec<T>> {
    /// An empty buffer that can take `capacity` values before it must grow.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Makes room for `capacity` values in all, so that none of them moves later.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity > self.0.capacity() {
            let mut larger = Vec::with_capacity(capacity);
            larger.extend_from_slice(&self.0);
            let _ = std::mem::replace(self, Self(larger)); // drops, and so overwrites, the old buffer
        }
    }

    /// Appends one value.
    pub fn push(&mut self, value: T) {
        self.extend(&[value]);
    }

    /// Appends `values`.
    pub fn extend(&mut self, values: &[T]) {
        let wanted = self.0.len() + values.len();
        if wanted > self.0.capacity() {
            self.reserve(wanted.next_power_of_two().max(64));
        }
        self.0.extend_from_slice(values);
    }

    /// Replaces the content by `values`, in place when they fit; returns them.
    pub fn refill(&mut self, values: impl ExactSizeIterator<Item = T>) -> &mut [T] {
        if values.len() > self.0.capacity() {
            let _ = std::mem::replace(self, Self(Vec::with_capacity(values.len())));
        }
        self.0.clear();
        self.0.extend(values);
        &mut self.0
    }

    /// Removes the first `count` values; what moves down leaves nothing behind it.
    pub fn drain_front(&mut self, count: usize) {
        let kept = self.0.len() - count;
        self.0.copy_within(count.., 0);
        let _ = scrub(&mut self.0[kept..]);
        self.0.truncate(kept);
    }

    /// Shortens to `len` values and overwrites the rest.
    pub fn truncate(&mut self, len: usize) {
        if len < self.0.len() {
            let _ = scrub(&mut self.0[len..]);
            self.0.truncate(len);
        }
    }
}

impl<T: Wipe> Drop for Secret<T> {
    fn drop(&mut self) {
        let _ = self.0.wipe();
    }
}

impl<T: Wipe + Default> Default for Secret<T> {
    fn default() -> Self {
        Self(T::default())
    }
}

impl<T: Wipe> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Wipe> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_content() {
        let secret = Secret::new(String::from("canary"));
        assert_eq!(format!("{secret:?}"), "[REDACTED]");
    }

    #[test]
    fn wiping_covers_the_spare_capacity() {
        let mut values = vec![7_u32; 100];
        values.truncate(3);
        assert_eq!(values.wipe().bytes(), 400);
        assert!(values.is_empty());
    }

    #[test]
    fn growing_and_draining_keep_the_values() {
        let mut secret = Secret::<Vec<u32>>::with_capacity(1);
        for value in 0..1000 {
            secret.push(value);
        }
        secret.drain_front(990);
        assert_eq!(secret.expose(), &(990..1000).collect::<Vec<_>>());
        secret.truncate(2);
        assert_eq!(secret.expose(), &[990, 991]);
    }
}
