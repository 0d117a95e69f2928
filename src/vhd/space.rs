//! The end of the data and the footers.
//!
//! Owns: where the data ends, where the footer behind it goes, and the order in which the two footers change. Must not
//! know: why somebody wants room or another footer.

use super::footer::Footer;
use super::image::Vhd;
use super::raw::{FOOTER_LEN, HEADER_LEN};
use crate::error::{Error, ErrorKind, Result};
use crate::map::BlockMap;
use crate::problem::{Fault, Problem, Structure};
use crate::units::{FileOffset, SECTOR, round_up};
use std::ops::Range;
use std::sync::PoisonError;

/// File lengths are multiples of this, and block data starts on one: Windows keeps new blocks aligned only in files that
/// are.
pub(super) const FILE_UNIT: u64 = 4096;

/// Where the footer goes behind data that ends at `end`: last in a file of whole 4 KiB units.
pub(super) fn tail_position(end: u64) -> u64 {
    let least = end.saturating_add(FOOTER_LEN);
    round_up(least, FILE_UNIT).unwrap_or(least).saturating_sub(FOOTER_LEN)
}

/// Whether two file ranges share a byte.
pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl Vhd {
    /// The error for a change through a handle that must not make any, or to a file whose structures do not allow it.
    ///
    /// # Errors
    /// `ReadOnly` or `Refused`.
    pub(super) fn require_writable(&self) -> Result<()> {
        if !self.access.writes() {
            return Err(Error::new(ErrorKind::ReadOnly, "the image was opened for reading only"));
        }
        self.footer.require_editable()?;
        let refuse = |structure, fault, at, found: String, allowed: String| {
            let problem = Problem::new(structure, fault, found, allowed).at(FileOffset(at));
            Err(Error::from_problem(ErrorKind::Refused, problem))
        };
        if !self.tail_at.is_multiple_of(SECTOR) {
            // Such a footer crosses a sector, so writing near it could tear it.
            let (found, allowed) = (format!("file offset {:#x}", self.tail_at), "a multiple of 512".to_owned());
            return refuse(Structure::VhdFooter, Fault::Alignment, self.tail_at, found, allowed);
        }
        let Some(sparse) = &self.sparse else {
            if self.virtual_size() > self.tail_at {
                let found = format!("a fixed disk of {} bytes", self.virtual_size());
                let allowed = format!("at most {}, where the footer lies", self.tail_at);
                return refuse(Structure::VhdFooter, Fault::Value, self.tail_at, found, allowed);
            }
            return Ok(());
        };
        let table = &sparse.bat.table;
        for (structure, at) in [(Structure::VhdBat, table.start), (Structure::VhdHeader, sparse.header_at)] {
            if !at.is_multiple_of(SECTOR) {
                let allowed = "a multiple of 512, to be written to".to_owned();
                return refuse(structure, Fault::Alignment, at, format!("file offset {at:#x}"), allowed);
            }
        }
        let header = sparse.header_at..sparse.header_at.saturating_add(HEADER_LEN);
        if overlap(table, &(0..FOOTER_LEN)) || overlap(table, &header) {
            let found = format!("a table at file offset {:#x} to {:#x}", table.start, table.end);
            let allowed = format!("one clear of the footer copy and of the header at {:#x}", header.start);
            return refuse(Structure::VhdBat, Fault::Overlap, table.start, found, allowed);
        }
        if table.end > self.tail_at {
            let found = format!("a table that ends at file offset {:#x}", table.end);
            let allowed = format!("one that ends before the footer at {:#x}", self.tail_at);
            return refuse(Structure::VhdBat, Fault::Overlap, table.start, found, allowed);
        }
        Ok(())
    }

    /// Where the data of a dynamic or differencing image ends; reads the whole BAT the first time.
    ///
    /// # Errors
    /// `Corrupt` when an entry cannot be believed; what the storage answers.
    pub(super) fn data_end(&self) -> Result<u64> {
        let Some(sparse) = &self.sparse else { return Ok(self.tail_at) };
        let mut known = self.data_end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = *known {
            return Ok(end);
        }
        let usage = sparse.bat.usage(&self.store).map_err(|error| {
            error.with_hint("nothing can be placed in this file before it is repaired: run `vhdkit check` on it")
        })?;
        let fixed = [FOOTER_LEN, sparse.header_at.saturating_add(HEADER_LEN), sparse.bat.table.end, usage.end];
        let locators = sparse.locators.areas.iter().map(|area| area.end);
        let batmap = sparse.batmap.iter().map(super::batmap::Batmap::end);
        let end = fixed.into_iter().chain(locators).chain(batmap).max().unwrap_or(FOOTER_LEN);
        *known = Some(end);
        Ok(end)
    }

    /// Says where the data ends now, or that it has to be found out again.
    pub(super) fn set_data_end(&mut self, end: Option<u64>) {
        *self.data_end.get_mut().unwrap_or_else(PoisonError::into_inner) = end;
    }

    /// Says where the footer at the end of the file lies now.
    pub(super) fn set_tail(&mut self, at: u64) {
        self.tail_at = at;
        if let Some(sparse) = &mut self.sparse {
            sparse.bat.limit = at;
        }
    }

    /// Makes the file long enough for data up to `end`: another footer is durable behind it before anything can overwrite
    /// the one that is the last now.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn ensure_tail(&mut self, end: u64) -> Result<()> {
        if end <= self.tail_at {
            return Ok(());
        }
        let at = tail_position(end);
        self.store.write("the footer", self.footer.bytes(), at)?;
        self.store.sync()?;
        self.set_tail(at);
        self.grown = true;
        Ok(())
    }

    /// Replaces the footers, one after the other, so that one of them is whole at any time: first the copy, which nobody
    /// asks while the one at the end is good, and with the latter the change is made.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn write_footers(&mut self, footer: Footer) -> Result<()> {
        if self.sparse.is_some() {
            self.store.write("the footer copy", footer.bytes(), 0)?;
            self.store.sync()?;
        }
        self.store.write("the footer", footer.bytes(), self.tail_at)?;
        self.store.sync()?;
        self.footer = footer;
        Ok(())
    }

    /// Makes readers stop looking at a batmap that is about to become wrong.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn drop_batmap(&mut self) -> Result<()> {
        if !self.footer.has_batmap() {
            return Ok(());
        }
        self.write_footers(self.footer.as_ours())?;
        if let Some(sparse) = &mut self.sparse {
            sparse.batmap = None;
        }
        Ok(())
    }

    /// Ends the file behind the data when it is longer than that.
    ///
    /// # Errors
    /// What the storage answers.
    pub(super) fn trim(&mut self) -> Result<()> {
        let at = tail_position(self.data_end()?);
        if at >= self.tail_at {
            return Ok(());
        }
        self.store.write("the footer", self.footer.bytes(), at)?;
        self.store.sync()?;
        self.cut_behind(at)
    }

    /// Gives the image another identity: children of the old one no longer accept it.
    ///
    /// # Errors
    /// `InvalidInput` for an id of zeros; `ReadOnly`; `Refused` with a saved state; what the storage answers.
    pub fn set_unique_id(&mut self, id: [u8; 16]) -> Result<()> {
        if id == [0; 16] {
            return Err(Error::new(ErrorKind::InvalidInput, "a unique id must not be all zeros"));
        }
        self.require_writable()?;
        self.write_footers(self.footer.with_unique_id(id))
    }

    /// Ends work on the image: gives back file space that was reserved and never published, and makes everything durable.
    ///
    /// Dropping the image instead is safe and leaves that space to the next writer.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn close(mut self) -> Result<()> {
        self.end_session()
    }

    /// As [`close`](Self::close), the image staying open.
    ///
    /// # Errors
    /// What the storage answers.
    pub(crate) fn end_session(&mut self) -> Result<()> {
        if !self.access.writes() {
            return Ok(());
        }
        if self.grown && self.sparse.is_some() {
            self.trim()?;
        }
        self.store.sync()
    }
}
