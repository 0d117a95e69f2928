//! A medium with bad places, and what is lost to them and to a cut.

use crate::lab::{Lab, Run, ranges, rescued, try_rescued};
use std::io;
use std::ops::Range;
use vhdkit::ErrorKind;
use vhdkit::ops::LossCause;
use vhdkit::storage::Storage;

/// A file of which some ranges cannot be read. A write to it fails the test.
#[derive(Debug)]
pub(crate) struct Medium {
    pub(crate) file: Vec<u8>,
    pub(crate) bad: Vec<Range<u64>>,
}

impl Storage for Medium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        if end > self.file.len() as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.bad.iter().any(|bad| bad.start < end && offset < bad.end) {
            return Err(io::Error::from_raw_os_error(5));
        }
        buf.copy_from_slice(&self.file[offset as usize..end as usize]);
        Ok(())
    }

    fn write_all_at(&self, _: &[u8], offset: u64) -> io::Result<()> {
        panic!("a rescue wrote to its source at {offset:#x}")
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        panic!("a rescue set the length of its source to {len:#x}")
    }

    fn sync(&self) -> io::Result<()> {
        panic!("a rescue synced its source")
    }
}

/// The sectors of `run` that touch `bad`.
fn sectors(run: &Run, bad: &Range<u64>, sector: u64) -> Option<(u64, u64)> {
    let start = bad.start.max(run.place);
    let end = bad.end.min(run.place + run.len);
    let inside = |place: u64| place - run.place;
    (start < end).then(|| {
        let first = inside(start) / sector * sector;
        (run.offset + first, inside(end).div_ceil(sector) * sector - first)
    })
}

#[test]
fn a_bad_sector_costs_a_sector() {
    for mut lab in Lab::all() {
        let runs = lab.data();
        let run = runs.iter().find(|run| run.len >= 8192).unwrap();
        let (first, last) = (run.place + 700..run.place + 701, run.place + run.len - 1..run.place + run.len);
        let sector = u64::from(lab.sector);
        let expected = [&first, &last].map(|bad| sectors(run, bad, sector).unwrap());
        lab.leaf_is_bad_at(first);
        lab.leaf_is_bad_at(last);
        let (report, _) = rescued(&lab, &[0xEE]);
        assert_eq!(ranges(&report), expected, "{}", lab.name);
        assert!(report.lost.iter().all(|lost| lost.cause == LossCause::Medium && lost.error.contains("os error 5")));
        assert!(!report.is_whole());
    }
}

/// What must be lost when the leaf's file ends at `len`: data past it, in whole sectors.
fn past(lab: &Lab, len: u64) -> Vec<(u64, u64)> {
    let end = lab.len();
    lab.data().iter().filter_map(|run| sectors(run, &(len..end), u64::from(lab.sector))).collect()
}

fn contains(ranges: &[(u64, u64)], at: u64) -> bool {
    ranges.iter().any(|(offset, len)| (*offset..offset + len).contains(&at))
}

/// Cuts at every place where something ends or begins, and in between. Past the tables, exactly the data past the cut is
/// lost, or a block whose bitmap is; before them, nothing that is read may be wrong.
#[test]
fn a_cut_file_loses_what_was_cut_off() {
    let mut cuts = 0;
    for lab in Lab::all() {
        let fixed_vhd = lab.name == "VHD fixed";
        let first_data = lab.data().iter().map(|run| run.place).min().unwrap();
        let bitmap = lab.bitmap_of_chunk();
        for cut in (0..lab.len()).step_by(256 << 10).flat_map(|at| [at, at + 5000]).filter(|at| *at < lab.len()) {
            let damaged = lab.copy();
            damaged.leaf.set_len(cut).unwrap();
            let outcome = try_rescued(&damaged, &[0xEE]);
            cuts += 1;
            let (report, _) = match outcome {
                Ok(done) => done,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnknownFormat), "{error}");
                    // A fixed VHD has no copy of its footer; the others have all they need in front of their data.
                    assert!(fixed_vhd || cut < first_data, "{}: cut at {cut:#x}: {error}", lab.name);
                    continue;
                }
            };
            let (lost, must) = (ranges(&report), past(&lab, cut));
            for at in (0..lab.model.len() as u64).step_by(512) {
                let is_lost = contains(&lost, at);
                assert!(is_lost || !contains(&must, at), "{}: cut at {cut:#x}: {at:#x} is made up", lab.name);
                // Bitmaps lie in front of their blocks (VHD) or behind the tables (VHDX): with one, its block is lost.
                let block_is_cut = must.iter().any(|(offset, _)| offset >> 20 == at >> 20);
                let may = contains(&must, at) || block_is_cut || bitmap.is_some_and(|place| cut < place + 4096);
                assert!(!is_lost || may || cut < first_data, "{}: cut at {cut:#x}: {at:#x} is there", lab.name);
            }
        }
    }
    println!("{cuts} cuts");
    assert!(cuts > 200);
}

/// One page of a structure at a time cannot be read: what is read all the same is right.
#[test]
fn bad_pages_in_structures_never_show_other_bytes() {
    let mut pages = 0;
    let mut refused = Vec::new();
    for lab in Lab::all() {
        let bytes = lab.leaf.to_bytes().unwrap();
        let data = lab.data();
        let is_data = |at: u64| data.iter().any(|run| run.place < at + 4096 && at < run.place + run.len);
        let used = (0..lab.len()).step_by(4096).filter(|at| {
            let end = bytes.len().min(*at as usize + 4096);
            !is_data(*at) && bytes[*at as usize..end].iter().any(|byte| *byte != 0)
        });
        for at in used.collect::<Vec<_>>() {
            let mut damaged = lab.copy();
            damaged.leaf_is_bad_at(at..at + 4096);
            pages += 1;
            match try_rescued(&damaged, &[]) {
                Ok(_) => {}
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::UnknownFormat), "{error}");
                    refused.push((lab.name, at));
                }
            }
        }
    }
    println!("{pages} pages, refused: {refused:x?}");
    // There is one copy of the metadata items of a VHDX, and of a fixed VHD's footer. The first page of a dynamic VHD holds
    // the header and the first entries of the table.
    assert!(pages > 40 && refused.len() <= 12, "{refused:x?}");
}
