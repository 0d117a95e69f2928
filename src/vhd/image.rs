//! An open VHD: what it says of itself, and which bytes hold which virtual range.
//!
//! Owns: the type and its block map. Must not know: how it was found trustworthy, or how it is changed.

use super::bat::Bat;
use super::batmap::Batmap;
use super::footer::Footer;
use super::header::Header;
use super::locator::Locators;
use super::store::Store;
use super::write::Pending;
use crate::error::{Error, ErrorKind, Result};
use crate::link::{DiskKind, ImageId, ParentLink};
use crate::map::{BlockMap, Extent, Source};
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, Storage};
use crate::units::{FileOffset, SECTOR};
use std::sync::Mutex;

/// An open VHD image: fixed, dynamic or differencing.
///
/// Opening reads the footer, its copy, the dynamic header and the parent locators, a few kilobytes whatever the disk's
/// size; the block allocation table and the bitmaps are read when they are asked for.
#[derive(Debug)]
pub struct Vhd {
    pub(super) store: Store,
    pub(super) access: Access,
    pub(super) footer: Footer,
    /// Where the footer at the end of the file lies; the file's length when it is lost.
    pub(super) tail_at: u64,
    pub(super) sparse: Option<Sparse>,
    /// Where the data ends, once the BAT has been read for it.
    pub(super) data_end: Mutex<Option<u64>>,
    pub(super) pending: Option<Pending>,
    pub(super) tickets: u64,
    /// Whether the file was made longer through this handle.
    pub(super) grown: bool,
}

/// What a dynamic or differencing image has and a fixed one has not.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) header: Header,
    pub(super) header_at: u64,
    pub(super) bat: Bat,
    pub(super) locators: Locators,
    pub(super) batmap: Option<Batmap>,
}

impl Vhd {
    /// Fixed, dynamic or differencing.
    #[must_use]
    pub fn kind(&self) -> DiskKind {
        self.footer.kind()
    }

    /// The footer's Unique ID, by which children know it.
    #[must_use]
    pub fn id(&self) -> ImageId {
        ImageId::Vhd(self.footer.unique_id())
    }

    /// The parent this image was made over; `None` unless it is differencing.
    #[must_use]
    pub fn parent_link(&self) -> Option<ParentLink> {
        if self.kind() != DiskKind::Differencing {
            return None;
        }
        let sparse = self.sparse.as_ref()?;
        let id = sparse.header.parent_id();
        let ids = if id == [0; 16] { Vec::new() } else { vec![ImageId::Vhd(id)] };
        Some(ParentLink { ids, hints: sparse.locators.hints.clone() })
    }

    /// The parent file's modification time when the link was made, in seconds since 2000-01-01 UTC; many producers write
    /// 0. `None` unless the image is differencing.
    #[must_use]
    pub fn parent_timestamp(&self) -> Option<u32> {
        let sparse = self.sparse.as_ref().filter(|_| self.kind() == DiskKind::Differencing)?;
        Some(sparse.header.parent_timestamp())
    }

    /// The program that made the image and its version, as `name major.minor`.
    #[must_use]
    pub fn creator(&self) -> String {
        self.footer.creator()
    }

    /// Bytes per block; `None` for a fixed image.
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        self.sparse.as_ref().map(|sparse| sparse.header.block_size())
    }

    /// Whether a saved state of a virtual machine depends on the contents; such an image is not written to.
    #[must_use]
    pub fn saved_state(&self) -> bool {
        self.footer.saved_state()
    }

    /// When the image was made, in seconds since 2000-01-01 UTC.
    #[must_use]
    pub fn timestamp(&self) -> u32 {
        self.footer.timestamp()
    }

    /// The disk's size in bytes when it was made.
    #[must_use]
    pub fn original_size(&self) -> u64 {
        self.footer.raw().original_size.get()
    }

    /// The bytes its C/H/S geometry addresses: what some readers take for the size of disks made by Virtual PC and QEMU.
    #[must_use]
    pub fn chs_size(&self) -> u64 {
        self.footer.geometry().bytes()
    }

    /// How many blocks have a place in the file; reads the whole block allocation table. 0 for a fixed image.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn allocated_blocks(&self) -> Result<u64> {
        self.sparse.as_ref().map_or(Ok(0), |sparse| sparse.bat.allocated(&self.store))
    }

    fn fixed_extent(&self, offset: u64, end: u64) -> Result<Extent> {
        if offset >= self.tail_at {
            let found = format_args!("a fixed disk of {} bytes", self.footer.size());
            let allowed = format_args!("at most {}, where the footer lies", self.tail_at);
            let problem = Problem::new(Structure::VhdFooter, Fault::Value, found, allowed);
            return Err(Error::corrupt(problem.at(FileOffset(self.tail_at))));
        }
        let len = end.min(self.tail_at).saturating_sub(offset);
        Ok(Extent { len, source: Source::Data(FileOffset(offset)) })
    }
}

impl Sparse {
    /// The answer for the run at `at`, inside one block or over blocks without a place.
    fn run_at(&self, store: &Store, at: u64, end: u64) -> Result<Extent> {
        let layout = self.bat.layout;
        let (block, within) = layout.split(at);
        let Some(block_at) = self.bat.block(store, block)? else {
            let run = self.bat.unallocated_run(store, block..layout.blocks(end))?;
            let run_end = layout.start(block.saturating_add(run.max(1))).min(end);
            return Ok(Extent { len: run_end.saturating_sub(at), source: Source::Absent });
        };
        let block_start = layout.start(block);
        let block_end = layout.start(block.saturating_add(1)).min(end).saturating_sub(block_start);
        let sectors = within / SECTOR..block_end.div_ceil(SECTOR);
        let first = sectors.start;
        let (present, run) = self.bat.bitmap_run(store, block_at, sectors)?;
        let run_end = first.saturating_add(run).saturating_mul(SECTOR).min(block_end);
        let data = block_at.saturating_add(layout.bitmap_len).saturating_add(within);
        let source = if present { Source::Data(FileOffset(data)) } else { Source::Absent };
        Ok(Extent { len: run_end.saturating_sub(within), source })
    }

    fn extent_at(&self, store: &Store, offset: u64, end: u64) -> Result<Extent> {
        /// Blocks without a set bit that one answer steps over: each costs a page read.
        const MAX_STEPS: usize = 64;
        let mut at = offset;
        for _ in 0..MAX_STEPS {
            let run = match self.run_at(store, at, end) {
                Ok(run) => run,
                Err(error) if at == offset => return Err(error),
                Err(_) => break,
            };
            match run.source {
                Source::Absent => {
                    at = at.saturating_add(run.len);
                    // A run that ends inside a block is followed by data.
                    if self.bat.layout.split(at).1 != 0 {
                        break;
                    }
                }
                // Data never joins over a block's end: the next block's bitmap lies in between.
                _ if at == offset => return Ok(run),
                _ => break,
            }
            if at >= end {
                break;
            }
        }
        Ok(Extent { len: at.saturating_sub(offset), source: Source::Absent })
    }
}

impl BlockMap for Vhd {
    fn virtual_size(&self) -> u64 {
        self.footer.size()
    }

    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent> {
        let size = self.footer.size();
        if offset >= size || limit == 0 {
            let message = format_args!("{limit} bytes at {offset} of a disk of {size} bytes");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let end = offset.saturating_add(limit).min(size);
        match &self.sparse {
            Some(sparse) => sparse.extent_at(&self.store, offset, end),
            None => self.fixed_extent(offset, end),
        }
    }

    fn storage(&self) -> &dyn Storage {
        self.store.storage()
    }
}
