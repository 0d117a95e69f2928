//! What a disk shows, held against models of it.
//!
//! Owns: sparse models, and the comparison that reads only what either side has. Must not know: crashes.

use std::collections::BTreeMap;
use std::ops::Range;
use vhdkit::chain::{Chain, Owner};
use vhdkit::storage::Storage;

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// The contents of a disk; pages of zeros cost nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) size: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
}

impl Model {
    pub(crate) fn zeros(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut model = Self::zeros(bytes.len() as u64);
        model.write(0, bytes);
        model
    }

    /// What `chain` shows.
    pub(crate) fn shown(chain: &Chain) -> Result<Self, String> {
        let mut model = Self::zeros(chain.virtual_size());
        let mut buf = [0; PAGE as usize];
        for piece in chain.pieces(0..model.size) {
            let piece = piece.map_err(|error| error.to_string())?;
            let Owner::Layer { index, at: place } = piece.owner else { continue };
            let storage = chain.layers()[index].image().map().storage();
            let mut at = piece.offset;
            while at < piece.end() {
                let from = place.get() + (at - piece.offset);
                let data = storage.next_data(from).map_err(|error| error.to_string())?;
                let Some(start) = data.map(|data| at + (data - from)).filter(|start| *start < piece.end()) else {
                    break;
                };
                let end = ((start / PAGE + 1) * PAGE).min(piece.end());
                let part = &mut buf[..(end - start) as usize];
                let read = storage.read_exact_at(part, place.get() + (start - piece.offset));
                read.map_err(|error| format!("reading {start:#x}: {error}"))?;
                model.write(start, part);
                at = end;
            }
        }
        Ok(model)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(0, &mut bytes);
        bytes
    }

    /// Past the end of the model there are zeros.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) {
        for (at, part) in parts(offset, buf.len()) {
            let inside = (at % PAGE) as usize;
            let to = &mut buf[part.clone()];
            match self.pages.get(&(at / PAGE)) {
                Some(page) => to.copy_from_slice(&page[inside..inside + part.len()]),
                None => to.fill(0),
            }
        }
    }

    /// What reaches past the end is cut off.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let len = (self.size.saturating_sub(offset)).min(bytes.len() as u64) as usize;
        for (at, part) in parts(offset, len) {
            let from = &bytes[part.clone()];
            let inside = (at % PAGE) as usize;
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[inside..inside + part.len()].copy_from_slice(from);
            if page.iter().all(|&byte| byte == 0) {
                self.pages.remove(&(at / PAGE));
            }
        }
    }

    pub(crate) fn zero(&mut self, range: Range<u64>) {
        let end = range.end.min(self.size);
        let numbers: Vec<u64> = self.pages.range(range.start / PAGE..end.div_ceil(PAGE)).map(|(at, _)| *at).collect();
        for number in numbers {
            let (start, stop) = (range.start.max(number * PAGE), end.min((number + 1) * PAGE));
            self.write(start, &vec![0; stop.saturating_sub(start) as usize]);
        }
    }

    /// Cut, or grown with what `below` shows there.
    pub(crate) fn resize(&mut self, size: u64, below: Option<&Self>) {
        let old = self.size;
        if size < old {
            self.zero(size..old);
            self.pages.retain(|number, _| number * PAGE < size);
        }
        self.size = size;
        let Some(below) = below.filter(|_| size > old) else { return };
        let numbers: Vec<u64> = below.pages.range(old / PAGE..size.div_ceil(PAGE)).map(|(at, _)| *at).collect();
        for number in numbers {
            let start = old.max(number * PAGE);
            let mut bytes = vec![0; (size.min((number + 1) * PAGE) - start) as usize];
            below.read(start, &mut bytes);
            self.write(start, &bytes);
        }
    }

    /// Whether it has `bytes`, which lie in one page, at `at`.
    fn holds(&self, at: u64, bytes: &[u8]) -> bool {
        let inside = (at % PAGE) as usize;
        match self.pages.get(&(at / PAGE)) {
            Some(page) => page[inside..inside + bytes.len()] == *bytes,
            None => bytes.iter().all(|&byte| byte == 0),
        }
    }

    /// The first byte from `at` on in a page that holds something.
    fn next(&self, at: u64) -> Option<u64> {
        let (number, _) = self.pages.range(at / PAGE..).next()?;
        Some(at.max(number * PAGE))
    }
}

/// `len` bytes from `offset` on, cut at pages: where each part starts, and which bytes of the buffer it is.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let part = done..len.min(done + (PAGE - at % PAGE) as usize);
        done = part.end;
        (!part.is_empty()).then_some((at, part))
    })
}

/// Whether every sector that `chain` shows is what one of the models of its size holds there.
pub(crate) fn compare(chain: &Chain, allowed: &[&Model]) -> Result<(), String> {
    let size = chain.virtual_size();
    let models: Vec<&Model> = allowed.iter().copied().filter(|model| model.size == size).collect();
    if models.is_empty() {
        let sizes: Vec<u64> = allowed.iter().map(|model| model.size).collect();
        return Err(format!("a disk of {size} bytes, allowed are {sizes:?}"));
    }
    for piece in chain.pieces(0..size) {
        let piece = piece.map_err(|error| error.to_string())?;
        let from = match piece.owner {
            Owner::Layer { index, at } => Some((chain.layers()[index].image().map().storage(), at.get())),
            Owner::Zero { .. } | Owner::Below => None,
        };
        compare_run(piece.offset..piece.end(), from, &models)?;
    }
    Ok(())
}

fn compare_run(run: Range<u64>, from: Option<(&dyn Storage, u64)>, models: &[&Model]) -> Result<(), String> {
    let mut buf = [0; PAGE as usize];
    let mut at = run.start;
    loop {
        let stored = match from {
            Some((storage, place)) => {
                let data = storage.next_data(place + (at - run.start)).map_err(|error| error.to_string())?;
                data.map(|data| run.start + (data - place))
            }
            None => None,
        };
        let next = models.iter().filter_map(|model| model.next(at)).chain(stored).min();
        let Some(start) = next.filter(|&next| next < run.end) else { return Ok(()) };
        let end = ((start / PAGE + 1) * PAGE).min(run.end);
        let found = &mut buf[..(end - start) as usize];
        match from {
            Some((storage, place)) => {
                let read = storage.read_exact_at(found, place + (start - run.start));
                read.map_err(|error| format!("reading {start:#x}: {error}"))?;
            }
            None => found.fill(0),
        }
        compare_bytes(start, found, models)?;
        at = end;
        if at >= run.end {
            return Ok(());
        }
    }
}

/// `found` lies in one page.
fn compare_bytes(start: u64, found: &[u8], models: &[&Model]) -> Result<(), String> {
    if models.iter().any(|model| model.holds(start, found)) {
        return Ok(());
    }
    for (at, sector) in (start..).step_by(SECTOR).zip(found.chunks(SECTOR)) {
        if !models.iter().any(|model| model.holds(at, sector)) {
            let head = &sector[..sector.len().min(8)];
            let mut wanted = [0; 8];
            let wanted: Vec<_> = models.iter().map(|model| (model.read(at, &mut wanted), wanted).1).collect();
            return Err(format!("sector at {at:#x} starts with {head:02x?}, allowed is {wanted:02x?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bug this finds: a model or a comparison that would let wrong bytes pass.
    #[test]
    fn the_model_is_a_vector_and_the_comparison_sees_every_sector() {
        let mut bytes = vec![0; 20_000];
        let mut model = Model::zeros(20_000);
        for (offset, len, byte) in [(100u64, 9000usize, 3u8), (4096, 4096, 0), (15_000, 9000, 7), (200, 100, 0)] {
            let end = (offset as usize + len).min(bytes.len());
            bytes[offset as usize..end].fill(byte);
            model.write(offset, &vec![byte; len]);
        }
        bytes[16_000..17_000].fill(0);
        model.zero(16_000..17_000);
        assert!(model.to_bytes() == bytes && Model::of(&bytes) == model);
        let mut cut = model.clone();
        cut.resize(15_500, None);
        cut.resize(20_000, Some(&Model::of(&vec![9; 18_000])));
        bytes[15_500..18_000].fill(9);
        bytes[18_000..].fill(0);
        assert!(cut.to_bytes() == bytes);
        let other = Model::zeros(20_000);
        assert!(compare_run(0..20_000, None, &[&other, &model]).is_ok());
        assert!(compare_run(0..20_000, None, &[&model]).is_err());
        let file = vhdkit::storage::MemoryStorage::from_bytes(&bytes);
        assert!(compare_run(0..20_000, Some((&file, 0)), &[&cut]).is_ok());
        assert!(compare_run(0..20_000, Some((&file, 0)), &[&model, &other]).is_err());
        assert!(compare_run(0..19_000, Some((&file, 512)), &[&cut]).is_err());
    }
}
