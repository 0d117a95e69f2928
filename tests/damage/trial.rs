//! One damaged file: opened, read, written to, and every answer held against what it may be.
//!
//! Owns: the judgement. Must not know: which field was damaged.

use crate::chains::{name, pattern};
use crate::images::Subject;
use crate::support::SpecDisk;
use crate::support::spec::vhdx_log::TOO_MANY_ZEROS;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::{Error, ErrorKind, Structure};

/// How many operations on its file one open image may take for all that is asked of it here: the table of the largest
/// disk that fits the files is read in under a thousand.
const OPERATIONS: u64 = 30_000;
/// What is read at once: no more than a block of the smallest images, so that a broken one hides no other.
const WINDOW: u64 = 4096;
/// The same for disks that only have larger blocks.
const LARGE_WINDOW: u64 = 256 << 10;
/// Disks up to this size are read whole.
const WHOLE: u64 = 8 << 20;
const OUT_OF_BUDGET: &str = "more operations than an honest reader needs";

/// Counts, and fails once there have been too many.
#[derive(Debug)]
struct Counting {
    inner: MemoryStorage,
    left: AtomicU64,
}

impl Counting {
    fn new(inner: MemoryStorage) -> Arc<Self> {
        Arc::new(Self { inner, left: AtomicU64::new(OPERATIONS) })
    }

    fn take(&self) -> io::Result<()> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        taken.map(|_| ()).map_err(|_| io::Error::other(OUT_OF_BUDGET))
    }
}

impl Storage for Counting {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.take()?;
        self.inner.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.take()?;
        self.inner.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.take()?;
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.take()?;
        self.inner.sync()
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        self.take()?;
        self.inner.zero_range(range)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.take()?;
        self.inner.next_data(offset)
    }
}

/// The answer to each window of a disk: its bytes, or why there are none.
type Windows<E> = Vec<(u64, Result<Vec<u8>, E>)>;

/// What all damaged copies of one subject are held against.
pub(crate) struct Trial<'a> {
    subject: &'a Subject,
    before: Vec<u8>,
}

/// Where a disk of `size` bytes is looked at.
fn windows(size: u64) -> Vec<Range<u64>> {
    let step = if size > 1 << 20 { LARGE_WINDOW } else { WINDOW };
    let mut starts: Vec<u64> = (0..size.min(WHOLE)).step_by(step as usize).collect();
    if size > WHOLE {
        starts.extend((1..40).map(|part| size / 40 / WINDOW * WINDOW * part));
        starts.push(size - WINDOW);
    }
    starts.into_iter().map(|start| start..size.min(start + step)).collect()
}

impl<'a> Trial<'a> {
    pub(crate) fn new(subject: &'a Subject) -> Self {
        let disk = subject.spec(subject.fresh()).expect("an undamaged image");
        let before = disk.read(0, disk.size() as usize).expect("an undamaged image");
        assert!(before.iter().any(|&byte| byte != 0) && before.len() as u64 <= WHOLE);
        Self { subject, before }
    }

    /// The chain with `file` in the place of the damaged layer and `leaf` as its leaf, unless that is the damaged one.
    fn open(&self, file: &Arc<Counting>, leaf: &Arc<Counting>, access: Access) -> vhdkit::Result<Chain> {
        let mut layers = Vec::new();
        for (index, sound) in self.subject.storages.iter().enumerate() {
            let storage: Arc<dyn Storage> = match index {
                _ if index == self.subject.damaged => Arc::clone(file) as Arc<dyn Storage>,
                0 => Arc::clone(leaf) as Arc<dyn Storage>,
                _ => Arc::new(sound.clone()),
            };
            let access = if index == 0 { access } else { Access::Read };
            layers.push(Layer::open(storage, access)?.named(name(self.subject.storages.len() - index)));
        }
        Chain::from_layers(layers)
    }

    /// As [`open`](Self::open), over copies that are thrown away.
    fn look(&self, file: &MemoryStorage, access: Access) -> vhdkit::Result<Chain> {
        self.open(&Counting::new(file.clone()), &Counting::new(self.subject.storages[0].clone()), access)
    }

    /// Whether `file` opened; or what is wrong with the answers.
    pub(crate) fn judge(&self, file: &MemoryStorage, structures: &[Structure]) -> Result<bool, String> {
        let judged = catch_unwind(AssertUnwindSafe(|| self.read_and_write(file, structures)));
        judged.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(format!("a panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
        })
    }

    /// Whether `file` shows what the subject showed.
    pub(crate) fn read_as_before(&self, file: &MemoryStorage) -> Result<(), String> {
        let chain = self.look(file, Access::Read).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; self.before.len()];
        chain.read_at(&mut bytes, 0).map_err(|error| error.to_string())?;
        if bytes == self.before { Ok(()) } else { Err("other bytes".to_owned()) }
    }

    fn read_and_write(&self, file: &MemoryStorage, structures: &[Structure]) -> Result<bool, String> {
        let untouched = file.clone();
        let chain = match self.look(file, Access::Read) {
            Ok(chain) => chain,
            Err(error) => {
                typed(&error, structures)?;
                if let Ok(chain) = self.look(file, Access::Write) {
                    drop(chain);
                    return Err(format!("opens for writing, though not for reading: {error}"));
                }
                return Ok(false);
            }
        };
        for piece in chain.pieces(0..chain.virtual_size()) {
            if let Err(error) = piece {
                typed(&error, structures)?;
                break;
            }
        }
        let seen = read(&chain);
        drop(chain);
        for (_, answer) in &seen {
            answer.as_ref().map_or_else(|error| typed(error, structures), |_| Ok(()))?;
        }
        self.compare(&untouched, &seen)?;
        self.write(file, &seen, structures)?;
        if untouched.to_bytes().ok() != file.to_bytes().ok() {
            return Err("the file itself was written to".to_owned());
        }
        Ok(true)
    }

    /// Holds `seen` against the second reader where that has an answer, else against the contents before the damage.
    fn compare(&self, file: &MemoryStorage, seen: &Windows<Error>) -> Result<(), String> {
        let second = catch_unwind(AssertUnwindSafe(|| {
            let disk = self.subject.spec(file.clone())?;
            Ok::<_, String>((
                disk.size(),
                seen.iter().map(|(at, answer)| second(&disk, *at, answer)).collect::<Vec<_>>(),
            ))
        }));
        // It may fail on what it was not written for; then it has no answer.
        let second = second.unwrap_or_else(|_| Err("it panicked".to_owned()));
        if second.as_ref().is_err_and(|why| why.contains(TOO_MANY_ZEROS)) {
            return Ok(());
        }
        for (index, (at, answer)) in seen.iter().enumerate() {
            let Ok(bytes) = answer else { continue };
            let other = second.as_ref().ok().and_then(|(_, answers)| answers[index].as_ref());
            let from = *at as usize;
            let old = self.before.get(from..from + bytes.len());
            let wanted = other.map(Vec::as_slice).or(old);
            if wanted != Some(bytes.as_slice()) {
                let why = second.as_ref().err().map_or("", String::as_str);
                let stays = if old == Some(bytes.as_slice()) { " (the old ones)" } else { "" };
                return Err(format!("other bytes{stays} at {at:#x}; the second reader: {why:?}"));
            }
        }
        Ok(())
    }

    /// A write in the first block and one in the last: done, and nothing else is, or refused.
    fn write(&self, file: &MemoryStorage, seen: &Windows<Error>, structures: &[Structure]) -> Result<(), String> {
        let (damaged, leaf) = (Counting::new(file.clone()), Counting::new(self.subject.storages[0].clone()));
        let mut chain = match self.open(&damaged, &leaf, Access::Write) {
            Ok(chain) => chain,
            Err(error) => return typed(&error, structures),
        };
        let sector = u64::from(chain.logical_sector_size());
        let places = [sector, chain.virtual_size().saturating_sub(sector) / sector * sector];
        let mut done = Vec::new();
        let size = chain.virtual_size();
        for at in places.into_iter().filter(|at| at + sector <= size) {
            let bytes = pattern(at, sector, 0x5A);
            match chain.write_at(&bytes, at) {
                Ok(()) => done.push((at, bytes)),
                Err(error) => typed(&error, structures)?,
            }
        }
        if let Err(error) = chain.close() {
            typed(&error, structures)?;
            done.clear();
        }
        let again = |storage: &Arc<Counting>| Counting::new(storage.inner.clone());
        let after = self.open(&again(&damaged), &again(&leaf), Access::Read);
        let after = after.map_err(|error| format!("does not open after a write: {error}"))?;
        for (at, bytes) in &done {
            let mut found = vec![0; bytes.len()];
            after.read_at(&mut found, *at).map_err(|error| format!("what was written does not read: {error}"))?;
            if found != *bytes {
                return Err(format!("what was written at {at:#x} is not there"));
            }
        }
        let written = |at: u64, len: usize| places.iter().any(|&place| at < place + sector && place < at + len as u64);
        for (at, answer) in seen {
            let Ok(bytes) = answer else { continue };
            let mut found = vec![0; bytes.len()];
            after.read_at(&mut found, *at).map_err(|error| format!("{at:#x} no longer reads: {error}"))?;
            for (index, (old, new)) in bytes.chunks(512).zip(found.chunks(512)).enumerate() {
                let place = at + 512 * index as u64;
                if old != new && !written(place, old.len()) {
                    return Err(format!("a write changed {place:#x} too"));
                }
            }
        }
        Ok(())
    }
}

fn read(chain: &Chain) -> Windows<Error> {
    let read = |window: Range<u64>| {
        let mut bytes = vec![0xEE; (window.end - window.start) as usize];
        (window.start, chain.read_at(&mut bytes, window.start).map(|()| bytes))
    };
    windows(chain.virtual_size()).into_iter().map(read).collect()
}

fn second(disk: &SpecDisk<'_>, at: u64, answer: &Result<Vec<u8>, Error>) -> Option<Vec<u8>> {
    let len = answer.as_ref().ok()?.len();
    disk.read(at, len).ok().filter(|_| at + len as u64 <= disk.size())
}

/// An error has to say what is wrong with which structure.
fn typed(error: &Error, structures: &[Structure]) -> Result<(), String> {
    let named = blame(error);
    if named.is_some_and(|structure| structures.contains(&structure)) {
        Ok(())
    } else {
        Err(format!("an error that names {named:?}: {error:?}"))
    }
}

/// The structure that `error` is about; what is no error of a structure counts for the one that says it.
fn blame(error: &Error) -> Option<Structure> {
    let by_kind = || match error.kind() {
        ErrorKind::UnknownFormat => Some(Structure::File),
        // A saved state is no damage.
        ErrorKind::Refused => Some(Structure::VhdFooter),
        // The sequence number at its end: valid, but there is none left for a writer.
        ErrorKind::Unsupported => Some(Structure::VhdxHeader),
        ErrorKind::Chain | ErrorKind::ParentNotFound | ErrorKind::ParentMismatch => Some(Structure::ParentLink),
        _ => None,
    };
    error.problem().map(|problem| problem.structure).or_else(by_kind)
}
