//! What a chain shows, as one run of bytes from the first to the last.
//!
//! Owns: the raw stream. Must not know: who reads it, how bytes are read ahead (the copier does).

use crate::chain::{Chain, Layer, Owner, Pieces};
use crate::copy::{Bytes, Copier, Meter, Origin, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::watch::Watch;
use std::io::Write;
use std::ops::Range;

/// Zeros to hand on, as many as are worth a call.
pub(super) const ZEROS: &[u8] = &[0; 256 << 10];

/// The layers from one depth down to another.
///
/// # Errors
/// `Chain` when the chain has no such part.
pub(super) fn part(chain: &Chain, (from, to): (usize, Option<usize>)) -> Result<&[Layer]> {
    let count = chain.layers().len();
    let to = to.unwrap_or(count);
    let layers =
        from.checked_sub(1).and_then(|first| chain.layers().get(first..to)).filter(|layers| !layers.is_empty());
    layers.ok_or_else(|| {
        let message =
            format_args!("no part of this chain goes from depth {from} to {to}: it has {count} files").to_string();
        Error::new(ErrorKind::Chain, message).with_hint("the leaf is depth 1, its parent depth 2")
    })
}

/// The runs that the disk `layers` decide is made of; what they do not say is zero.
pub(super) fn runs(layers: &[Layer]) -> impl Iterator<Item = Result<Run<'_>>> + Send {
    runs_of(layers, 0..layers.first().map_or(0, |layer| layer.image().virtual_size()))
}

/// The runs that `range` of that disk is made of.
fn runs_of(layers: &[Layer], range: Range<u64>) -> impl Iterator<Item = Result<Run<'_>>> + Send {
    Pieces::over(layers, 0, range).map(|piece| {
        let piece = piece?;
        let from = match piece.owner {
            Owner::Layer { index, at } => layers.get(index).map(|layer| (layer as &dyn Origin, at.get())),
            Owner::Zero { .. } | Owner::Below => None,
        };
        Ok(Run { len: piece.len, from })
    })
}

/// Hands the bytes of `runs` to `take` in order, zeros in slices of [`ZEROS`].
///
/// # Errors
/// Of reading; those of `take`; `Cancelled`.
#[expect(single_use_lifetimes, reason = "an elided lifetime here is not stable Rust yet")]
pub(super) fn pour<'a>(
    runs: impl Iterator<Item = Result<Run<'a>>> + Send,
    copier: &Copier,
    meter: &Meter<'_>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    copier.stream(runs, meter, |bytes| {
        let mut zeros = match bytes {
            Bytes::Data(bytes) => {
                take(bytes)?;
                at += bytes.len() as u64;
                0
            }
            Bytes::Zeros(len) => len,
        };
        while zeros > 0 {
            meter.check()?;
            let len = zeros.min(ZEROS.len() as u64);
            take(&ZEROS[..len as usize])?;
            (at, zeros) = (at + len, zeros - len);
            meter.reached(at);
        }
        meter.reached(at);
        Ok(())
    })
}

/// Writes what `source` shows to `out`, from the first byte to the last, zeros included. Answers the bytes written.
///
/// # Errors
/// Those of reading; what `out` answers; `Cancelled`.
pub fn write_raw(source: &Chain, out: &mut dyn Write, watch: &Watch<'_>) -> Result<u64> {
    write_raw_part(source, (1, None), out, watch)
}

/// As [`write_raw`], of what the files from one depth down to another hold alone, both included; the leaf is depth 1,
/// `None` the base. What they leave to files below is zeros.
///
/// # Errors
/// As [`write_raw`]; `Chain` for depths the chain does not have.
pub fn write_raw_part(
    source: &Chain,
    depths: (usize, Option<usize>),
    out: &mut dyn Write,
    watch: &Watch<'_>,
) -> Result<u64> {
    let layers = part(source, depths)?;
    let size = layers.first().map_or(0, |layer| layer.image().virtual_size());
    write_runs(runs(layers), size, out, watch)
}

/// As [`write_raw`], but `range` of the disk alone, in bytes. What comes next is read by one thread per processor, eight at most, while
/// `out` takes what came before, so that a slow `out` waits for nothing; memory is 16 MiB however long the range is.
///
/// # Errors
/// `InvalidInput` when the range reaches past the end of the disk; as [`write_raw`].
pub fn write_range(source: &Chain, range: Range<u64>, out: &mut dyn Write, watch: &Watch<'_>) -> Result<u64> {
    let size = source.virtual_size();
    if range.start > range.end || range.end > size {
        let Range { start, end } = range;
        let message = format_args!("bytes {start} to {end} of a disk of {size} bytes").to_string();
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let len = range.end - range.start;
    write_runs(runs_of(source.layers(), range), len, out, watch)
}

/// Writes the bytes of `runs`, `len` of them, to `out`, and answers how many they are.
#[expect(single_use_lifetimes, reason = "an elided lifetime here is not stable Rust yet")]
fn write_runs<'a>(
    runs: impl Iterator<Item = Result<Run<'a>>> + Send,
    len: u64,
    out: &mut dyn Write,
    watch: &Watch<'_>,
) -> Result<u64> {
    let meter = Meter::new(watch, len);
    let failed = |error| Error::io("write the output", error);
    pour(runs, &Copier::new(0)?, &meter, |bytes| out.write_all(bytes).map_err(failed))?;
    out.flush().map_err(failed)?;
    Ok(len)
}
