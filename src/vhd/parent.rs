//! Another parent.
//!
//! Owns: the order of writes that gives a differencing image a new link. Must not know: whether the new parent shows the
//! same bytes as the old one; who asks has made sure.
//!
//! The link spans both sectors of the header, and a header has no copy, so it is never overwritten in place: a complete
//! new header is written behind the data, the footers are led to it one after the other, the header is written again in
//! its usual place, and the footers are led back. One good header is reachable from a good footer at any time.

use super::bat::Bat;
use super::create::{vhd_id, write_areas};
use super::header::Header;
use super::image::Vhd;
use super::locator::{self, Composed, Locators};
use super::raw::{HEADER_LEN, SECTOR_BYTES, Site};
use super::space::FILE_UNIT;
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::link::{DiskKind, NewParent, SavedLink};
use crate::problem::Structure;
use crate::units::round_up;

impl Vhd {
    /// Links the image to another parent: its id, its paths, its time. No block changes.
    ///
    /// A crash leaves the old link or the new one.
    ///
    /// # Errors
    /// `InvalidInput` when the image is not differencing, the parent is no VHD or has a null id, or a path cannot be
    /// stored; `ReadOnly`; `Refused` with a saved state; `Corrupt` when the block allocation table is broken; what the
    /// storage answers.
    pub fn set_parent(&mut self, parent: &NewParent) -> Result<()> {
        let id = vhd_id(parent)?;
        self.write_link(id, parent.timestamp, &|at| locator::compose(&parent.paths, at))
    }

    /// The link as it is; `None` when the image is not differencing.
    ///
    /// # Errors
    /// What the storage answers.
    pub fn saved_link(&self) -> Result<Option<SavedLink>> {
        let Some(sparse) = self.sparse.as_ref().filter(|_| self.kind() == DiskKind::Differencing) else {
            return Ok(None);
        };
        locator::keep(&self.store, &sparse.header).map(|bytes| Some(SavedLink(bytes)))
    }

    /// Puts back a link that was kept. A crash leaves the link there is or the one that was kept.
    ///
    /// # Errors
    /// As [`set_parent`](Self::set_parent); `InvalidInput` also when `link` is not that of a VHD.
    pub fn restore_link(&mut self, link: &SavedLink) -> Result<()> {
        let kept = locator::Kept::parse(&link.0)?;
        self.write_link(kept.id, kept.timestamp, &|at| kept.compose(at))
    }

    fn write_link(&mut self, id: [u8; 16], timestamp: u32, compose: &dyn Fn(u64) -> Result<Composed>) -> Result<()> {
        if self.kind() != DiskKind::Differencing {
            return Err(Error::new(ErrorKind::InvalidInput, "only a differencing disk has a parent"));
        }
        self.require_writable()?;
        self.pending = None;
        let end = self.data_end()?;
        let Some((home, old)) = self.sparse.as_ref().map(|sparse| (sparse.header_at, sparse.header.clone())) else {
            return Ok(());
        };
        let away = round_up(end, FILE_UNIT).unwrap_or(end);
        let composed = compose(away.saturating_add(HEADER_LEN))?;
        let header = old.with_parent(id, timestamp, composed.entries, &composed.name);
        self.ensure_tail(composed.end)?;
        write_areas(&self.store, &composed)?;
        self.store.write("the dynamic header", header.bytes(), away)?;
        self.store.sync()?;
        let site = Site { structure: Structure::VhdHeader, at: away };
        let locators = Locators::read(&self.store, &header, (site, self.store.len()?), &mut Findings::new())?;
        self.move_header(&header, away)?;
        if let Some(sparse) = &mut self.sparse {
            sparse.locators = locators;
        }
        self.store.write("the dynamic header", header.bytes(), home)?;
        self.store.sync()?;
        self.move_header(&header, home)
    }

    /// Names the same parent by the unique id it has now; its paths stay. Durable on return.
    ///
    /// Id and checksum lie in the header's first sector, which is written in one piece: a crash leaves the old id or the
    /// new one.
    ///
    /// # Errors
    /// `InvalidInput` when the image is not differencing or the id is all zeros; `ReadOnly`; `Refused` with a saved state;
    /// what the storage answers.
    pub fn follow_parent(&mut self, id: [u8; 16]) -> Result<()> {
        if self.kind() != DiskKind::Differencing {
            return Err(Error::new(ErrorKind::InvalidInput, "only a differencing disk has a parent"));
        }
        if id == [0; 16] {
            return Err(Error::new(ErrorKind::InvalidInput, "a null id names no parent"));
        }
        self.require_writable()?;
        let Some(sparse) = &mut self.sparse else { return Ok(()) };
        if sparse.header.parent_id() == id {
            return Ok(());
        }
        let header = sparse.header.with_parent_id(id);
        let first_sector = header.bytes().get(..SECTOR_BYTES).unwrap_or_default();
        self.store.write("the dynamic header", first_sector, sparse.header_at)?;
        self.store.sync()?;
        sparse.header = header;
        Ok(())
    }

    /// Leads both footers to `header`, which is durable at `at`.
    fn move_header(&mut self, header: &Header, at: u64) -> Result<()> {
        self.write_footers(self.footer.with_data_offset(at))?;
        let limits = (self.footer.size(), self.tail_at);
        if let Some(sparse) = &mut self.sparse {
            sparse.header = header.clone();
            sparse.header_at = at;
            sparse.bat = Bat::new(header, at, limits);
        }
        self.set_data_end(None);
        Ok(())
    }
}
