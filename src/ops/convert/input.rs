//! A stream of raw bytes into a new image.
//!
//! Owns: how the new disk grows as bytes come, and which of them are not worth writing. Must not know: where the stream
//! comes from.

use super::options::ConvertOptions;
use super::verify::{self, Pass};
use super::{ConvertReport, make_flat, preallocate};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::link::{DiskKind, GrowAs};
use crate::map::{Content, Want};
use crate::storage::atomic::AtomicFile;
use crate::units::{GIB, KIB, MIB, SECTOR, round_up};
use crate::watch::{Progress, Watch};
use crate::zeros;
use sha2::{Digest, Sha256};
use std::io::{self, Read};
use std::path::Path;

/// Bytes written between two syncs.
const BATCH: usize = 32 * MIB as usize;
/// Of images without blocks, zeros are left out in runs of at least this many bytes.
const GRAIN: u64 = 64 * KIB;
/// The size of a disk whose end is not known, until it is too small; then it is doubled.
const FIRST_SIZE: u64 = GIB;

/// Writes the raw disk that `input` delivers to a new image at `path`, beside it first and then renamed; durable on
/// return. The disk ends where the input does, rounded up to whole sectors, unless the
/// [size](ConvertOptions::size) is given: then zeros follow, and more input than that is refused.
///
/// Takes one thread and a few buffers, however much comes.
///
/// # Errors
/// `InvalidInput` for options that need a chain, for input longer than the disk may be; `Refused` when the file exists;
/// what `input` answers; those of writing; `Cancelled`. No file is left behind then.
pub fn convert_stream(
    input: &mut dyn Read,
    path: impl AsRef<Path>,
    options: &ConvertOptions,
    watch: &Watch<'_>,
) -> Result<ConvertReport> {
    let path = path.as_ref();
    let kind = options.target_kind(false)?;
    if kind == DiskKind::Differencing || !matches!(options.part(), (1, None | Some(1))) {
        return Err(Error::new(ErrorKind::InvalidInput, "a raw stream is a whole disk, not a part of a chain"));
    }
    let file = AtomicFile::create(path)?;
    let first = options.asked_size().unwrap_or(0);
    let start = match options.asked_size() {
        Some(size) => options.target_size(size, SECTOR as u32)?,
        None => FIRST_SIZE,
    };
    let image = make_flat(&file, path, options, (kind, start))?;
    if options.asked_size().is_some() {
        preallocate(&file, options).map_err(|error| error.with_path(path))?;
    }
    let mut pour = Pour { image, kind, watch, options, at: 0, size: start, digest: options.verify.then(Sha256::new) };
    pour.run(input).map_err(|error| if error.path().is_some() { error } else { error.with_path(path) })?;
    let Pour { mut image, at, size: grown, digest, .. } = pour;
    let size = options.target_size(at.max(first), SECTOR as u32).map_err(|error| error.with_path(path))?;
    let ended = || -> Result<()> {
        if size != grown {
            image.set_virtual_size(size, GrowAs::Zero)?;
        }
        image.close()?;
        preallocate(&file, options)?;
        if let Some(digest) = digest {
            let pass = Pass::new(watch, (1, 2), size, at);
            verify::digest(&verify::padded(digest, size - at), file.storage(), options.format, &pass.watch())?;
        }
        Ok(())
    };
    ended().map_err(|error| error.with_path(path))?;
    let file_size = super::len_of(&file).map_err(|error| error.with_path(path))?;
    file.commit(options.overwrite)?;
    Ok(ConvertReport {
        virtual_size: size,
        moved: at,
        file_size,
        padded: size - at,
        verified: options.verify,
        ..ConvertReport::default()
    })
}

struct Pour<'a> {
    image: Image,
    kind: DiskKind,
    watch: &'a Watch<'a>,
    options: &'a ConvertOptions,
    /// Bytes that came.
    at: u64,
    /// The size of the disk now.
    size: u64,
    digest: Option<Sha256>,
}

impl Pour<'_> {
    fn run(&mut self, input: &mut dyn Read) -> Result<()> {
        let mut buffer = vec![0; BATCH];
        loop {
            let (len, ended) = self.read(input, &mut buffer)?;
            if let Some(digest) = &mut self.digest {
                digest.update(&buffer[..len]);
            }
            // Only the last batch is no whole number of sectors.
            let end = self.at + len as u64;
            let whole = len.next_multiple_of(SECTOR as usize);
            buffer[len..whole].fill(0);
            if len > 0 {
                self.make_room(end)?;
                self.put(&buffer[..whole.min((self.size - self.at) as usize)])?;
            }
            self.at = end;
            self.watch.report(Progress {
                done: end,
                total: self.options.asked_size().unwrap_or(0).max(end),
                moved: end,
            });
            if ended {
                return Ok(());
            }
        }
    }

    /// Fills `buffer` as far as the input goes; answers how far, and whether that was its end.
    fn read(&self, input: &mut dyn Read, buffer: &mut [u8]) -> Result<(usize, bool)> {
        let mut len = 0;
        while len < buffer.len() {
            let read = input.read(&mut buffer[len..]);
            // An input that waits for a signal answers it with an error of its own.
            self.watch.check()?;
            match read {
                Ok(0) => return Ok((len, true)),
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let ours = error.downcast::<Error>();
                    return Err(ours.unwrap_or_else(|error| Error::io("read the input", error)));
                }
            }
        }
        Ok((len, false))
    }

    /// Makes the disk large enough for `end` bytes.
    fn make_room(&mut self, end: u64) -> Result<()> {
        if end <= self.size {
            return Ok(());
        }
        if let Some(size) = self.options.asked_size() {
            let message = format_args!("the input goes on after the {size} bytes the disk was to have").to_string();
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let needed = round_up(end, SECTOR).unwrap_or(u64::MAX);
        let doubled = self.size.saturating_mul(2).max(needed);
        // Near the most a format holds, only what is needed may fit.
        let grown = self.image.set_virtual_size(doubled, GrowAs::Zero).map(|()| doubled);
        self.size = match grown {
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                self.image.set_virtual_size(needed, GrowAs::Zero)?;
                needed
            }
            other => other?,
        };
        Ok(())
    }

    /// Writes `bytes` at the place the input has got to. The disk reads as zeros there.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let sink = self.image.sink();
        let grain = if self.kind == DiskKind::Fixed { GRAIN } else { sink.block_size() };
        let wants = if self.options.scan_zeros { runs_of_data(bytes, self.at, grain) } else { runs(bytes, self.at) };
        if wants.is_empty() {
            return Ok(());
        }
        let reservation = sink.reserve(wants)?;
        for place in reservation.places() {
            let done = match place.content {
                Content::Data => {
                    let from = (place.offset - self.at) as usize;
                    sink.storage().write_all_at(&bytes[from..from + place.len as usize], place.at.get())
                }
                Content::Zero => sink.storage().zero_range(place.at.get()..place.at.get() + place.len),
            };
            done.map_err(|error| Error::io("write data", error).with_offset(place.at))?;
        }
        sink.storage().sync().map_err(|error| Error::io("sync data", error))?;
        sink.publish(reservation)
    }
}

fn runs(bytes: &[u8], at: u64) -> Vec<Want> {
    vec![Want { range: at..at + bytes.len() as u64, content: Content::Data }]
}

/// The runs of `bytes`, which start at `at`, without those multiples of `grain` that are zero.
fn runs_of_data(bytes: &[u8], at: u64, grain: u64) -> Vec<Want> {
    let mut wants: Vec<Want> = Vec::new();
    let (mut rest, mut from) = (bytes, at);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min((grain - from % grain) as usize));
        let to = from + now.len() as u64;
        if !zeros::is_zero(now) {
            match wants.last_mut() {
                Some(want) if want.range.end == from => want.range.end = to,
                _ => wants.push(Want { range: from..to, content: Content::Data }),
            }
        }
        (rest, from) = (later, to);
    }
    wants
}
