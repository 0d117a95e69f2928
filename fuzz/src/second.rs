//! The second reader, asked about files it was not written for.
//!
//! Owns: what counts as having no answer. It may stumble over damage; then it has none, which is no failure.

use crate::support::spec::vhdx_log::Replayed;
use crate::support::spec::{self, Answer, Layer};
use crate::support::{Bytes, SpecDisk};
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use vhdkit::storage::{MemoryStorage, Storage};

/// Files longer than this are not shown to it: it reads whole tables.
pub(crate) const MAX_FILE: u64 = 64 << 20;

thread_local!(static ASKING: Cell<bool> = const { Cell::new(false) });

/// A file in memory, for the second reader.
pub(crate) struct File(pub(crate) MemoryStorage);

impl Bytes for File {
    fn length(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// `question`'s answer. A panic on the way is an error, and nothing that libFuzzer's hook gets to see.
fn ask<T>(question: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !ASKING.get() {
                before(info);
            }
        }));
    });
    ASKING.set(true);
    let answer = catch_unwind(AssertUnwindSafe(question));
    ASKING.set(false);
    answer.unwrap_or_else(|_| Err("the second reader panicked".to_owned()))
}

/// A VHD with the footer copy from its start also behind its end. The second reader always goes by the end; vhdkit by the
/// copy, and says so, when the footer at the end does not fit the rest of the file and the copy does.
pub(crate) fn by_copy(file: &MemoryStorage) -> MemoryStorage {
    let mended = file.clone();
    let mut footer = [0; 512];
    let len = file.len().expect("memory has a length");
    file.read_exact_at(&mut footer, 0).expect("a footer copy");
    // Behind what is there: the file may end in data.
    mended.write_all_at(&footer, len.next_multiple_of(512)).expect("memory takes writes");
    mended
}

/// Whether `problem` says that the copy decided.
pub(crate) fn says_by_copy(problem: &vhdkit::Problem) -> bool {
    problem.structure == vhdkit::Structure::VhdFooter && problem.fault == vhdkit::Fault::Mismatch
}

/// A chain of files as the second reader sees it.
pub(crate) struct Second(SpecDisk<'static>);

impl Second {
    /// The chain of `files`, leaf first.
    pub(crate) fn open(files: &[MemoryStorage]) -> Result<Self, String> {
        ask(|| {
            for file in files {
                let len = file.len().map_err(|error| error.to_string())?;
                if len > MAX_FILE {
                    return Err(format!("a file of {len} bytes"));
                }
            }
            let files = files.iter().map(|file| Box::new(File(file.clone())) as Box<dyn Bytes>);
            SpecDisk::from_bytes(files.collect()).map(Self)
        })
    }

    /// The virtual size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.0.size()
    }

    /// What the disk shows there, if it knows.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        ask(|| self.0.read(offset, len))
    }
}

/// One file, as the second reader maps it.
pub(crate) struct SecondMap(Layer<'static>);

impl SecondMap {
    pub(crate) fn open(file: &MemoryStorage) -> Result<Self, String> {
        ask(|| {
            let len = file.len().map_err(|error| error.to_string())?;
            if len > MAX_FILE {
                return Err(format!("a file of {len} bytes"));
            }
            Layer::open(Box::new(File(file.clone()))).map(Self)
        })
    }

    pub(crate) fn size(&self) -> u64 {
        self.0.size()
    }

    /// Where the run at `offset` lies, and how long it is.
    pub(crate) fn run(&self, offset: u64, limit: u64) -> Result<(u64, Answer), String> {
        ask(|| match &self.0 {
            Layer::Vhd(image) => image.run(offset, limit),
            Layer::Vhdx(image) => image.run(offset, limit),
            Layer::Raw(_) => Ok((limit, Answer::Data(offset))),
        })
    }

    /// The layer itself.
    pub(crate) fn layer(&self) -> &Layer<'static> {
        &self.0
    }
}

/// A VHDX file as it reads once its log is replayed, by the second reader.
pub(crate) struct Replay(Replayed<'static>);

/// `file`, replayed.
pub(crate) fn replayed(file: &MemoryStorage) -> Result<Replay, String> {
    ask(|| spec::vhdx::Vhdx::open(Box::new(File(file.clone()))).map(|image| Replay(image.file)))
}

impl Replay {
    pub(crate) fn length(&self) -> u64 {
        self.0.length().expect("memory has a length")
    }

    pub(crate) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.fill(offset, &mut bytes)?;
        Ok(bytes)
    }
}
