//! What a resize would do.
//!
//! Owns: which size is meant, what it would cut off, whether that may be. Must not know: in which order it is written.

use super::{GptState, ResizeOptions, Target, Truncated, wanted};
use crate::chain::{Chain, Owner};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{GptMove, PartitionKind, PartitionTable, ReadAt, TableKind};
use crate::units::{MIB, round_up};
use crate::watch::{Progress, Watch};
use crate::zeros::is_zero;
use std::ops::Range;

/// How much is read at a time when data is looked for.
const STEP: u64 = MIB;
/// What the least size is rounded up to: a physical sector of most disks, and there are readers of VHDX that ask for it.
pub(super) const MINIMUM_UNIT: u64 = 4096;
/// The type of partitions of Windows' dynamic disks; their database lies behind them, in the disk's last MiB.
const DYNAMIC_DISK: u8 = 0x42;

/// A chain as the readers of what is on it want it.
struct Disk<'a>(&'a Chain);

impl ReadAt for Disk<'_> {
    fn size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn sector_size(&self) -> u32 {
        self.0.logical_sector_size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }
}

/// A resize that may be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) old: u64,
    pub(super) new: u64,
    /// The least size was asked for, and the disk is no larger.
    at_minimum: bool,
    pub(super) table: TableKind,
    pub(super) minimum: Option<u64>,
    pub(super) truncated: Vec<Truncated>,
    /// What makes the table fit; empty when that is not asked for, or when it fits.
    pub(super) moved: GptMove,
    /// The table does not fit the new size by itself.
    stale: bool,
    pub(super) notes: Vec<String>,
}

impl Plan {
    /// Looks at the disk, and refuses what must not be done.
    pub(super) fn make(chain: &Chain, options: &ResizeOptions, watch: &Watch<'_>) -> Result<Self> {
        let disk = Disk(chain);
        let old = disk.size();
        let table = PartitionTable::read(&disk)?;
        let needed = table.minimum_size().filter(|_| !has_database_behind(&table));
        let minimum = needed.and_then(|size| round_up(size, MINIMUM_UNIT));
        let new = wanted(options.target, old, minimum)?;
        chain.leaf().image().check_virtual_size(new)?;
        let moved = match table.kind() {
            TableKind::Gpt if options.fix_gpt => GptMove::plan(&disk, &table, new),
            _ => Ok(GptMove::default()),
        };
        let truncated = if new < old { truncated(chain, (&table, needed), new..old, watch)? } else { Vec::new() };
        if let (Some(first), false) = (truncated.first(), options.allow_data_loss) {
            return Err(would_truncate(first, truncated.len(), minimum));
        }
        let moved = moved?;
        let at_minimum = options.target == Target::Minimum && (new > old || (new == old && moved.is_empty()));
        let stale =
            table.kind() == TableKind::Gpt && !GptMove::plan(&disk, &table, new).is_ok_and(|moved| moved.is_empty());
        let notes = table.notes().to_vec();
        Ok(Self { old, new, at_minimum, table: table.kind(), minimum, truncated, moved, stale, notes })
    }

    /// Refuses to make a disk smaller that is as small as it can be.
    pub(super) fn require_smaller(&self) -> Result<()> {
        if !self.at_minimum {
            return Ok(());
        }
        let message = format_args!("the disk has {} bytes and needs {}", self.old, self.new).to_string();
        Err(Error::new(ErrorKind::Refused, message)
            .with_windows_name("ERROR_VHD_ALREADY_AT_OR_BELOW_MINIMUM_VIRTUAL_SIZE")
            .with_hint("there is nothing to cut off"))
    }

    /// How the GUID partition table stands when all is done.
    pub(super) fn gpt_state(&self, fix: bool) -> Option<GptState> {
        (self.table == TableKind::Gpt).then_some(match (self.stale, fix) {
            (false, _) => GptState::Fits,
            (true, true) => GptState::Fixed,
            (true, false) => GptState::Stale,
        })
    }
}

/// Dynamic disks behind a master boot record keep their database in no partition.
fn has_database_behind(table: &PartitionTable) -> bool {
    table.partitions().iter().any(|partition| partition.kind == PartitionKind::Mbr(DYNAMIC_DISK))
}

/// What lies in `cut`, the end of the disk that goes.
fn truncated(
    chain: &Chain,
    (table, minimum): (&PartitionTable, Option<u64>),
    cut: Range<u64>,
    watch: &Watch<'_>,
) -> Result<Vec<Truncated>> {
    let whole = |what: &str| vec![Truncated { what: what.to_owned(), start: cut.start, end: cut.end }];
    if table.kind() == TableKind::None {
        let data = first_data(chain, cut.clone(), watch)?;
        let lost = data.map(|start| Truncated { what: "data".to_owned(), start, end: cut.end });
        return Ok(lost.into_iter().collect());
    }
    if !table.is_readable() {
        return Ok(whole("what a damaged partition table does not tell"));
    }
    if has_database_behind(table) {
        return Ok(whole("the database of a dynamic disk"));
    }
    let lost = table.partitions().iter().filter(|partition| partition.range.end > cut.start);
    let mut lost: Vec<Truncated> = lost
        .map(|partition| {
            let Range { start, end } = partition.range;
            Truncated { what: format!("partition {}", partition.number), start, end }
        })
        .collect();
    if lost.is_empty() && minimum.is_none_or(|minimum| minimum > cut.start) {
        lost = whole("the partition table's own space");
    }
    Ok(lost)
}

/// Where the first byte of `range` lies that is not zero. Reads what has a place only.
fn first_data(chain: &Chain, range: Range<u64>, watch: &Watch<'_>) -> Result<Option<u64>> {
    let total = range.end.saturating_sub(range.start);
    let mut buffer = vec![0; usize::try_from(STEP).unwrap_or(0)];
    for piece in chain.pieces(range.clone()) {
        let piece = piece?;
        let Owner::Layer { index, at } = piece.owner else { continue };
        let storage = chain.layer(index)?.image().map().storage();
        let mut done = 0;
        while done < piece.len {
            watch.check()?;
            let offset = piece.offset.saturating_add(done);
            watch.report(Progress { done: offset.saturating_sub(range.start), total, moved: 0 });
            // Holes of the file are zeros.
            let place = at.get().saturating_add(done);
            let next = storage.next_data(place).map_err(|error| Error::io("look for data", error))?;
            let hole = next.map_or(u64::MAX, |next| next.saturating_sub(place));
            if hole > 0 {
                done = done.saturating_add(hole);
                continue;
            }
            let len = STEP.min(piece.len.saturating_sub(done));
            let part = buffer.get_mut(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
            chain.read_at(part, offset)?;
            if !is_zero(part) {
                let inside = part.iter().position(|byte| *byte != 0).unwrap_or(0);
                return Ok(Some(offset.saturating_add(inside as u64)));
            }
            done = done.saturating_add(len);
        }
    }
    Ok(None)
}

fn would_truncate(first: &Truncated, count: usize, minimum: Option<u64>) -> Error {
    let others = match count {
        1 => String::new(),
        more => format!(", and {} more things,", more.saturating_sub(1)),
    };
    let Truncated { what, start, end } = first;
    let message = format_args!("{what} (bytes {start} to {end}){others} would be cut off").to_string();
    let error = Error::new(ErrorKind::Refused, message).with_windows_name("ERROR_VHD_RESIZE_WOULD_TRUNCATE_DATA");
    match minimum {
        Some(size) => error.with_hint(format_args!(
            "the partitions need {size} bytes (--to-minimum); --allow-data-loss gives up what lies behind"
        )),
        None => error.with_hint("--allow-data-loss gives it up"),
    }
}
