//! Making the file no longer than its blocks.
//!
//! Owns: which blocks may lose their space, where the file can end, the gaps blocks move to, and the order of writes.
//! Must not know: why a block is given up; how bytes are copied.
//!
//! There is no log; the order is: copy a block, sync, change its entry, sync, and only then may its old space hold
//! another; at the very end another footer behind the last block, sync, and the file is cut. The copy of the footer at the
//! start, the header, the table, parent locators and a batmap stay where they are.
//!
//! A batmap says of blocks that all their sectors are there. Moving changes nothing it says; giving up a block does, and
//! then the map goes first.

use super::bat::UNALLOCATED;
use super::header::BlockLayout;
use super::image::{Sparse, Vhd};
use super::raw::{FOOTER_LEN, HEADER_LEN};
use super::space::{FILE_UNIT, tail_position};
use crate::error::{Error, ErrorKind, Result};
use crate::link::DiskKind;
use crate::map::BlockMap;
use crate::pack::{Block, Blocks, Gap, Held, Marks, Pack, Packing, Relocation, smallest};
use crate::units::{FileOffset, SECTOR, round_up};
use std::ops::Range;

impl Sparse {
    /// What a block holds whose bitmap is at `at`.
    fn held(&self, vhd: &Vhd, block: u64, at: u64) -> Result<Held> {
        let layout = self.bat.layout;
        let disk = vhd.virtual_size().saturating_sub(layout.start(block)).min(layout.block_size);
        let sectors = disk.div_ceil(SECTOR);
        let (present, run) = self.bat.bitmap_run(&vhd.store, at, 0..sectors)?;
        Ok(match (present, vhd.kind()) {
            (false, _) if run == sectors => Held::Nothing,
            (_, DiskKind::Differencing) => Held::Part,
            _ => Held::All,
        })
    }

    /// Everything that stays where it is, sorted.
    fn fixed(&self) -> Vec<Range<u64>> {
        let header = self.header_at..self.header_at.saturating_add(HEADER_LEN);
        let table = self.bat.table.clone();
        let mut fixed = vec![0..FOOTER_LEN, header, table.clone()];
        fixed.extend(self.locators.areas.iter().cloned());
        fixed.extend(self.batmap.iter().flat_map(|batmap| batmap.ranges(table.end)));
        fixed.sort_by_key(|range| range.start);
        fixed
    }
}

/// Where blocks can go.
struct Room {
    layout: BlockLayout,
    /// What stays where it is, sorted.
    fixed: Vec<Range<u64>>,
    /// The sectors that blocks start in, sorted.
    places: Vec<u32>,
    /// All blocks have their data on whole 4 KiB, and are to keep it there.
    aligned: bool,
}

impl Room {
    fn new(layout: BlockLayout, fixed: Vec<Range<u64>>, places: Vec<u32>) -> Self {
        let data = |place: &u32| u64::from(*place).saturating_mul(SECTOR).saturating_add(layout.bitmap_len);
        let aligned = places.iter().all(|place| data(place).is_multiple_of(FILE_UNIT));
        Self { layout, fixed, places, aligned }
    }

    fn end_of(&self, place: u32) -> u64 {
        u64::from(place).saturating_mul(SECTOR).saturating_add(self.layout.stride())
    }

    /// How many blocks end by `limit`.
    fn staying(&self, limit: u64) -> usize {
        self.places.partition_point(|place| self.end_of(*place) <= limit)
    }

    /// The gaps before `limit` between what is fixed and the blocks that end by it.
    fn gaps(&self, limit: u64, visit: &mut dyn FnMut(Gap)) {
        let stride = self.layout.stride();
        let block = |place: &u32| u64::from(*place).saturating_mul(SECTOR);
        let staying = self.staying(limit);
        // A block that ends behind the limit keeps its space until it has moved.
        let limit = self.places.get(staying).map_or(limit, |place| block(place).min(limit));
        let mut blocks = self.places.iter().take(staying).map(block).map(|at| at..at.saturating_add(stride)).peekable();
        let mut fixed = self.fixed.iter().cloned().peekable();
        let mut reached = 0u64;
        loop {
            let next = match (fixed.peek(), blocks.peek()) {
                (Some(one), Some(other)) if one.start <= other.start => fixed.next(),
                (_, Some(_)) => blocks.next(),
                (Some(_), None) => fixed.next(),
                (None, None) => None,
            };
            let Some(next) = next.filter(|next| next.start < limit) else { break };
            visit(self.gap(reached..next.start));
            reached = reached.max(next.end);
        }
        visit(self.gap(reached..limit));
    }

    /// Room for blocks in `range`: with their data on whole 4 KiB, or, where they are not anyway, as many as fit.
    fn gap(&self, range: Range<u64>) -> Gap {
        let stride = self.layout.stride();
        let count = |start: u64, step: u64| match range.end.checked_sub(start.saturating_add(stride)) {
            Some(rest) if start < range.end => rest.checked_div(step).unwrap_or(0).saturating_add(1),
            _ => 0,
        };
        let packed = Gap { start: range.start, step: stride, count: count(range.start, stride) };
        let data = round_up(range.start.saturating_add(self.layout.bitmap_len), FILE_UNIT).unwrap_or(u64::MAX);
        let start = data.saturating_sub(self.layout.bitmap_len);
        let step = round_up(stride, FILE_UNIT).unwrap_or(stride);
        let aligned = Gap { start, step, count: count(start, step) };
        if self.aligned || aligned.count == packed.count { aligned } else { packed }
    }
}

impl Vhd {
    fn blocks_of_file(&self) -> Result<&Sparse> {
        let none = || Error::new(ErrorKind::InvalidInput, "a fixed image has no blocks");
        self.sparse.as_ref().ok_or_else(none)
    }

    /// The sectors that the blocks of the disk start in, but those of `without`; sorted.
    fn places(&self, sparse: &Sparse, without: &Marks) -> Result<Vec<u32>> {
        // That no two blocks share bytes, and that they are few enough to be listed, it finds out.
        self.data_end()?;
        let mut places = Vec::new();
        sparse.bat.for_each(&self.store, 0..sparse.bat.blocks(), |block, entry| {
            if entry != UNALLOCATED && !without.get(block) {
                places.push(entry);
            }
            Ok(())
        })?;
        places.sort_unstable();
        Ok(places)
    }

    /// Takes away the places that a table longer than the disk gives to blocks past the end.
    fn clear_past_end(&mut self) -> Result<()> {
        let sparse = self.blocks_of_file()?;
        let past = sparse.bat.blocks()..u64::from(sparse.bat.entries);
        if past.is_empty() {
            return Ok(());
        }
        self.clear_entries(sparse, past)?;
        self.store.sync()?;
        self.set_data_end(None);
        Ok(())
    }
}

impl Pack for Vhd {
    fn blocks(&self, from: u64, limit: usize) -> Result<Blocks> {
        let sparse = self.blocks_of_file()?;
        let (layout, end, mut list) = (sparse.bat.layout, sparse.bat.blocks(), Vec::new());
        let mut number = from;
        while list.len() < limit && number < end {
            match sparse.bat.block(&self.store, number)? {
                Some(at) => {
                    let start = layout.start(number);
                    let range = start..start.saturating_add(layout.block_size).min(self.virtual_size());
                    list.push(Block { number, range, held: sparse.held(self, number, at)? });
                    number = number.saturating_add(1);
                }
                None => number = number.saturating_add(sparse.bat.unallocated_run(&self.store, number..end)?.max(1)),
            }
        }
        Ok(Blocks { list, next: (number < end).then_some(number) })
    }

    fn give_up(&mut self, blocks: &[u64], _shows: bool) -> Result<()> {
        self.require_writable()?;
        self.pending = None;
        if let Some(batmap) = self.sparse.as_ref().and_then(|sparse| sparse.batmap.as_ref()) {
            let mut lies = false;
            for &block in blocks {
                lies |= batmap.says_full(&self.store, block)?;
            }
            if lies {
                self.drop_batmap()?;
            }
        }
        let entries: Vec<(u64, u32)> = blocks.iter().map(|block| (*block, UNALLOCATED)).collect();
        self.blocks_of_file()?.write_entries(&self.store, &entries)?;
        // What is free from here on may hold another block.
        self.store.sync()?;
        self.set_data_end(None);
        Ok(())
    }

    fn packing(&mut self, without: &Marks) -> Result<Packing> {
        let sparse = self.blocks_of_file()?;
        let room = Room::new(sparse.bat.layout, sparse.fixed(), self.places(sparse, without)?);
        let fixed_end = room.fixed.iter().map(|range| range.end).max().unwrap_or(FOOTER_LEN);
        let used = room.places.last().map_or(0, |place| room.end_of(*place)).max(fixed_end);
        let fits = |limit: u64| {
            let limit = limit.saturating_mul(SECTOR);
            let behind = room.places.len().saturating_sub(room.staying(limit));
            let mut slots = 0u64;
            room.gaps(limit, &mut |gap| slots = slots.saturating_add(gap.count));
            slots >= behind as u64
        };
        let limit = smallest(fixed_end.div_ceil(SECTOR)..used.div_ceil(SECTOR), fits).saturating_mul(SECTOR);
        let mut gaps = Vec::new();
        room.gaps(limit, &mut |gap| {
            if gap.count > 0 {
                gaps.push(gap);
            }
        });
        gaps.reverse();
        let file_size = tail_position(limit).min(self.tail_at).saturating_add(FOOTER_LEN);
        Ok(Packing { file_size, limit, gaps, ..Packing::default() })
    }

    fn next_moves(&mut self, packing: &mut Packing, max: u64) -> Result<Vec<Relocation>> {
        self.require_writable()?;
        self.pending = None;
        if packing.next == 0 {
            self.clear_past_end()?;
        }
        let sparse = self.blocks_of_file()?;
        let (layout, end) = (sparse.bat.layout, sparse.bat.blocks());
        let (mut moves, mut bytes) = (Vec::new(), 0u64);
        while bytes < max && packing.next < end {
            let block = packing.next;
            let Some(from) = sparse.bat.block(&self.store, block)? else {
                let run = sparse.bat.unallocated_run(&self.store, block..end)?;
                packing.next = block.saturating_add(run.max(1));
                continue;
            };
            packing.next = block.saturating_add(1);
            if from.saturating_add(layout.stride()) <= packing.limit {
                continue;
            }
            while packing.gaps.last().is_some_and(|gap| gap.count == 0) {
                packing.gaps.pop();
            }
            // The count said that there is room; without it the block stays, and the file is longer.
            let Some(gap) = packing.gaps.last_mut() else { break };
            let to = gap.start;
            *gap = Gap { start: to.saturating_add(gap.step), count: gap.count.saturating_sub(1), ..*gap };
            // A file may end inside its last block, if the disk ends before it does.
            let len = layout.stride().min(self.tail_at.saturating_sub(from));
            moves.push(Relocation { slot: block, from: FileOffset(from), to: FileOffset(to), len });
            bytes = bytes.saturating_add(len);
        }
        Ok(moves)
    }

    fn moved(&mut self, moves: &[Relocation]) -> Result<()> {
        let sector = |one: &Relocation| u32::try_from(one.to.get() / SECTOR).unwrap_or(UNALLOCATED);
        let entries: Vec<(u64, u32)> = moves.iter().map(|one| (one.slot, sector(one))).collect();
        for one in moves {
            self.store.forget(&(one.to.get()..one.to.get().saturating_add(one.len)));
        }
        self.blocks_of_file()?.write_entries(&self.store, &entries)?;
        self.store.sync()?;
        self.set_data_end(None);
        Ok(())
    }

    fn cut(&mut self) -> Result<()> {
        self.require_writable()?;
        self.clear_past_end()?;
        self.set_data_end(None);
        self.trim()
    }
}
