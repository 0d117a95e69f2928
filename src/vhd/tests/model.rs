//! Random changes against an array of sectors, and the checker's word on what they leave in the file.

use super::{memory, new_parent, open};
use crate::link::{DiskKind, GrowAs, ImageId};
use crate::map::{BlockMap, BlockSink, Content, Source, Want};
use crate::storage::{Access, MemoryStorage, Storage};
use crate::support::{Report, SpecDisk};
use crate::vhd::{Vhd, VhdCreate};
use proptest::prelude::*;
use std::sync::Arc;

/// Enough blocks of 4 KiB for two sectors of table, so that growing has to move it.
const MAX_SECTORS: u64 = 2200;
/// The parent ends inside what children may grow to.
const PARENT_SECTORS: u64 = 1100;

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<(u64, u64, bool, u8)>),
    Abandon(u64, u64),
    Resize(u64, bool),
    Reopen,
    Drop,
    Rename(u8),
    Relink(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let want = (0..MAX_SECTORS, prop_oneof![1u64..12, 1u64..200], any::<bool>(), 1u8..);
    let size = prop_oneof![1..MAX_SECTORS, Just(1024), Just(1025), Just(1023), Just(128)];
    prop_oneof![
        8 => proptest::collection::vec(want, 1..6).prop_map(Step::Put),
        2 => (0..MAX_SECTORS, 1u64..60).prop_map(|(at, len)| Step::Abandon(at, len)),
        3 => (size, any::<bool>()).prop_map(|(size, zero)| Step::Resize(size, zero)),
        1 => Just(Step::Reopen),
        1 => Just(Step::Drop),
        1 => (1u8..).prop_map(Step::Rename),
        1 => any::<u32>().prop_map(Step::Relink),
    ]
}

struct Run {
    storage: Arc<MemoryStorage>,
    vhd: Option<Vhd>,
    parent: Arc<MemoryStorage>,
    kind: DiskKind,
    /// Per sector what this image says; `None` leaves it to the parent.
    model: Vec<Option<u8>>,
}

fn parent_byte(sector: u64) -> u8 {
    if sector < PARENT_SECTORS { 0x80 | (sector % 100) as u8 } else { 0 }
}

impl Run {
    fn new(kind: DiskKind, block_size: u32, sectors: u64) -> Self {
        let (parent, fixed) =
            super::create(&VhdCreate::new(PARENT_SECTORS * 512).kind(DiskKind::Fixed).unique_id(super::PARENT_ID));
        for sector in 0..PARENT_SECTORS {
            fixed.storage().write_all_at(&[parent_byte(sector); 512], sector * 512).unwrap();
        }
        let options = VhdCreate::new(sectors * 512);
        let options = match kind {
            DiskKind::Fixed => options.kind(kind),
            DiskKind::Dynamic => options.block_size(block_size),
            DiskKind::Differencing => options.block_size(block_size).parent(new_parent()),
        };
        let (storage, vhd) = super::create(&options);
        Self { storage, vhd: Some(vhd), parent, kind, model: vec![None; sectors as usize] }
    }

    fn vhd(&mut self) -> &mut Vhd {
        self.vhd.as_mut().unwrap()
    }

    fn absent(&self, sector: u64) -> u8 {
        if self.kind == DiskKind::Differencing { parent_byte(sector) } else { 0 }
    }

    fn expected(&self) -> Vec<u8> {
        let bytes = |(sector, own): (usize, &Option<u8>)| [own.unwrap_or_else(|| self.absent(sector as u64)); 512];
        self.model.iter().enumerate().flat_map(bytes).collect()
    }

    fn wants(&self, list: &[(u64, u64, bool, u8)]) -> Vec<(Want, u8)> {
        let mut list = list.to_vec();
        list.sort_unstable();
        let mut free = 0;
        let mut wants = Vec::new();
        for (start, len, is_zero, byte) in list {
            let (start, end) = (start.max(free), (start + len).min(self.model.len() as u64));
            if start < end {
                let content = if is_zero { Content::Zero } else { Content::Data };
                wants.push((Want { range: start * 512..end * 512, content }, byte));
                free = end;
            }
        }
        wants
    }

    fn put(&mut self, list: &[(u64, u64, bool, u8)]) {
        let wants = self.wants(list);
        for (want, byte) in &wants {
            for sector in want.range.start / 512..want.range.end / 512 {
                self.model[sector as usize] = Some(if want.content == Content::Zero { 0 } else { *byte });
            }
        }
        let model = self.model.clone();
        let len = self.storage.len().unwrap();
        let wants: Vec<Want> = wants.into_iter().map(|(want, _)| want).collect();
        let vhd = self.vhd();
        let space = vhd.space_for(&wants).unwrap();
        super::put(vhd, wants, |sector| model[sector as usize].unwrap()).unwrap();
        assert_eq!(self.storage.len().unwrap(), len + space, "what was estimated is what was taken");
    }

    /// Reserves, writes into new blocks, and never publishes.
    fn abandon(&mut self, start: u64, len: u64) {
        let wants: Vec<Want> = self.wants(&[(start, len, false, 1)]).into_iter().map(|(want, _)| want).collect();
        let vhd = self.vhd();
        let reservation = vhd.reserve(wants).unwrap();
        let Some(sparse) = &vhd.sparse else { return };
        for place in reservation.places() {
            let block = place.offset / sparse.bat.layout.block_size;
            if sparse.bat.block(&vhd.store, block).unwrap().is_none() {
                vhd.storage().write_all_at(&vec![0xEE; place.len as usize], place.at.get()).unwrap();
            }
        }
    }

    fn reopen(&mut self, close: bool) {
        let vhd = self.vhd.take().unwrap();
        if close {
            vhd.close().unwrap();
        }
        let (vhd, findings) = open(&self.storage, Access::Write);
        self.vhd = Some(vhd.unwrap());
        assert_eq!(super::faults(&findings), []);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(list) => self.put(list),
            Step::Abandon(start, len) => self.abandon(*start, *len),
            Step::Resize(sectors, zero) => {
                let grow = if *zero { GrowAs::Zero } else { GrowAs::Parent };
                self.vhd().set_virtual_size(sectors * 512, grow).unwrap();
                let fill = (*zero && self.kind == DiskKind::Differencing).then_some(0);
                self.model.resize(*sectors as usize, fill);
            }
            Step::Reopen => self.reopen(true),
            Step::Drop => self.reopen(false),
            Step::Rename(id) => self.vhd().set_unique_id([*id; 16]).unwrap(),
            Step::Relink(timestamp) if self.kind == DiskKind::Differencing => {
                let mut parent = new_parent();
                parent.timestamp = *timestamp;
                parent.paths.relative = Some(format!(".\\{}.vhd", "p".repeat((*timestamp % 900) as usize + 1)));
                self.vhd().set_parent(&parent).unwrap();
                assert_eq!(self.vhd().parent_timestamp(), Some(*timestamp));
            }
            Step::Relink(_) => {}
        }
    }

    fn compare(&self) {
        let parent = open(&self.parent, Access::Read).0.unwrap();
        let leaf = self.vhd.as_ref().unwrap();
        let layers = if self.kind == DiskKind::Differencing { vec![leaf, &parent] } else { vec![leaf] };
        let actual = super::contents(&layers);
        let expected = self.expected();
        assert_eq!(actual.len(), expected.len());
        let wrong = actual.chunks(512).zip(expected.chunks(512)).position(|(a, b)| a != b);
        if let Some(sector) = wrong {
            let (a, b) = (actual[sector * 512], expected[sector * 512]);
            panic!("sector {sector} of {} holds {a:#x}, not {b:#x}", self.model.len());
        }
    }

    /// The file as others see it.
    fn judge(mut self) {
        self.vhd.take().unwrap().close().unwrap();
        let bytes = self.storage.to_bytes().unwrap();
        Report::vhd(&bytes).assert_clean("after all changes");
        let mut files: Vec<Box<dyn crate::support::Bytes>> = vec![Box::new(bytes)];
        if self.kind == DiskKind::Differencing {
            files.push(Box::new(self.parent.to_bytes().unwrap()));
        }
        let disk = SpecDisk::from_bytes(files).unwrap();
        assert_eq!(disk.read(0, disk.size() as usize).unwrap(), self.expected());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn changes_agree_with_an_array_of_sectors(
        kind in prop_oneof![Just(DiskKind::Fixed), Just(DiskKind::Dynamic), Just(DiskKind::Differencing)],
        block_size in prop_oneof![Just(4096u32), Just(8192), Just(65536)],
        sectors in 1..MAX_SECTORS,
        steps in proptest::collection::vec(step(), 1..14),
    ) {
        let mut run = Run::new(kind, block_size, sectors);
        for step in &steps {
            run.step(step);
            run.compare();
        }
        run.judge();
    }
}

/// Bitmaps of more than one sector: every edit must find the right one.
#[test]
fn blocks_with_large_bitmaps() {
    let (storage, mut vhd) = super::create(&VhdCreate::new(20 << 20).block_size(8 << 20));
    let edge = 4096 * 512;
    super::put(&mut vhd, vec![super::data(0..512)], |_| 1).unwrap();
    super::put(&mut vhd, vec![super::data(edge - 512..edge + 512), super::data(3 * edge..3 * edge + 512)], |_| 2)
        .unwrap();
    vhd.close().unwrap();
    let bytes = storage.to_bytes().unwrap();
    Report::vhd(&bytes).assert_clean("large bitmaps");
    let disk = SpecDisk::from_bytes(vec![Box::new(bytes)]).unwrap();
    let vhd = open(&storage, Access::Read).0.unwrap();
    let all = super::contents(&[&vhd]);
    assert_eq!(disk.read(0, all.len()).unwrap(), all);
    let set: Vec<_> = (0..all.len() / 512).filter(|sector| all[sector * 512] != 0).collect();
    assert_eq!(set, [0, 4095, 4096, 3 * 4096]);
}

/// A tap image that is changed must not leave a batmap that claims more than the bitmaps.
#[test]
fn a_batmap_that_would_lie_is_dropped() {
    for claims in [false, true] {
        let (storage, vhd) = super::create(&VhdCreate::new(64 << 10).block_size(4096));
        drop(vhd);
        let mut bytes = storage.to_bytes().unwrap();
        // BAT at 1536, so the batmap's header at 2048 and, here, its map at 2560.
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"tdbatmap");
        header[8..16].copy_from_slice(&2560u64.to_be_bytes());
        header[16..24].copy_from_slice(&[0, 0, 0, 1, 0, 1, 0, 2]);
        bytes[2048..2560].copy_from_slice(&header);
        bytes[2560] = if claims { 0x40 } else { 0 };
        for at in [0, bytes.len() - 512] {
            bytes[at + 28..at + 36].copy_from_slice(b"tap\0\0\x01\0\x03");
            let sum = crate::support::bytes::vhd_checksum(&bytes[at..at + 512], 64);
            bytes[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
        }
        let storage = memory(&bytes);
        let (vhd, findings) = open(&storage, Access::Write);
        let mut vhd = vhd.unwrap();
        assert_eq!((vhd.creator(), super::faults(&findings)), ("tap 1.3".to_owned(), vec![]));
        super::put(&mut vhd, vec![super::data(4096..4608)], |_| 7).unwrap();
        assert_eq!(vhd.creator(), if claims { "vkit 1.0" } else { "tap 1.3" });
        assert_eq!(storage.to_bytes().unwrap()[2048..2561], bytes[2048..2561], "the map itself is left alone");
        vhd.set_virtual_size(32 << 10, GrowAs::Zero).unwrap();
        assert_eq!(vhd.creator(), "vkit 1.0");
        vhd.close().unwrap();
        let (vhd, findings) = open(&storage, Access::Write);
        assert_eq!(super::read(&[&vhd.unwrap()], 4096..4608).unwrap(), [7; 512]);
        assert_eq!(super::faults(&findings), []);
    }
}

/// Old footers, filler and dead runs below the end of the file must never show through a new block.
#[test]
fn what_the_file_held_before_never_shows() {
    for kind in [DiskKind::Dynamic, DiskKind::Differencing] {
        let mut run = Run::new(kind, 4096, 64);
        run.put(&[(0, 1, false, 7)]);
        let len = run.storage.len().unwrap();
        run.vhd = None;
        let footer = run.storage.to_bytes().unwrap()[len as usize - 512..].to_vec();
        // Filler of another producer: full of old bytes.
        run.storage.write_all_at(&vec![0xAA; 20_480], len - 512).unwrap();
        run.storage.write_all_at(&footer, len - 512 + 20_480).unwrap();
        run.vhd = Some(open(&run.storage, Access::Write).0.unwrap());
        for at in [9, 20, 33, 50] {
            run.put(&[(at, 2, false, 1)]);
            run.compare();
        }
    }
}

#[test]
fn refusals_change_nothing() {
    use crate::error::ErrorKind as K;
    let (storage, mut vhd) = super::create(&VhdCreate::new(64 << 10).block_size(4096));
    let before = storage.to_bytes().unwrap();
    for wants in [
        vec![super::data(0..0)],
        vec![super::data(0..100)],
        vec![super::data(100..512)],
        vec![super::data(0..(64 << 10) + 512)],
        vec![super::data(0..1024), super::data(512..2048)],
        vec![super::data(1024..2048), super::data(0..512)],
    ] {
        assert_eq!(vhd.space_for(&wants).unwrap_err().kind(), K::InvalidInput);
        assert_eq!(vhd.reserve(wants).unwrap_err().kind(), K::InvalidInput);
    }
    assert_eq!(vhd.set_parent(&new_parent()).unwrap_err().kind(), K::InvalidInput);
    assert_eq!(vhd.set_unique_id([0; 16]).unwrap_err().kind(), K::InvalidInput);
    for size in [0, 513, (2040 << 30) + 512] {
        assert_eq!(vhd.set_virtual_size(size, GrowAs::Zero).unwrap_err().kind(), K::InvalidInput);
    }
    assert_eq!(vhd.extent_at(64 << 10, 1).unwrap_err().kind(), K::InvalidInput);
    assert_eq!(vhd.extent_at(0, 0).unwrap_err().kind(), K::InvalidInput);
    drop(vhd);
    let mut reader = open(&storage, Access::Read).0.unwrap();
    assert_eq!(reader.reserve(vec![super::data(0..512)]).unwrap_err().kind(), K::ReadOnly);
    assert_eq!(reader.set_virtual_size(4096, GrowAs::Zero).unwrap_err().kind(), K::ReadOnly);
    assert_eq!(reader.set_unique_id([1; 16]).unwrap_err().kind(), K::ReadOnly);
    reader.close().unwrap();
    assert_eq!(storage.to_bytes().unwrap(), before);

    let mut saved = before;
    for at in [0, saved.len() - 512] {
        saved[at + 84] = 1;
        let sum = crate::support::bytes::vhd_checksum(&saved[at..at + 512], 64);
        saved[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
    }
    let storage = memory(&saved);
    let mut vhd = open(&storage, Access::Write).0.unwrap();
    assert!(vhd.saved_state());
    assert_eq!(vhd.reserve(vec![super::data(0..512)]).unwrap_err().kind(), K::Refused);
    assert_eq!(vhd.set_virtual_size(4096, GrowAs::Zero).unwrap_err().kind(), K::Refused);
    assert_eq!(vhd.set_unique_id([1; 16]).unwrap_err().kind(), K::Refused);
    drop(vhd);
    assert_eq!(storage.to_bytes().unwrap(), saved);
}

/// Two blocks on the same bytes: writing one would silently change the other.
#[test]
fn nothing_is_placed_in_a_file_whose_blocks_overlap() {
    let (storage, mut vhd) = super::create(&VhdCreate::new(64 << 10).block_size(4096));
    super::put(&mut vhd, vec![super::data(0..4096)], |_| 7).unwrap();
    drop(vhd);
    let entry = storage.to_bytes().unwrap()[1536..1540].to_vec();
    for shift in [0, 1] {
        let mut other = entry.clone();
        other[3] += shift;
        storage.write_all_at(&other, 1540).unwrap();
        let mut vhd = open(&storage, Access::Write).0.unwrap();
        let before = storage.to_bytes().unwrap();
        assert_eq!(vhd.reserve(vec![super::data(8192..8704)]).unwrap_err().kind(), crate::error::ErrorKind::Corrupt);
        assert_eq!(storage.to_bytes().unwrap(), before);
    }
}

/// A reservation that was followed by another one owns nothing any more.
#[test]
fn a_stale_reservation_is_not_published() {
    let (_storage, mut vhd) = super::create(&VhdCreate::new(64 << 10).block_size(4096));
    let first = vhd.reserve(vec![super::data(0..4096)]).unwrap();
    let second = vhd.reserve(vec![super::data(8192..12288)]).unwrap();
    assert_eq!(first.places()[0].at, second.places()[0].at, "the space is given out again");
    assert_eq!(vhd.publish(first).unwrap_err().kind(), crate::error::ErrorKind::InvalidInput);
    vhd.storage().write_all_at(&[7; 4096], second.places()[0].at.get()).unwrap();
    vhd.publish(second).unwrap();
    let all = super::contents(&[&vhd]);
    assert!(all[..8192].iter().all(|&byte| byte == 0) && all[8192..12288].iter().all(|&byte| byte == 7));
    assert_eq!(vhd.id(), ImageId::Vhd(vhd.footer.unique_id()));
}

/// A header that points its table at itself: writing an entry would destroy it.
#[test]
fn a_table_over_the_header_is_not_written() {
    let (storage, vhd) = super::create(&VhdCreate::new(64 << 10).block_size(4096));
    drop(vhd);
    let mut bytes = storage.to_bytes().unwrap();
    bytes[528..536].copy_from_slice(&1024u64.to_be_bytes());
    bytes[1024..1536].fill(0xFF);
    let sum = crate::support::bytes::vhd_checksum(&bytes[512..1536], 36);
    bytes[548..552].copy_from_slice(&sum.to_be_bytes());
    let storage = memory(&bytes);
    let (vhd, findings) = open(&storage, Access::Write);
    use crate::problem::{Fault, Structure};
    let overlap = (crate::finding::Severity::Error, Structure::VhdBat, Fault::Overlap);
    assert!(super::faults(&findings).contains(&overlap), "{findings:?}");
    let refused = vhd.unwrap().reserve(vec![super::data(0..512)]).unwrap_err();
    assert_eq!(refused.kind(), crate::error::ErrorKind::Refused);
    assert_eq!(storage.to_bytes().unwrap(), bytes);
}

/// Zeros are stored only where a longer parent would show; past its end nothing shows anyway.
#[test]
fn zeros_below_an_offset_take_space_below_it_only() {
    let mut run = Run::new(DiskKind::Differencing, 4096, 20);
    run.vhd().set_virtual_size(200 * 512, GrowAs::ZeroBelow(33 * 512 - 7)).unwrap();
    let absent = run.vhd().extent_at(0, 20 * 512).unwrap();
    assert_eq!((absent.len, absent.source), (20 * 512, Source::Absent));
    for sector in 20..33 {
        assert!(matches!(run.vhd().extent_at(sector * 512, 512).unwrap().source, Source::Data(_)), "sector {sector}");
    }
    let rest = run.vhd().extent_at(33 * 512, u64::MAX).unwrap();
    assert_eq!((rest.len, rest.source), (167 * 512, Source::Absent));
    assert_eq!(run.vhd().allocated_blocks().unwrap(), 3);
    run.model.resize(33, Some(0));
    run.model.resize(200, None);
    run.judge();
}

/// Other producers leave anything in the last block past the end of the disk, and in entries past it.
#[test]
fn what_lies_past_the_end_never_shows_when_the_disk_grows() {
    for (kind, grow) in [
        (DiskKind::Dynamic, GrowAs::Zero),
        (DiskKind::Dynamic, GrowAs::Parent),
        (DiskKind::Differencing, GrowAs::Zero),
        (DiskKind::Differencing, GrowAs::Parent),
    ] {
        let mut run = Run::new(kind, 4096, 20);
        run.put(&[(0, 20, false, 7)]);
        let storage = Arc::clone(&run.storage);
        let vhd = run.vhd();
        let bat = &vhd.sparse.as_ref().unwrap().bat;
        let place = |block| bat.block(&vhd.store, block).unwrap().unwrap();
        let (at, first, table) = (place(2), place(0), bat.table.start);
        run.vhd = None;
        storage.write_all_at(&[0xFF], at).unwrap();
        storage.write_all_at(&[0xEE; 2048], at + 512 + 2048).unwrap();
        // A fourth entry that a shrink of others left behind, beyond the three that count.
        let mut bytes = storage.to_bytes().unwrap();
        bytes[540..544].copy_from_slice(&4u32.to_be_bytes());
        bytes[table as usize + 12..table as usize + 16].copy_from_slice(&((first / 512) as u32).to_be_bytes());
        let sum = crate::support::bytes::vhd_checksum(&bytes[512..1536], 36);
        bytes[548..552].copy_from_slice(&sum.to_be_bytes());
        storage.write_all_at(&bytes, 0).unwrap();
        run.vhd = Some(open(&storage, Access::Write).0.unwrap());
        run.step(&Step::Resize(30, grow == GrowAs::Zero));
        run.compare();
        run.judge();
    }
}
