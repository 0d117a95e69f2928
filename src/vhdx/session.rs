//! The life of an image that is written to: from its first change to its clean close.
//!
//! Owns: when the headers' ids change ([MS-VHDX] 2.2.2), starting and ending the log session, taking stock of the file's
//! space. Must not know: what is being changed.
//!
//! Opening for writing changes nothing by itself. The first change of any kind gives the file a new FileWriteGuid, the
//! first change a guest can see a new DataWriteGuid; each once per open. Children are bound to the DataWriteGuid, so it
//! stays when only blocks move or links are mended.

use super::bat::{PayloadEntry, Slot, decode_bitmap};
use super::image::Vhdx;
use super::log::LogArea;
use super::raw::{ALIGNMENT, BITMAP_BLOCK_LEN, LOG_VERSION};
use super::space::{Space, Taken};
use super::txn::{Session, Transaction};
use super::write::Plan;
use crate::error::{Error, ErrorKind, Result};
use crate::guid::{self, Guid};
use crate::problem::{Fault, Problem, Structure};
use crate::units::{FileOffset, MIB, round_up};
use std::ops::Range;

/// The log a file without one is given.
const NEW_LOG_LEN: u32 = 1 << 20;

/// What an image knows about its own changes.
#[derive(Debug, Default)]
pub(super) struct Writer {
    session: Option<Session>,
    space: Option<Space>,
    file_id_is_fresh: bool,
    data_id_is_fresh: bool,
    /// The reservation that is out, if one is.
    pub(super) plan: Option<Plan>,
    pub(super) tickets: u64,
}

impl Writer {
    /// Nothing changed yet, but perhaps the FileWriteGuid, while the log was replayed.
    pub(super) fn new(file_id_is_fresh: bool) -> Self {
        Self { file_id_is_fresh, ..Self::default() }
    }
}

/// Whether a guest can see a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Data, size, or metadata of the virtual disk.
    ByGuest,
    /// The file's own business: links to parents, places of blocks.
    ByNobody,
}

impl Vhdx {
    /// Gives the image a chosen DataWriteGuid, durable on return, and counts it as this open's change of it. A merge
    /// stores the id in the child first, so that the child finds its parent before and after.
    ///
    /// # Errors
    /// `ReadOnly`; what the storage answers, and then the old or the new id is in force.
    pub fn set_data_write_guid(&mut self, id: Guid) -> Result<()> {
        self.require_writable()?;
        self.take_stock()?;
        self.enter(Some(id))
    }

    /// Writes back what is outstanding and marks the log empty, so that the next reader has nothing to replay.
    ///
    /// Dropping the image does the same but cannot say whether it worked. Either way nothing published is lost: at worst
    /// the next open replays the log.
    ///
    /// # Errors
    /// `ReadOnly` when an earlier write failed; what the storage answers.
    pub fn close(mut self) -> Result<()> {
        self.end_session()
    }

    /// Makes the image ready for a change: ids, log session, stock of space.
    pub(super) fn begin(&mut self, seen: Seen) -> Result<()> {
        self.require_writable()?;
        self.take_stock()?;
        let new_id = (seen == Seen::ByGuest && !self.writer.data_id_is_fresh).then(guid::fresh);
        self.enter(new_id)
    }

    /// Gives the file what this open owes it, in one update of the headers: a log that is in use, its new id, and the
    /// data id that is wanted.
    fn enter(&mut self, data_id: Option<Guid>) -> Result<()> {
        if self.writer.session.is_none() {
            return self.start_session(data_id);
        }
        if let Some(id) = data_id {
            self.headers.update(&*self.storage, |header| header.data_write_guid = id)?;
            self.writer.data_id_is_fresh = true;
        }
        Ok(())
    }

    pub(super) fn require_writable(&self) -> Result<()> {
        if !self.access.writes() {
            return Err(Error::new(ErrorKind::ReadOnly, "the image was opened for reading only"));
        }
        if self.writer.session.as_ref().is_some_and(Session::has_failed) {
            return Err(Error::new(ErrorKind::ReadOnly, "an earlier write to the image failed; open it again"));
        }
        if self.headers.is_ambiguous() {
            return Err(Error::new(
                ErrorKind::Refused,
                "the image has two different headers that both claim to be current",
            ));
        }
        Ok(())
    }

    /// Begins logging. The first entry is under a guid that no header names yet, so writing it changes nothing that
    /// anybody reads; its sync makes the file as it is now durable, before the headers lead to it.
    fn start_session(&mut self, data_id: Option<Guid>) -> Result<()> {
        let header = *self.headers.current();
        if !header.log_guid.is_nil() {
            return Err(Error::new(ErrorKind::Refused, "the image's log has updates that were not replayed"));
        }
        let durable_len = self.file_len()?;
        let (offset, length) = if header.log_is_placed() {
            (header.log_offset, header.log_length)
        } else {
            // Always new space at the end: nothing may be recycled before there is a log.
            let offset = self.space()?.end();
            let end = offset.saturating_add(u64::from(NEW_LOG_LEN));
            self.space()?.claim(&(offset..end), Structure::VhdxLog)?;
            self.grow_file(end)?;
            (offset, NEW_LOG_LEN)
        };
        let area = LogArea { offset, length: u64::from(length), guid: guid::fresh() };
        let session = Session::start(&*self.storage, area, durable_len)?;
        let fresh_file = self.writer.file_id_is_fresh;
        self.headers.update_unfinished(&*self.storage, |header| {
            if !fresh_file {
                header.file_write_guid = guid::fresh();
            }
            if let Some(id) = data_id {
                header.data_write_guid = id;
            }
            header.log_guid = area.guid;
            header.log_version = LOG_VERSION;
            (header.log_offset, header.log_length) = (offset, length);
        })?;
        self.writer.file_id_is_fresh = true;
        self.writer.data_id_is_fresh |= data_id.is_some();
        self.writer.session = Some(session);
        self.set_layout(self.regions.clone(), self.metadata.clone());
        Ok(())
    }

    /// Clean close: everything in its place, then no log.
    pub(crate) fn end_session(&mut self) -> Result<()> {
        self.drop_plan();
        let Some(mut session) = self.writer.session.take() else { return Ok(()) };
        session.flush(&*self.storage)?;
        self.headers.update(&*self.storage, |header| header.log_guid = Guid::nil())
    }

    /// The session that [`begin`](Self::begin) started.
    pub(super) fn session(&mut self) -> Result<&mut Session> {
        let none = || Error::new(ErrorKind::InvalidInput, "no change of the image was begun");
        self.writer.session.as_mut().ok_or_else(none)
    }

    /// The stock of space that [`begin`](Self::begin) took.
    pub(super) fn space(&mut self) -> Result<&mut Space> {
        let none = || Error::new(ErrorKind::InvalidInput, "no change of the image was begun");
        self.writer.space.as_mut().ok_or_else(none)
    }

    /// Commits `transaction`, then gives the space it freed back.
    pub(super) fn commit(&mut self, transaction: &Transaction, freed: &mut Vec<Range<u64>>) -> Result<()> {
        let none = || Error::new(ErrorKind::InvalidInput, "no change of the image was begun");
        let session = self.writer.session.as_mut().ok_or_else(none)?;
        session.commit(&self.pages, transaction)?;
        for range in freed.drain(..) {
            self.space()?.release(&range);
        }
        Ok(())
    }

    /// Makes everything written so far durable, pages in their places too.
    pub(super) fn settle(&mut self) -> Result<()> {
        match self.writer.session.as_mut() {
            Some(session) => session.flush(&*self.storage),
            None => self.storage.sync().map_err(|error| Error::io("sync the image", error)),
        }
    }

    /// Makes the file at least `len` bytes long.
    pub(super) fn grow_file(&mut self, len: u64) -> Result<()> {
        if self.file_len()? < len {
            self.storage
                .set_len(len)
                .map_err(|error| Error::io("grow the file", error).with_offset(FileOffset(len)))?;
        }
        Ok(())
    }

    /// Ends the file behind the last thing in it. The log is emptied first: until the next change nothing refers to what
    /// is cut off, and there is no entry that could bring it back.
    pub(super) fn cut_tail(&mut self) -> Result<()> {
        let (_, end) = self.space()?.unowned();
        if self.file_len()? <= end {
            return Ok(());
        }
        self.end_session()?;
        let failed = |error| Error::io("shorten the file", error).with_offset(FileOffset(end));
        self.storage.set_len(end).map_err(failed)?;
        // Space that is given out again past the new end is taken for zeros.
        self.storage.sync().map_err(failed)?;
        self.pages.forget(&(end..u64::MAX));
        self.writer.space = None;
        Ok(())
    }

    /// Zeroes `range` of the file.
    pub(super) fn zero_file(&self, range: Range<u64>) -> Result<()> {
        let start = FileOffset(range.start);
        self.storage.zero_range(range).map_err(|error| Error::io("zero a block", error).with_offset(start))
    }

    /// Space of `len` bytes that reads as zeros, in the file.
    pub(super) fn take_zeroed(&mut self, len: u64) -> Result<Range<u64>> {
        let Taken { range, fresh } = self.space()?.take(len);
        let made = if fresh { self.grow_file(range.end) } else { self.zero_file(range.clone()) };
        if let Err(error) = made {
            self.space()?.release(&range);
            return Err(error);
        }
        Ok(range)
    }

    /// Forgets what of the file is in use; the next change learns it anew.
    pub(super) fn forget_stock(&mut self) {
        self.writer.space = None;
    }

    /// Learns what of the file is in use, and that nothing is used twice.
    pub(super) fn take_stock(&mut self) -> Result<()> {
        if self.writer.space.is_some() {
            return Ok(());
        }
        let len = self.file_len()?;
        let file_end = round_up(len, MIB).unwrap_or(len);
        let mut space = Space::new(len)?;
        for region in self.regions.all() {
            space.claim(&region.range(), Structure::VhdxRegionTable)?;
        }
        let header = self.headers.current();
        if header.log_is_placed() {
            let end = header.log_offset.saturating_add(u64::from(header.log_length));
            if end > file_end {
                let found = format!("an end at {end:#x}");
                let problem = Problem::new(Structure::VhdxLog, Fault::Range, found, format!("up to {file_end:#x}"));
                return Err(Error::corrupt(problem.at(FileOffset(header.log_offset))));
            }
            space.claim(&(header.log_offset..end), Structure::VhdxLog)?;
        }
        let differencing = self.geometry.differencing;
        let mut own = |index: u64, raw: u64| -> Result<()> {
            let (decoded, len, structure) = match self.geometry.slot(index) {
                Slot::Payload(block) if block < self.geometry.blocks() => {
                    let entry = PayloadEntry::decode(raw, differencing);
                    (entry.map(|entry| entry.offset), self.geometry.block_size, Structure::VhdxBlock)
                }
                Slot::Bitmap(chunk) if chunk < self.geometry.chunks() => {
                    let place = decode_bitmap(raw, differencing);
                    (place.map(Option::unwrap_or_default), BITMAP_BLOCK_LEN, Structure::VhdxBitmap)
                }
                _ => return Ok(()),
            };
            let problem = |fault, found: &str, allowed: &str| {
                let problem = Problem::new(Structure::VhdxBat, fault, found, allowed);
                Error::corrupt(problem.at(FileOffset(self.bat_offset(index))))
                    .with_hint("the image must be repaired before it is written to")
            };
            let at = decoded.map_err(|(fault, found, allowed)| problem(fault, &found, allowed))?.get();
            if at == 0 {
                return Ok(());
            }
            if at >= file_end {
                let found = format!("space at {at:#x}");
                return Err(problem(Fault::Range, &found, &format!("space that starts below {file_end:#x}")));
            }
            space.claim(&(at..at.saturating_add(len)), structure)
        };
        self.scan_bat(&mut own)?;
        self.writer.space = Some(space);
        Ok(())
    }
}

impl Drop for Vhdx {
    fn drop(&mut self) {
        // What cannot be said here is in the log: the next open replays it.
        let _ = self.end_session();
    }
}

const _: () = assert!((NEW_LOG_LEN as u64).is_multiple_of(ALIGNMENT));
