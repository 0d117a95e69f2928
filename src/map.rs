//! The upper seam: which bytes hold a virtual range, and where new bytes may go.
//!
//! Owns: [`Extent`], [`BlockMap`] and [`BlockSink`], the words formats and the chain, copier and operations share.
//! Must not know: any format, any path; it moves no bytes.

use crate::error::Result;
use crate::storage::Storage;
use crate::units::FileOffset;
use std::ops::Range;

/// What one layer says of a virtual range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The bytes lie in this layer's storage, from here on.
    Data(FileOffset),
    /// The range reads as zeros, whatever lies below.
    Zero,
    /// This layer does not say: ask the parent; with no parent it is zero.
    Absent,
}

/// A run of bytes with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never zero.
    pub len: u64,
    /// Where its bytes are.
    pub source: Source,
}

/// Where a virtual disk's bytes are. Shared between threads.
pub trait BlockMap: Send + Sync {
    /// The virtual size in bytes.
    fn virtual_size(&self) -> u64;

    /// The answer for the run that starts at `offset`, at most `limit` bytes long.
    ///
    /// The run is as long as is cheap to say: it never mixes answers, and joins neighbouring blocks when they lie one
    /// behind the other or are both absent or zero. Requires `offset < virtual_size()` and `limit > 0`; the run ends at
    /// the virtual size at the latest.
    ///
    /// # Errors
    /// `Corrupt` when the entry that answers is broken (its block lies outside the file, a state that is not allowed);
    /// `InvalidInput` when `offset` is outside the disk; what the storage answers.
    fn extent_at(&self, offset: u64, limit: u64) -> Result<Extent>;

    /// The storage that [`Source::Data`] points into.
    fn storage(&self) -> &dyn Storage;
}

/// What a wanted range is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes the caller will write.
    Data,
    /// Zeros, explicitly: afterwards the range reads as zeros and nothing below shows through.
    Zero,
}

/// A virtual range the caller wants to give new contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The range in bytes, a multiple of the logical sector at both ends, inside the virtual size.
    pub range: Range<u64>,
    /// What it is to hold.
    pub content: Content,
}

/// One run of file space that the caller has to fill before publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Virtual offset of the run.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where its bytes go.
    pub at: FileOffset,
    /// What goes there: `Data` is the caller's bytes, `Zero` is a run the caller must zero.
    pub content: Content,
}

/// File space for a batch of wanted ranges, not yet visible to any reader.
///
/// Dropping it unpublished leaks nothing: the space is known to the sink, which gives it out again.
#[derive(Debug)]
#[must_use = "reserved space shows nothing until it is published"]
pub struct Reservation {
    wants: Vec<Want>,
    places: Vec<Place>,
    ticket: u64,
}

impl Reservation {
    /// For formats: the batch `wants`, to be filled at `places`; `ticket` is the format's own word for it.
    pub(crate) fn new(wants: Vec<Want>, places: Vec<Place>, ticket: u64) -> Self {
        Self { wants, places, ticket }
    }

    /// What was asked for.
    #[must_use]
    pub fn wants(&self) -> &[Want] {
        &self.wants
    }

    /// What the caller has to fill, in virtual order. Wanted zeros that need no bytes do not appear.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }
}

/// A map that can be given new contents: reserve, fill, sync, publish.
///
/// ```text
/// let reservation = sink.reserve(wants)?;      // space exists, nobody sees it
/// fill every reservation.places()              // any order, any threads, through sink.storage()
/// sink.storage().sync()?;                      // the bytes are durable ...
/// sink.publish(reservation)?;                  // ... before any map shows them
/// sink.flush()?;                               // and now the map is durable too
/// ```
///
/// Ranges that already have a place are filled in place: their new bytes are visible as they are written.
pub trait BlockSink: BlockMap {
    /// The unit of allocation in bytes; a batch is cheapest when it ends on a multiple of it. The whole disk for raw and
    /// fixed images.
    fn block_size(&self) -> u64;

    /// The logical sector size in bytes; wants are multiples of it.
    fn logical_sector_size(&self) -> u32;

    /// How many bytes the file would grow at most to hold `wants` (sorted, disjoint). Changes nothing.
    ///
    /// # Errors
    /// As [`BlockMap::extent_at`].
    fn space_for(&self, wants: &[Want]) -> Result<u64>;

    /// Finds file space for `wants` (sorted by offset, disjoint, sector aligned, inside the disk) and makes the image
    /// ready to be written (log replayed, session begun, write ids changed as its format asks).
    ///
    /// Whatever part of a new block no want covers is zeroed here, and reads as the format says once published: zero in
    /// a root image, the parent in a differencing one.
    ///
    /// # Errors
    /// `ReadOnly`, `InvalidInput`, `NoSpace`, `Corrupt`, or what the storage answers. Nothing is visible then.
    fn reserve(&mut self, wants: Vec<Want>) -> Result<Reservation>;

    /// Shows the batch to readers. The caller has filled every place and synced.
    ///
    /// Crash-atomic per block: after a crash each block shows either what it showed before or the batch.
    ///
    /// # Errors
    /// What the storage answers; the image then refuses further writes and the file is as after a crash.
    fn publish(&mut self, reservation: Reservation) -> Result<()>;

    /// Makes everything published so far durable.
    ///
    /// # Errors
    /// What the storage answers.
    fn flush(&mut self) -> Result<()>;
}
