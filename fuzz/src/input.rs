//! Bytes as a source of choices.
//!
//! Owns: how an input is taken apart. Exhausted inputs answer zeros, so every prefix of an input is one too.

use arbitrary::Unstructured;

/// An input being taken apart, front to back.
pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether there is anything left to decide.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn short(&mut self) -> u16 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn long(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// True once in so many.
    pub(crate) fn one_in(&mut self, many: u8) -> bool {
        self.byte().is_multiple_of(many)
    }

    /// One of `0..count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let number = if count > 256 { usize::from(self.short()) } else { usize::from(self.byte()) };
        number % count.max(1)
    }

    /// One of `list`.
    pub(crate) fn pick<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// The next `len` bytes, zeros where there are none.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = self.0.bytes(len.min(self.0.len())).map_or_else(|_| Vec::new(), <[u8]>::to_vec);
        bytes.resize(len, 0);
        bytes
    }
}
