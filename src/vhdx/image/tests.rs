#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]
#![allow(clippy::arithmetic_side_effects, clippy::cast_possible_truncation)]

mod real;

use super::*;
use crate::map::{BlockMap, Source};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};

/// SHA-256 of the whole disk, with absent ranges as zeros: right for a disk without a parent.
fn disk_hash(image: &Vhdx) -> Result<String> {
    const PIECE: u64 = 1 << 20;
    let zeros = vec![0; PIECE as usize];
    let mut buffer = vec![0; PIECE as usize];
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.extent_at(at, PIECE)?;
        let len = extent.len as usize;
        match extent.source {
            Source::Data(place) => {
                image.storage().read_exact_at(&mut buffer[..len], place.get()).unwrap();
                hash.update(&buffer[..len]);
            }
            Source::Zero | Source::Absent => hash.update(&zeros[..len]),
        }
        at += extent.len;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Counts what is read through it.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Storage>,
    read: AtomicU64,
}

impl Counting {
    fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, read: AtomicU64::new(0) }
    }

    fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

impl Storage for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }
}
