//! The digest of what a chain shows.
//!
//! Owns: the two digests and how zeros shorten their computation. Must not know: how bytes are read.

use super::stream;
use crate::chain::Chain;
use crate::copy::{Copier, Meter, Run};
use crate::error::Result;
use crate::units::{MIB, round_up};
use crate::watch::Watch;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Bytes per leaf of the tree digest.
pub const TREE_CHUNK: u64 = MIB;
/// Chunks hashed at a time.
const BATCH: usize = 64;
/// The most levels of a tree: a disk has less than 2^64 bytes.
const LEVELS: usize = 64;
/// Before an entry, and before two digests that are joined (RFC 6962, section 2.1).
const LEAF: [u8; 1] = [0];
const NODE: [u8; 1] = [1];

type Hash = [u8; 32];

/// Which digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum HashKind {
    /// SHA-256 of all bytes of the disk, the same that `sha256sum` prints for the raw disk. One thread computes it, zeros
    /// included; reading is done ahead by others.
    #[default]
    #[cfg_attr(feature = "serde", serde(rename = "sha256"))]
    Sha256,
    /// The Merkle tree hash of RFC 6962 (section 2.1, with SHA-256), whose entries are the disk's chunks of
    /// [`TREE_CHUNK`] bytes (the last may be shorter). All threads compute it, and runs of zeros cost nothing: for large
    /// and sparse disks. No other program's digest of a disk, and a function of its bytes and size alone.
    #[cfg_attr(feature = "serde", serde(rename = "sha256-tree"))]
    Tree,
}

/// How a disk is hashed.
#[derive(Clone, Copy, Debug, Default)]
pub struct HashOptions {
    kind: HashKind,
    jobs: usize,
}

impl HashOptions {
    /// SHA-256.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Which digest.
    #[must_use]
    pub fn kind(mut self, kind: HashKind) -> Self {
        self.kind = kind;
        self
    }

    /// How many threads read and, for the tree, hash; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }
}

/// A disk's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HashReport {
    /// Which digest it is.
    pub kind: HashKind,
    /// The digest, in hexadecimal.
    pub digest: String,
    /// The size of the disk in bytes.
    pub virtual_size: u64,
    /// Bytes read; the rest is zero by the maps.
    pub read: u64,
}

/// The digest of what `chain` shows: of its bytes and its size, whatever formats and files they are stored in.
///
/// # Errors
/// Those of reading; `Cancelled`.
pub fn hash(chain: &Chain, options: &HashOptions, watch: &Watch<'_>) -> Result<HashReport> {
    let virtual_size = chain.virtual_size();
    let meter = Meter::new(watch, virtual_size);
    let copier = Copier::new(options.jobs)?;
    let digest = match options.kind {
        HashKind::Sha256 => flat(chain, &copier, &meter)?,
        HashKind::Tree => tree(chain, &copier, &meter)?,
    };
    let mut text = String::with_capacity(2 * digest.len());
    for byte in digest {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(HashReport { kind: options.kind, digest: text, virtual_size, read: meter.moved() })
}

fn flat(chain: &Chain, copier: &Copier, meter: &Meter<'_>) -> Result<Hash> {
    let mut digest = Sha256::new();
    stream::pour(stream::runs(chain.layers()), copier, meter, |bytes| {
        digest.update(bytes);
        Ok(())
    })?;
    Ok(digest.finalize().into())
}

fn tree(chain: &Chain, copier: &Copier, meter: &Meter<'_>) -> Result<Hash> {
    let mut tree = Tree::new();
    let mut batch: Vec<Vec<Run<'_>>> = Vec::new();
    let mut chunk: Vec<Run<'_>> = Vec::new();
    let mut at = 0;
    let finish = |tree: &mut Tree, batch: &mut Vec<Vec<Run<'_>>>| -> Result<()> {
        for leaf in copier.each(batch, meter, leaf)? {
            tree.push(0, leaf);
        }
        batch.clear();
        Ok(())
    };
    for run in stream::runs(chain.layers()) {
        let mut run = run?;
        while run.len > 0 {
            let boundary = round_up(at + 1, TREE_CHUNK).unwrap_or(u64::MAX);
            if run.from.is_none() && chunk.is_empty() && run.len >= TREE_CHUNK {
                finish(&mut tree, &mut batch)?;
                meter.check()?;
                tree.push_zeros(run.len / TREE_CHUNK);
                at += run.len - run.len % TREE_CHUNK;
                run.len %= TREE_CHUNK;
                meter.reached(at);
                continue;
            }
            let len = run.len.min(boundary - at);
            chunk.push(Run { len, from: run.from });
            run = Run { len: run.len - len, from: run.from.map(|(origin, start)| (origin, start + len)) };
            at += len;
            if at == boundary {
                batch.push(std::mem::take(&mut chunk));
            }
            if batch.len() == BATCH {
                finish(&mut tree, &mut batch)?;
                meter.reached(at);
            }
        }
    }
    if !chunk.is_empty() {
        batch.push(chunk);
    }
    finish(&mut tree, &mut batch)?;
    meter.reached(at);
    Ok(tree.root())
}

fn leaf(bytes: &[u8]) -> Hash {
    Sha256::new().chain_update(LEAF).chain_update(bytes).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update(NODE).chain_update(left).chain_update(right).finalize().into()
}

/// The complete subtrees of the leaves so far, by height: one for each set bit of their number.
struct Tree {
    subtrees: [Option<Hash>; LEVELS],
    leaves: u64,
    /// The digest of a complete subtree of zeros, by height.
    zeros: [Hash; LEVELS],
}

impl Tree {
    fn new() -> Self {
        let mut zeros = [leaf(&vec![0; TREE_CHUNK as usize]); LEVELS];
        for height in 1..LEVELS {
            zeros[height] = node(&zeros[height - 1], &zeros[height - 1]);
        }
        Self { subtrees: [None; LEVELS], leaves: 0, zeros }
    }

    /// Adds a complete subtree of `height`; the number of leaves before it is a multiple of its own.
    fn push(&mut self, height: usize, hash: Hash) {
        self.leaves += 1 << height;
        let (mut height, mut hash) = (height, hash);
        while let Some(left) = self.subtrees[height].take() {
            hash = node(&left, &hash);
            height += 1;
        }
        self.subtrees[height] = Some(hash);
    }

    /// Adds that many whole chunks of zeros.
    fn push_zeros(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            let height = self.leaves.trailing_zeros().min(left.ilog2()) as usize;
            self.push(height, self.zeros[height]);
            left -= 1 << height;
        }
    }

    fn root(&self) -> Hash {
        let joined = self.subtrees.iter().flatten().copied().reduce(|right, left| node(&left, &right));
        joined.unwrap_or_else(|| Sha256::digest([]).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962, section 2.1, as it is written there: recursively.
    fn written_out(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node(&written_out(left), &written_out(right))
            }
        }
    }

    #[test]
    fn runs_of_zeros_give_the_root_that_single_leaves_give() {
        let zero = leaf(&vec![0; TREE_CHUNK as usize]);
        for before in 0..9u64 {
            for zeros in 0..40 {
                for after in [0, 1, 3] {
                    let (mut tree, mut leaves) = (Tree::new(), Vec::new());
                    let data = |tree: &mut Tree, count: u64, leaves: &mut Vec<Hash>| {
                        for n in 0..count {
                            let one = leaf(&[n as u8 + 1]);
                            leaves.push(one);
                            tree.push(0, one);
                        }
                    };
                    data(&mut tree, before, &mut leaves);
                    tree.push_zeros(zeros);
                    leaves.resize(leaves.len() + zeros as usize, zero);
                    data(&mut tree, after, &mut leaves);
                    assert_eq!(tree.root(), written_out(&leaves), "{before} {zeros} {after}");
                }
            }
        }
    }

    /// The entries and roots that implementations of Certificate Transparency logs test with.
    #[test]
    fn the_root_is_that_of_rfc_6962() {
        let entries: [&[u8]; 8] = [
            &[],
            &[0x00],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let hex = |hash: Hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut tree = Tree::new();
        assert_eq!(hex(tree.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for entry in entries {
            tree.push(0, leaf(entry));
        }
        assert_eq!(hex(tree.root()), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }
}
