//! `Secret<T>`: an owner that overwrites what it holds when it lets go.
#![expect(unsafe_code, reason = "text is kept as bytes that are known to be UTF-8")]

use std::borrow::Cow;
use std::fmt;
use std::io;

use super::buffer::Buffer;
use super::scrub::{Plain, Scrubbed, scrub};

/// What a [`Secret`] can hold: `[u32]`, `[f32]`, `[u8]`, `str`.
pub trait Content {
    /// What it is made of.
    type Value: Plain;

    /// What it is made of.
    fn values(&self) -> &[Self::Value];

    /// The values as what they are.
    ///
    /// # Safety
    /// They were given to the secret as this type, in one piece or in whole parts.
    unsafe fn view(values: &[Self::Value]) -> &Self;
}

impl<T: Plain> Content for [T] {
    type Value = T;

    fn values(&self) -> &[T] {
        self
    }

    unsafe fn view(values: &[T]) -> &Self {
        values
    }
}

impl Content for str {
    type Value = u8;

    fn values(&self) -> &[u8] {
        self.as_bytes()
    }

    unsafe fn view(values: &[u8]) -> &Self {
        // SAFETY: the caller's promise: they came as `str`.
        unsafe { str::from_utf8_unchecked(values) }
    }
}

/// What content comes in: `Vec` and `String`.
pub trait Owner {
    /// What it owns.
    type Content: Content + ?Sized;

    /// What it owns.
    fn content(&self) -> &Self::Content;

    /// Overwrites what it holds and held, spare capacity included.
    #[cfg_attr(amnesic_faults, track_caller)]
    fn wipe(self) -> Scrubbed;
}

impl<T: Plain> Owner for Vec<T> {
    type Content = [T];

    fn content(&self) -> &[T] {
        self
    }

    #[cfg_attr(amnesic_faults, track_caller)]
    fn wipe(mut self) -> Scrubbed {
        self.resize(self.capacity(), T::default());
        scrub(&mut self)
    }
}

impl Owner for String {
    type Content = str;

    fn content(&self) -> &str {
        self
    }

    #[cfg_attr(amnesic_faults, track_caller)]
    fn wipe(self) -> Scrubbed {
        self.into_bytes().wipe()
    }
}

/// Content of a request: prompt text, token ids, text on its way out.
///
/// Lives on a heap of its own (`memory/heap`): locked where the system allows, out of core dumps, zeros in forked
/// children. No `Clone`, no `Serialize`, and `Debug` prints `[REDACTED]`; [`Secret::expose`] is the one door. Growing
/// copies into a larger block and overwrites the old one, which `Vec` and `String` on their own do not. Not guaranteed:
/// what callers copy out through `expose`, and `mem::forget`.
pub struct Secret<C: Content + ?Sized>(Buffer<C::Value>);

impl<C: Content + ?Sized> Secret<C> {
    /// The content itself.
    pub fn expose(&self) -> &C {
        // SAFETY: all that appends takes `C`, or, for text, is given it by `Secret::<str>::from_utf8`.
        unsafe { C::view(self.0.values()) }
    }

    /// Overwrites the content now.
    #[cfg_attr(amnesic_faults, track_caller)]
    pub fn wipe(&mut self) -> Scrubbed {
        self.0.wipe()
    }

    /// Takes content over: copies it, and overwrites the string or vector that it came in.
    pub fn new<O: Owner<Content = C>>(owner: O) -> Self {
        let secret = Self::copy(owner.content());
        let _ = owner.wipe();
        secret
    }

    /// A copy of `content`; what it is copied from is somebody else's.
    pub fn copy(content: &C) -> Self {
        let mut buffer = Buffer::with_capacity(content.values().len());
        buffer.append(content.values());
        Self(buffer)
    }
}

impl Secret<str> {
    /// Takes text over: what is borrowed is copied, and stays its owner's; what is owned is overwritten, too.
    pub fn take(text: Cow<'_, str>) -> Self {
        match text {
            Cow::Borrowed(text) => Self::copy(text),
            Cow::Owned(text) => Self::new(text),
        }
    }

    /// Bytes that are UTF-8, as text; else they are overwritten.
    pub fn from_utf8(bytes: Secret<[u8]>) -> Option<Self> {
        str::from_utf8(bytes.expose()).is_ok().then(|| Self(bytes.0))
    }

    /// The text with `more` behind it.
    pub fn followed_by(self, more: &str) -> Self {
        if more.is_empty() {
            return self;
        }
        let mut buffer = Buffer::with_capacity(self.0.values().len() + more.len());
        buffer.append(self.0.values());
        buffer.append(more.as_bytes());
        Self(buffer)
    }

    /// Gives the content away as a plain string: from here on its new owner answers for it.
    pub fn into_exposed(self) -> String {
        self.expose().to_owned()
    }
}

impl<T: Plain> Secret<[T]> {
    /// An empty buffer that can take `capacity` values before it must grow.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Buffer::with_capacity(capacity))
    }

    /// The content, to change in place.
    pub fn expose_mut(&mut self) -> &mut [T] {
        self.0.values_mut()
    }

    /// How many values it can take before it must grow.
    #[cfg(feature = "testing")]
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Makes room for `capacity` values in all, so that none of them moves later.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity > self.0.capacity() {
            let mut larger = Buffer::with_capacity(capacity);
            larger.append(self.0.values());
            self.0 = larger; // drops, and so overwrites, the old block
        }
    }

    /// Appends one value.
    pub fn push(&mut self, value: T) {
        self.extend(&[value]);
    }

    /// Appends `values`.
    pub fn extend(&mut self, values: &[T]) {
        let wanted = self.0.values().len() + values.len();
        if wanted > self.0.capacity() {
            self.reserve(wanted.next_power_of_two().max(64));
        }
        self.0.append(values);
    }

    /// Replaces the content by `values`, in place when they fit; returns them.
    pub fn refill(&mut self, values: impl ExactSizeIterator<Item = T>) -> &mut [T] {
        let count = values.len();
        if count > self.0.capacity() {
            self.0 = Buffer::with_capacity(count);
        }
        self.0.refill(values);
        self.0.values_mut()
    }

    /// Removes the first `count` values; what moves down leaves nothing behind it.
    pub fn drain_front(&mut self, count: usize) {
        let values = self.0.values_mut();
        let kept = values.len() - count;
        values.copy_within(count.., 0);
        self.truncate(kept);
    }

    /// Shortens to `len` values and overwrites the rest.
    pub fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.0.values_mut().get_mut(len..) {
            let _ = scrub(rest);
            self.0.shorten(len);
        }
    }

    /// Gives the content away as a plain vector: from here on its new owner answers for it.
    #[cfg(any(test, feature = "testing"))]
    pub fn into_exposed(self) -> Vec<T> {
        self.expose().to_owned()
    }
}

impl<C: Content + ?Sized> Default for Secret<C> {
    fn default() -> Self {
        Self(Buffer::new())
    }
}

impl<C: Content + ?Sized, O: Owner<Content = C>> From<O> for Secret<C> {
    fn from(owner: O) -> Self {
        Self::new(owner)
    }
}

impl<C: Content + ?Sized> fmt::Debug for Secret<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Writes into a secret, which overwrites what it outgrows.
pub struct Growing<'a>(pub &'a mut Secret<[u8]>);

impl io::Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_no_content() {
        let secret = Secret::new(String::from("canary"));
        assert_eq!((format!("{secret:?}"), secret.expose()), ("[REDACTED]".into(), "canary"));
    }

    #[test]
    fn wiping_covers_the_spare_capacity() {
        let mut secret = Secret::new(vec![7_u32; 100]);
        secret.truncate(3);
        assert_eq!(secret.expose(), [7, 7, 7]);
        assert_eq!(secret.wipe().bytes(), 400);
        assert!(secret.expose().is_empty());
    }

    /// Nothing of what is behind the end stays there.
    #[test]
    fn what_is_cut_off_is_overwritten() {
        let mut secret = Secret::new(vec![7_u32; 100]);
        let block = secret.expose().as_ptr();
        secret.drain_front(30);
        secret.truncate(3);
        // SAFETY: the block has room for a hundred values, all of which were set.
        let all = unsafe { std::slice::from_raw_parts(block, 100) };
        assert_eq!((secret.expose(), &all[3..]), (&[7; 3][..], &[0; 97][..]));
    }

    #[test]
    fn growing_and_draining_keep_the_values() {
        let mut secret = Secret::<[u32]>::with_capacity(1);
        for value in 0..1000 {
            secret.push(value);
        }
        secret.drain_front(990);
        assert_eq!(secret.expose(), (990..1000).collect::<Vec<_>>());
        secret.truncate(2);
        assert_eq!(secret.expose(), [990, 991]);
        assert_eq!(secret.refill([5, 6, 7].into_iter()), [5, 6, 7]);
        secret.truncate(9);
        assert_eq!(secret.into_exposed(), [5, 6, 7]);
    }

    #[test]
    fn only_utf8_becomes_text() {
        assert_eq!(Secret::from_utf8(Secret::new(b"gr\xc3\xbcn".to_vec())).unwrap().expose(), "grün");
        assert!(Secret::from_utf8(Secret::new(b"gr\xc3".to_vec())).is_none());
    }

    #[test]
    fn a_secret_lives_where_secrets_live() {
        let secret = Secret::new(String::from("somewhere"));
        assert!(crate::memory::heap::contains(secret.expose().as_ptr()));
    }
}
