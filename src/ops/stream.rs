//! What a chain shows, as one run of bytes from the first to the last.
//!
//! Owns: the raw stream. Must not know: who reads it, how bytes are read ahead (the copier does).

use crate::chain::{Chain, Layer, Owner, Pieces};
use crate::copy::{Bytes, Copier, Meter, Origin, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::watch::Watch;
use std::io::Write;

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
    let size = layers.first().map_or(0, |layer| layer.image().virtual_size());
    Pieces::over(layers, 0, 0..size).map(|piece| {
        let piece = piece?;
        let from = match piece.owner {
            Owner::Layer { index, at } => layers.get(index).map(|layer| (layer as &dyn Origin, at.get())),
            Owner::Zero { .. } | Owner::Below => None,
        };
        Ok(Run { len: piece.len, from })
    })
}

/// Hands what `layers` show to `take` in order, zeros in slices of [`ZEROS`].
///
/// # Errors
/// Of reading; those of `take`; `Cancelled`.
pub(super) fn pour(
    layers: &[Layer],
    copier: &Copier,
    meter: &Meter<'_>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    copier.stream(runs(layers), meter, |bytes| {
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
    let meter = Meter::new(watch, size);
    let failed = |error| Error::io("write the output", error);
    pour(layers, &Copier::new(0)?, &meter, |bytes| out.write_all(bytes).map_err(failed))?;
    out.flush().map_err(failed)?;
    Ok(size)
}
