//! A walk over the whole block allocation table.
//!
//! Owns: what each entry breaks on its own, beside the others and beside the rest of the file, and who owns which MiB.
//! Must not know: how a flaw is reported or mended.
//!
//! The table is read in pieces, holes are jumped over, and the space of the file is one bit per MiB: 8 MiB of memory for
//! a disk of 64 TiB.

use super::bat::{EntryFault, PayloadEntry, PayloadState, Slot, decode_bitmap};
use super::image::Vhdx;
use super::log::MAX_FILE_LENGTH;
use super::raw::{BAT_ENTRY_LEN, BITMAP_BLOCK_LEN};
use super::space::Space;
use crate::error::Result;
use crate::problem::Fault;
use crate::units::{MIB, round_up};
use std::ops::Range;

/// The bits of an entry that are a place in the file.
pub(super) const PLACE_BITS: u64 = !(MIB - 1);
/// The bits of an entry that are its state.
pub(super) const STATE_BITS: u64 = 7;

/// What is wrong with an entry of the table, or worth knowing about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It is none.
    Broken(EntryFault),
    /// It lies past the end of the disk, and is not zero.
    PastDisk,
    /// It has a place in a state that has none.
    Stray,
    /// A sector bitmap in a disk that has no parent; nobody reads it.
    NeedlessBitmap,
    /// It keeps space that nothing reads.
    Anchor,
    /// As `Anchor`, but the space is not its own: something else lies there, or the file ends before it.
    LooseAnchor,
    /// The file ends inside its space or before it. `lost`: bytes of the disk, or of a bitmap, are gone.
    Cut { lost: bool },
    /// Its space lies over the headers, the log or a region.
    OverStructure,
    /// A part of its space has another owner, earlier in the table.
    Shared,
    /// The first of so many partially present blocks of a chunk that has no sector bitmap.
    NoBitmap { blocks: u64 },
}

/// Called with the index of an entry, its 64 bits, and what is wrong with it.
pub(super) type Visit<'a> = dyn FnMut(u64, u64, Flaw) -> Result<()> + 'a;

/// What the walk learned about the file as a whole.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) space: Space,
    /// Payload blocks with data.
    pub(super) allocated: u64,
    /// Payload blocks in any state but 0.
    pub(super) stated: u64,
    /// The first payload block in state 0, if one is.
    pub(super) first_unstated: Option<u64>,
    /// How many entries the file ends before.
    pub(super) cut_entries: u64,
    /// Whether it is known who owns what: all of the table is there, and every entry is one.
    pub(super) complete: bool,
    /// Whether bytes of the disk lie past the end of the file.
    pub(super) lost: bool,
    /// How long the file must be for the blocks that it cuts without loss.
    pub(super) wanted_len: u64,
}

impl Survey {
    /// Nothing known yet, but what of `space` is taken and how many entries the file ends before.
    pub(super) fn over(space: Space, cut_entries: u64) -> Self {
        Self {
            space,
            allocated: 0,
            stated: 0,
            first_unstated: None,
            cut_entries,
            complete: cut_entries == 0,
            lost: false,
            wanted_len: 0,
        }
    }

    /// How long the file should be: no byte of anything cut off, and nothing behind. `None` when that is not known, or
    /// when a longer file would show zeros where bytes were lost. The log is empty.
    pub(super) fn sound_len(&self, image: &Vhdx, file_len: u64) -> Option<u64> {
        if !self.complete || self.lost {
            return None;
        }
        let (_, used) = self.space.unowned();
        let mut end = used.max(self.wanted_len);
        for region in image.regions.all().iter().filter(|region| region.range().end > file_len) {
            // What lies in an unknown region nobody here can say; the table is `complete`.
            let metadata = *region == *image.regions.metadata();
            if !metadata && *region != *image.regions.bat() {
                return None;
            }
            let items = image
                .metadata
                .items
                .iter()
                .map(|item| image.metadata.place_of(item).get().saturating_add(u64::from(item.length)));
            if metadata && items.max().is_some_and(|items| items > file_len) {
                return None;
            }
            end = end.max(region.range().end);
        }
        let log = image.log_range();
        if log.end > file_len {
            // An empty log holds nothing, but one that lies far outside was never in this file.
            end = (log.start <= file_len).then(|| end.max(log.end))?;
        }
        round_up(end, MIB)
    }
}

struct Walk<'a, 'b> {
    image: &'a Vhdx,
    file_len: u64,
    survey: Survey,
    anchors: bool,
    /// The chunk of the partially present blocks met last, the first of them with its entry, and how many they are.
    partial: Option<(u64, u64, u64, u64)>,
    visit: &'a mut Visit<'b>,
}

impl Vhdx {
    /// Walks over the table as if the file were `file_len` bytes long, which it is or was.
    ///
    /// # Errors
    /// What `visit` and the storage answer.
    pub(super) fn survey(&self, file_len: u64, visit: &mut Visit<'_>) -> Result<Survey> {
        let file_len = file_len.min(MAX_FILE_LENGTH);
        let bat = self.regions.bat();
        let here = self.file_len()?.clamp(bat.offset, bat.range().end).saturating_sub(bat.offset);
        let entries = self.geometry.entries();
        let readable = here.checked_div(BAT_ENTRY_LEN).unwrap_or_default();
        let cut_entries = entries.saturating_sub(readable);
        if cut_entries == 0
            && let Some(survey) = self.survey_if_sound(readable, file_len)?
        {
            return Ok(survey);
        }
        self.walk((readable, cut_entries), file_len, visit)
    }

    /// As [`survey`](Self::survey), one entry after the other: of the first `readable` entries, when the table lacks
    /// `cut_entries`.
    pub(super) fn walk(
        &self,
        (readable, cut_entries): (u64, u64),
        file_len: u64,
        visit: &mut Visit<'_>,
    ) -> Result<Survey> {
        let entries = self.geometry.entries();
        let survey = Survey::over(self.structure_space(file_len)?, cut_entries);
        let mut walk = Walk { image: self, file_len, survey, anchors: false, partial: None, visit };
        self.scan_entries(readable, &mut |index, raw| walk.entry(index, raw))?;
        walk.end_chunk(u64::MAX)?;
        if walk.anchors {
            // After all that is read has its space: whoever only keeps some comes second.
            self.scan_entries(readable.min(entries), &mut |index, raw| walk.anchor(index, raw))?;
        }
        if walk.survey.stated < self.geometry.blocks() {
            walk.survey.first_unstated.get_or_insert(walk.survey.stated);
        }
        Ok(walk.survey)
    }

    /// The space of the file, all of it free but that of the headers, the log and the regions.
    ///
    /// # Errors
    /// `Corrupt` when the file is longer than any can need.
    pub(super) fn structure_space(&self, file_len: u64) -> Result<Space> {
        let mut space = Space::new(file_len)?;
        for range in &self.occupied {
            space.mark(range);
        }
        Ok(space)
    }

    /// Where the log is; empty when the file has none.
    pub(super) fn log_range(&self) -> Range<u64> {
        self.headers.current().log_range()
    }

    /// The place of payload block `block` in the disk.
    pub(super) fn disk_range(&self, block: u64) -> Range<u64> {
        let start = block.saturating_mul(self.geometry.block_size);
        start..start.saturating_add(self.geometry.block_size).min(self.geometry.virtual_size)
    }

    /// How much of the file an entry that owns space owns, in bytes.
    pub(super) fn space_of(&self, index: u64) -> u64 {
        if self.geometry.is_bitmap(index) { BITMAP_BLOCK_LEN } else { self.geometry.block_size }
    }
}

impl Walk<'_, '_> {
    fn flaw(&mut self, index: u64, raw: u64, flaw: Flaw) -> Result<()> {
        (self.visit)(index, raw, flaw)
    }

    fn entry(&mut self, index: u64, raw: u64) -> Result<()> {
        let geometry = self.image.geometry;
        if index >= geometry.entries() {
            return self.flaw(index, raw, Flaw::PastDisk);
        }
        match geometry.slot(index) {
            Slot::Payload(block) if block < geometry.blocks() => {
                self.end_chunk(geometry.chunk_of(block))?;
                self.payload(index, raw, block)
            }
            Slot::Bitmap(chunk) if chunk < geometry.chunks() => {
                self.end_chunk(chunk)?;
                self.bitmap(index, raw)
            }
            Slot::Payload(_) | Slot::Bitmap(_) => self.flaw(index, raw, Flaw::PastDisk),
        }
    }

    fn payload(&mut self, index: u64, raw: u64, block: u64) -> Result<()> {
        let entry = match PayloadEntry::decode(raw, self.image.geometry.differencing) {
            Ok(entry) => entry,
            Err(fault) => {
                self.state_of(block);
                self.survey.complete = false;
                return self.flaw(index, raw, Flaw::Broken(fault));
            }
        };
        if entry.state != PayloadState::NotPresent {
            self.state_of(block);
        }
        match entry.state {
            PayloadState::NotPresent | PayloadState::Zero if raw & PLACE_BITS != 0 => {
                self.flaw(index, raw, Flaw::Stray)
            }
            PayloadState::NotPresent | PayloadState::Zero => Ok(()),
            PayloadState::Undefined | PayloadState::Unmapped => {
                self.anchors |= entry.offset.get() != 0;
                Ok(())
            }
            PayloadState::FullyPresent | PayloadState::PartiallyPresent => {
                self.survey.allocated = self.survey.allocated.saturating_add(1);
                if entry.state == PayloadState::PartiallyPresent {
                    let chunk = self.image.geometry.chunk_of(block);
                    let (first, bits, count) =
                        self.partial.map_or((index, raw, 0), |(_, first, bits, count)| (first, bits, count));
                    self.partial = Some((chunk, first, bits, count.saturating_add(1)));
                }
                let disk = self.image.disk_range(block);
                self.own(index, raw, disk.end.saturating_sub(disk.start))
            }
        }
    }

    /// Counts a block that is in some state; blocks come in order.
    fn state_of(&mut self, block: u64) {
        if block > self.survey.stated {
            self.survey.first_unstated.get_or_insert(self.survey.stated);
        }
        self.survey.stated = self.survey.stated.saturating_add(1);
    }

    fn bitmap(&mut self, index: u64, raw: u64) -> Result<()> {
        if !self.image.geometry.differencing {
            let reserved = raw & !(PLACE_BITS | STATE_BITS) != 0;
            let needless = if raw & STATE_BITS == 0 { Flaw::Stray } else { Flaw::NeedlessBitmap };
            let broken = || (Fault::Reserved, format!("entry {raw:#018x}"), "zero without a parent");
            return self.flaw(index, raw, if reserved { Flaw::Broken(broken()) } else { needless });
        }
        match decode_bitmap(raw, true) {
            Ok(None) => self.flaw(index, raw, Flaw::Stray),
            Ok(Some(_)) => {
                self.partial = None;
                self.own(index, raw, BITMAP_BLOCK_LEN)
            }
            Err(fault) => {
                self.partial = None;
                self.survey.complete = false;
                self.flaw(index, raw, Flaw::Broken(fault))
            }
        }
    }

    /// Gives the entry its space, of which the first `read` bytes are ever read.
    fn own(&mut self, index: u64, raw: u64, read: u64) -> Result<()> {
        let at = raw & PLACE_BITS;
        let range = at..at.saturating_add(self.image.space_of(index));
        if self.image.structure_under(&range).is_some() {
            return self.flaw(index, raw, Flaw::OverStructure);
        }
        if range.end > self.file_len {
            let lost = at.saturating_add(read) > self.file_len;
            self.survey.lost |= lost;
            if !lost {
                self.survey.wanted_len = self.survey.wanted_len.max(range.end);
            }
            self.flaw(index, raw, Flaw::Cut { lost })?;
        }
        if self.survey.space.mark(&range) { Ok(()) } else { self.flaw(index, raw, Flaw::Shared) }
    }

    fn anchor(&mut self, index: u64, raw: u64) -> Result<()> {
        let geometry = self.image.geometry;
        let is_block = matches!(geometry.slot(index), Slot::Payload(block) if block < geometry.blocks());
        let at = raw & PLACE_BITS;
        if !is_block || !matches!(raw & STATE_BITS, 1 | 3) || at == 0 || raw & !(PLACE_BITS | STATE_BITS) != 0 {
            return Ok(());
        }
        let range = at..at.saturating_add(geometry.block_size);
        let file_end = round_up(self.file_len, MIB).unwrap_or(u64::MAX);
        let loose =
            range.end > file_end || self.image.structure_under(&range).is_some() || !self.survey.space.mark(&range);
        self.flaw(index, raw, if loose { Flaw::LooseAnchor } else { Flaw::Anchor })
    }

    /// The walk has come to `chunk`: an earlier one has had its chance to show its bitmap.
    fn end_chunk(&mut self, chunk: u64) -> Result<()> {
        match self.partial {
            Some((earlier, index, raw, blocks)) if earlier != chunk => {
                self.partial = None;
                self.flaw(index, raw, Flaw::NoBitmap { blocks })
            }
            _ => Ok(()),
        }
    }
}
