//! A real file: opening it safely, its lock, its identity, and positional reads and writes.
//!
//! Owns: what kinds of file are opened, lock kinds. Must not know: any format, any path of a chain.

use super::aligned::{Buffer, keeps_sectors_whole};
use super::{Access, Storage, end_of, offload, write_zeros};
use crate::error::{Error, ErrorKind, Result};
use crate::units::SECTOR;
use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The most bytes that lie wrong in memory and are written at a time, up to the end of a sector.
const DETOUR: usize = 256 << 10;

/// How a file is held against other users of it.
///
/// Locks are advisory: they hold off every program that asks for one, other handles of this process too. They go with the
/// [`FileStorage`] that took them, also when the process is killed.
///
/// On Linux a QEMU on the same machine counts as such a program, and is in turn kept from an image that is held here:
/// from any use of it by `Exclusive`, from writing it by `Shared`. A QEMU told not to lock is not noticed (`-U` of its
/// tools, `force-share`, `locking=off`), nor is software that takes no locks: VirtualBox, or a Hyper-V host behind a
/// network share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lock {
    /// Nobody else, for writers.
    Exclusive,
    /// Other readers may, for readers.
    Shared,
    /// Not held at all: whoever writes the file meanwhile is not noticed.
    None,
}

/// Which file it is, whatever path led there: device and inode numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// The file that `metadata` is of.
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A file of the operating system.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
    /// Block devices say zero in their metadata; their length is found by seeking, and cannot change.
    device_len: Option<u64>,
    /// What is asked of others while it is open.
    lock: Lock,
}

impl FileStorage {
    /// Opens the regular file at `path`; symbolic links are followed.
    ///
    /// Anything else (a directory, a pipe, a device) is refused and never waited for; a block device can be given to
    /// [`from_file`](Self::from_file).
    ///
    /// # Errors
    /// `NotFound`; `InUse` when somebody holds a lock that excludes `lock`; `InvalidInput` when it is not a regular file;
    /// `Io` otherwise.
    pub fn open(path: &Path, access: Access, lock: Lock) -> Result<Self> {
        let failed = |source| Error::io("open the file", source).with_path(path);
        // Looked at before it is opened, as opening alone can do things to a device, and again after, as it may have
        // been exchanged in between. `NONBLOCK` keeps that second case from waiting for a pipe's other end.
        require_regular(path, fs::metadata(path).map_err(failed)?.file_type())?;
        let file = OpenOptions::new()
            .read(true)
            .write(access.writes())
            .custom_flags((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY).bits() as i32)
            .open(path)
            .map_err(failed)?;
        require_regular(path, file.metadata().map_err(failed)?.file_type())?;
        Self { file, path: path.to_path_buf(), device_len: None, lock }.locked()
    }

    /// Creates an empty file at `path` for reading and writing, and holds it exclusively.
    ///
    /// # Errors
    /// `Refused` when something is already there; `Io` or `NoSpace` when the system cannot create it.
    pub fn create_new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                already_there(path)
            } else {
                Error::io("create the file", source).with_path(path)
            }
        })?;
        Self { file, path: path.to_path_buf(), device_len: None, lock: Lock::Exclusive }.locked().inspect_err(|error| {
            if error.kind() != ErrorKind::InUse {
                // Ours and still empty; a failure to remove it hides nothing worse than the one reported.
                let _ = fs::remove_file(path);
            }
        })
    }

    /// A file that is open already: a regular file or a block device. `path` is used in messages only.
    ///
    /// # Errors
    /// `InvalidInput` when it is another kind of file; `InUse` as in [`open`](Self::open); `Io`.
    pub fn from_file(mut file: File, path: &Path, lock: Lock) -> Result<Self> {
        let failed = |source| Error::io("examine the file", source).with_path(path);
        let kind = file.metadata().map_err(failed)?.file_type();
        let device_len = if kind.is_block_device() {
            Some(file.seek(SeekFrom::End(0)).map_err(failed)?)
        } else {
            require_regular(path, kind)?;
            None
        };
        Self { file, path: path.to_path_buf(), device_len, lock }.locked()
    }

    fn locked(self) -> Result<Self> {
        let outcome = match self.lock {
            Lock::Exclusive => self.file.try_lock(),
            Lock::Shared => self.file.try_lock_shared(),
            Lock::None => Ok(()),
        };
        match outcome {
            Ok(()) => {
                #[cfg(target_os = "linux")]
                self.hold_against_qemu()?;
                Ok(self)
            }
            Err(TryLockError::WouldBlock) => {
                let message = match self.lock {
                    Lock::Exclusive => "the file is in use, and writing needs it alone",
                    Lock::Shared | Lock::None => "the file is in use by a writer",
                };
                Err(Error::new(ErrorKind::InUse, message)
                    .with_path(&self.path)
                    .with_hint("stop the virtual machine or program that has the file open, then try again"))
            }
            Err(TryLockError::Error(source)) => {
                Err(Error::io("lock the file", source).with_path(&self.path).with_hint(
                    "this file system may not support locks; open without one only if nobody else uses the file",
                ))
            }
        }
    }

    /// The lock above and QEMU's do not see each other, so QEMU's is taken as well.
    #[cfg(target_os = "linux")]
    fn hold_against_qemu(&self) -> Result<()> {
        let held = super::qemu_locks::hold(&self.file, self.lock)
            .map_err(|source| Error::io("lock the file against QEMU", source).with_path(&self.path))?;
        if held {
            return Ok(());
        }
        let message = match self.lock {
            Lock::Exclusive => "a QEMU process, or a program that uses its locks, has the image open",
            Lock::Shared | Lock::None => {
                "a QEMU process, or a program that uses its locks, has the image open and may be writing it"
            }
        };
        Err(Error::new(ErrorKind::InUse, message)
            .with_path(&self.path)
            .with_hint("shut down the virtual machine, or stop the QEMU tool that has the file open, then try again"))
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which file this is.
    ///
    /// # Errors
    /// What the operating system answers.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        Ok(FileIdentity::of(&self.file.metadata()?))
    }

    /// Reserves file space for the first `len` bytes; what was never written still reads as zeros.
    ///
    /// # Errors
    /// `NoSpace`; `Unsupported` when the file system cannot; what the operating system answers.
    pub fn allocate(&self, len: u64) -> Result<()> {
        match offload::allocate(&self.file, len) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(ErrorKind::Unsupported, "this file system cannot reserve space in advance")
                .with_path(&self.path)
                .with_hint("leave out the preallocation")),
            Err(source) => Err(Error::io("reserve the file's space", source).with_path(&self.path)),
        }
    }

    /// Asks the system to read the file from the medium again, instead of what it remembers of what was written. A
    /// courtesy: what it has not synced, or is not asked so, it goes on remembering.
    pub(crate) fn forget_cached(&self) {
        offload::forget_cached(&self.file);
    }

    /// The bytes this process may still allocate on the file's file system.
    ///
    /// # Errors
    /// What the operating system answers.
    pub fn available_space(&self) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.file)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

impl Drop for FileStorage {
    /// Closing is not enough: a process forked at this moment has the open file, and so its locks, until it starts its
    /// program. Whoever opens the file next would be told that it is in use.
    fn drop(&mut self) {
        if self.lock != Lock::None {
            // Nothing follows from a failure: the locks then go with the file's last handle.
            let _ = self.file.unlock();
            #[cfg(target_os = "linux")]
            super::qemu_locks::release(&self.file);
        }
    }
}

/// The error of creating what exists.
pub(super) fn already_there(path: &Path) -> Error {
    Error::new(ErrorKind::Refused, "the file already exists")
        .with_path(path)
        .with_hint("choose another name, or overwrite it with --force")
}

/// Lets only a regular file through.
pub(super) fn require_regular(path: &Path, kind: FileType) -> Result<()> {
    let name = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a special file"
    };
    Err(Error::new(ErrorKind::InvalidInput, format_args!("this is {name}, not a regular file")).with_path(path))
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<u64> {
        self.device_len.map_or_else(|| Ok(self.file.metadata()?.len()), Ok)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if end_of(offset, buf.len() as u64).is_err() {
            return Err(super::past_end(offset, buf.len(), self.len()?));
        }
        self.file.read_exact_at(buf, offset)
    }

    fn read_cached_at(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        end_of(offset, buf.len() as u64)?;
        offload::read_cached(&self.file, buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        end_of(offset, buf.len() as u64)?;
        if keeps_sectors_whole(buf, offset) {
            return self.file.write_all_at(buf, offset);
        }
        let mut buffer = Buffer::default();
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (part, later) = rest.split_at(rest.len().min(DETOUR - (at % SECTOR) as usize));
            rest = later;
            let bytes = buffer.bound_for(at, part.len());
            bytes.copy_from_slice(part);
            self.file.write_all_at(bytes, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// `fdatasync`: the bytes and all metadata needed to read them back, the length among it; only times may be old.
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn start_writeback(&self, range: Range<u64>) -> io::Result<()> {
        offload::start_writeback(&self.file, range)
    }

    fn zero_range(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        end_of(range.end, 0)?;
        let len = self.len()?;
        if range.end > len {
            // Growing by a byte of the range itself: `set_len` would cut off what another thread appends meanwhile.
            self.file.write_all_at(&[0], range.end - 1)?;
        }
        if offload::punch_hole(&self.file, range.clone())? {
            return Ok(());
        }
        write_zeros(range.start..range.end.min(len), |zeros, at| self.file.write_all_at(zeros, at))
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        if offset >= self.len()? {
            return Ok(None);
        }
        offload::seek_data(&self.file, offset)
    }

    fn copy_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
        end_of(to, len)?;
        let Some(source) = source.as_file() else { return Ok(false) };
        offload::copy((source, from), (&self.file, to), len)
    }

    fn is_remote(&self) -> bool {
        offload::is_remote(&self.file)
    }

    fn share_range(&self, source: &dyn Storage, from: u64, to: u64, len: u64) -> io::Result<bool> {
        end_of(to, len)?;
        let Some(source) = source.as_file() else { return Ok(false) };
        offload::share((source, from), (&self.file, to), len)
    }

    /// The file system's block size; whether it shares at all shows when it is asked to.
    fn share_unit(&self) -> io::Result<Option<u64>> {
        if self.device_len.is_some() {
            return Ok(None);
        }
        Ok(Some(rustix::fs::fstatvfs(&self.file)?.f_bsize).filter(|unit| unit.is_power_of_two()))
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

#[cfg(test)]
mod tests;
