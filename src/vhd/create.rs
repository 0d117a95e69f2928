//! New images.
//!
//! Owns: what may be asked for, and the layout of a fresh file. Must not know: how images change later.

use super::footer::{self, Footer};
use super::header::{self, BlockLayout, DEFAULT_BLOCK_SIZE, Header};
use super::image::Vhd;
use super::locator::{self, Composed};
use super::raw::{FOOTER_LEN, HEADER_LEN};
use super::space::tail_position;
use super::store::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::guid;
use crate::link::{DiskKind, ImageId, NewParent};
use crate::storage::{Access, Storage};
use std::sync::Arc;

/// Bytes of BAT written at a time.
const TABLE_CHUNK: u64 = 1 << 20;

/// What a new VHD is to be.
#[derive(Clone, Debug)]
#[must_use]
pub struct VhdCreate {
    size: u64,
    kind: DiskKind,
    block_size: Option<u32>,
    parent: Option<NewParent>,
    unique_id: Option<[u8; 16]>,
    timestamp: Option<u32>,
}

impl VhdCreate {
    /// A dynamic disk of `size` bytes: a multiple of 512, at most 2040 GiB unless it is made fixed.
    pub fn new(size: u64) -> Self {
        Self { size, kind: DiskKind::Dynamic, block_size: None, parent: None, unique_id: None, timestamp: None }
    }

    /// Fixed or dynamic. Differencing comes with [`parent`](Self::parent).
    pub fn kind(mut self, kind: DiskKind) -> Self {
        self.kind = kind;
        self
    }

    /// Bytes per block: a power of two from 4 KiB to 256 MiB; 2 MiB unless said otherwise. Every other reader knows 2 MiB
    /// and 512 KiB; not all know others.
    pub fn block_size(mut self, block_size: u32) -> Self {
        self.block_size = Some(block_size);
        self
    }

    /// A differencing disk over `parent`.
    pub fn parent(mut self, parent: NewParent) -> Self {
        self.kind = DiskKind::Differencing;
        self.parent = Some(parent);
        self
    }

    /// The Unique ID, not all zeros; a random one unless said otherwise.
    pub fn unique_id(mut self, id: [u8; 16]) -> Self {
        self.unique_id = Some(id);
        self
    }

    /// The time of creation in seconds since 2000-01-01 UTC; now unless said otherwise.
    pub fn timestamp(mut self, seconds: u32) -> Self {
        self.timestamp = Some(seconds);
        self
    }

    fn checked(&self) -> Result<Checked> {
        let invalid = |message: String| Error::new(ErrorKind::InvalidInput, message);
        footer::size_rule(self.size, self.kind)
            .map_err(|allowed| invalid(format!("a size of {} bytes is not {allowed}", self.size)))?;
        let block_size = self.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        header::block_size_rule(block_size)
            .map_err(|allowed| invalid(format!("a block size of {block_size} bytes is not {allowed}")))?;
        let parent_id = match (self.kind, &self.parent) {
            (DiskKind::Differencing, Some(parent)) => Some(vhd_id(parent)?),
            (DiskKind::Differencing, None) => return Err(invalid("a differencing disk needs a parent".to_owned())),
            (_, Some(_)) => return Err(invalid("only a differencing disk has a parent".to_owned())),
            (DiskKind::Fixed, None) if self.block_size.is_some() => {
                return Err(invalid("a fixed disk has no blocks".to_owned()));
            }
            _ => None,
        };
        let unique_id = self.unique_id.unwrap_or_else(|| *guid::fresh().as_bytes());
        if unique_id == [0; 16] {
            return Err(invalid("a unique id must not be all zeros".to_owned()));
        }
        let entries = u32::try_from(BlockLayout::of(block_size).blocks(self.size)).unwrap_or(u32::MAX);
        let timestamp = self.timestamp.unwrap_or_else(footer::now);
        let footer = Footer::fresh(self.kind, self.size, unique_id, timestamp);
        Ok(Checked { footer, block_size, entries, parent_id })
    }
}

struct Checked {
    footer: Footer,
    block_size: u32,
    entries: u32,
    parent_id: Option<[u8; 16]>,
}

/// The Unique ID of `parent`.
///
/// # Errors
/// `InvalidInput` when it is no VHD, or has a null id, by which no child could know it again.
pub(super) fn vhd_id(parent: &NewParent) -> Result<[u8; 16]> {
    match parent.id {
        ImageId::Vhd(id) if id != [0; 16] => Ok(id),
        ImageId::Vhd(_) => Err(Error::new(ErrorKind::InvalidInput, "the parent's unique id is null")
            .with_hint("give the parent an id first: nothing else tells a child that it is the right one")),
        ImageId::Vhdx(_) => Err(Error::new(ErrorKind::InvalidInput, "the parent of a VHD must be a VHD")
            .with_hint("convert one of them to the other's format")),
    }
}

impl Vhd {
    /// Makes a new image in `storage`, which must be empty. It is durable on return, and open for writing.
    ///
    /// A crash on the way leaves a file that does not open, or the new empty disk.
    ///
    /// # Errors
    /// `InvalidInput` for options that cannot be; what the storage answers.
    pub fn create(storage: Arc<dyn Storage>, options: &VhdCreate) -> Result<Self> {
        let checked = options.checked()?;
        let store = Store::new(Arc::clone(&storage), Access::Write);
        if store.len()? != 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "a new image needs an empty file"));
        }
        if options.kind == DiskKind::Fixed {
            store.write("the footer", checked.footer.bytes(), options.size)?;
            store.sync()?;
        } else {
            lay_out(&store, &checked, options)?;
        }
        Self::open(storage, Access::Write, &mut Findings::new())
    }
}

/// Writes a dynamic or differencing file: footer copy, header, table, locators, filler, footer.
fn lay_out(store: &Store, checked: &Checked, options: &VhdCreate) -> Result<()> {
    let header_at = FOOTER_LEN;
    let table_at = header_at.saturating_add(HEADER_LEN);
    let mut header = Header::fresh(table_at, checked.entries, checked.block_size);
    let mut end = header.table().end;
    if let (Some(parent), Some(id)) = (&options.parent, checked.parent_id) {
        let composed = locator::compose(&parent.paths, end)?;
        end = composed.end;
        write_areas(store, &composed)?;
        header = header.with_parent(id, parent.timestamp, composed.entries, &composed.name);
    }
    store.write("the dynamic header", header.bytes(), header_at)?;
    fill_table(store, header.table())?;
    store.sync()?;
    // Only now does anything in the file say that it is a VHD.
    store.write("the footer", checked.footer.bytes(), tail_position(end))?;
    store.write("the footer copy", checked.footer.bytes(), 0)?;
    store.sync()
}

pub(super) fn write_areas(store: &Store, composed: &Composed) -> Result<()> {
    for (at, bytes) in &composed.areas {
        store.write("a parent locator", bytes, *at)?;
    }
    Ok(())
}

/// Fills a stretch of table with entries of blocks that have no place.
pub(super) fn fill_table(store: &Store, range: std::ops::Range<u64>) -> Result<()> {
    let chunk = vec![0xFF; usize::try_from(TABLE_CHUNK.min(range.end.saturating_sub(range.start))).unwrap_or(0)];
    let mut at = range.start;
    while at < range.end {
        let len = range.end.saturating_sub(at).min(TABLE_CHUNK);
        let Some(part) = usize::try_from(len).ok().and_then(|len| chunk.get(..len)) else { break };
        store.write("the block allocation table", part, at)?;
        at = at.saturating_add(len);
    }
    Ok(())
}
