//! A directory of small records: what operations that outlive a process remember.
//!
//! Owns: how a record is written, read, listed and removed, and the lock of the directory. Must not know: what a record
//! says.
//!
//! Each record is one JSON file, replaced in one step (written under another name, synced, renamed, the directory
//! synced), so that a reader sees the old one or the new one. Records are read as untrusted bytes: a length limit, and a
//! version that must be known.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::atomic::{AtomicFile, remove_if_there, remove_leftovers_in, sync_directory_of};
use crate::storage::{Access, FileStorage, Lock, Storage};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The longest record that is read: a set of a thousand disks takes some hundred kilobytes.
const MAX_BYTES: u64 = 16 << 20;
/// The most records of one kind in a directory.
const MAX_RECORDS: usize = 10_000;
/// The longest name of a record; file systems end names at 255 bytes.
const MAX_NAME: usize = 128;
/// The version this program writes, and the newest it reads.
const VERSION: u32 = 1;
/// The name of the directory beside the images.
const DEFAULT_NAME: &str = ".vhdkit";
/// The file whose lock stands for the directory's.
const LOCK_NAME: &str = "lock";

/// A record with its version around it.
#[derive(Deserialize, Serialize)]
struct Envelope<T> {
    version: u32,
    record: T,
}

/// Only the version: what is read first, as a newer record may have another shape.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    directory: PathBuf,
}

/// The directory's lock; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Held {
    _lock: LockFile,
}

#[derive(Debug)]
struct LockFile(File);

impl Drop for LockFile {
    fn drop(&mut self) {
        // A process that was forked meanwhile has it too until it runs its own program.
        let _ = self.0.unlock();
    }
}

impl Registry {
    /// The records in `directory`, which need not exist yet.
    pub(super) fn at(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The directory of records beside the image at `path`.
    pub(super) fn beside(path: &Path) -> Self {
        Self::at(path.with_file_name(DEFAULT_NAME))
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory when it is not there, and takes its lock: there is one writer at a time.
    ///
    /// # Errors
    /// `InUse` when another process, or another operation of this one, has it; what the system answers.
    pub(super) fn hold(&self) -> Result<Held> {
        self.make()?;
        let path = self.directory.join(LOCK_NAME);
        let made = match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(Error::io("create the lock", error).with_path(&path)),
        };
        made?;
        let lock = self.lock(Access::Write)?;
        let failed = |error| Error::io("lock the records", error).with_path(&path);
        match lock.0.try_lock() {
            Ok(()) => {}
            // Somebody only looks whether it is held, and is gone in a moment.
            Err(TryLockError::WouldBlock) if lock.0.try_lock_shared().is_ok() => lock.0.lock().map_err(failed)?,
            Err(TryLockError::WouldBlock) => {
                let busy = Error::new(ErrorKind::InUse, "another operation works with these records");
                let hint = "wait until it has ended; a process that died holds no lock";
                return Err(busy.with_path(&self.directory).with_hint(hint));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Whoever writes records holds the lock, so what others began is from the dead.
        remove_leftovers_in(&self.directory);
        Ok(Held { _lock: lock })
    }

    /// Whether somebody has its lock.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn is_held(&self) -> Result<bool> {
        match self.lock(Access::Read) {
            Ok(lock) => Ok(matches!(lock.0.try_lock_shared(), Err(TryLockError::WouldBlock))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns when nobody has its lock.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn wait_until_free(&self) -> Result<()> {
        match self.lock(Access::Read) {
            Ok(lock) => lock.0.lock_shared().map_err(|error| Error::io("wait for the records", error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The file of the lock, not locked yet.
    fn lock(&self, access: Access) -> Result<LockFile> {
        let path = self.directory.join(LOCK_NAME);
        let file = FileStorage::open(&path, access, Lock::None)?;
        let file = file.as_file().map(File::try_clone);
        let file = file.unwrap_or_else(|| File::open(&path));
        file.map(LockFile).map_err(|error| Error::io("open the lock", error).with_path(&path))
    }

    /// The directory, for its owner alone: records can name programs to run.
    fn make(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |error| Error::io("create the directory of records", error).with_path(&self.directory);
        if self.directory.is_dir() {
            return Ok(());
        }
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.directory).map_err(failed)?;
        sync_directory_of(&self.directory)
    }

    fn path(&self, kind: &str, name: &str) -> PathBuf {
        self.directory.join(format!("{kind}-{name}.json"))
    }

    /// Writes the record `name` of `kind`; durable on return.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is no file name, and for paths that are not UTF-8; what the system answers.
    pub(super) fn save<T: Serialize>(&self, kind: &str, name: &str, record: &T) -> Result<()> {
        require_name(name)?;
        self.make()?;
        let path = self.path(kind, name);
        write_record(&path, record, true)
    }

    /// The record `name` of `kind`, or `None`.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is no file name; as [`read_record`].
    pub(super) fn load<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Result<Option<T>> {
        require_name(name)?;
        match read_record(&self.path(kind, name)) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether nobody but this user (or root) can have written the record: what it names may be run.
    pub(super) fn is_private(&self, kind: &str, name: &str) -> bool {
        use std::os::unix::fs::MetadataExt;
        let own = rustix::process::geteuid().as_raw();
        let private = |path: &Path| {
            fs::metadata(path).is_ok_and(|found| (found.uid() == own || found.uid() == 0) && found.mode() & 0o022 == 0)
        };
        private(&self.directory) && private(&self.path(kind, name))
    }

    /// The names of the records of `kind`, sorted; none when there is no such directory.
    ///
    /// # Errors
    /// `InvalidInput` when there are more than [`MAX_RECORDS`]; what the system answers.
    pub(super) fn names(&self, kind: &str) -> Result<Vec<String>> {
        let failed = |error| Error::io("list the records", error).with_path(&self.directory);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let prefix = format!("{kind}-");
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".json"));
            let Some(name) = name.filter(|name| require_name(name).is_ok()) else { continue };
            if names.len() >= MAX_RECORDS {
                let message = format_args!("more than {MAX_RECORDS} records").to_string();
                return Err(Error::new(ErrorKind::InvalidInput, message).with_path(&self.directory));
            }
            names.push(name.to_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Removes the record; one that is not there is no error. Durable on return.
    ///
    /// # Errors
    /// What the system answers.
    pub(super) fn remove(&self, kind: &str, name: &str) -> Result<()> {
        require_name(name)?;
        remove_if_there(&self.path(kind, name), "remove the record").map(drop)
    }
}

/// Letters, digits, `-`, `_` and `.`, not beginning with a dot: a name that leads nowhere else.
fn require_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.chars().all(fits) {
        return Ok(());
    }
    let message = format_args!("{name:?} cannot be the name of a record").to_string();
    let hint = format_args!("use up to {MAX_NAME} letters, digits, '-', '_' and '.'").to_string();
    Err(Error::new(ErrorKind::InvalidInput, message).with_hint(hint))
}

/// The text of a record.
///
/// # Errors
/// `InvalidInput` for paths that are not UTF-8.
pub(super) fn to_text<T: Serialize>(record: &T) -> Result<String> {
    serde_json::to_string_pretty(&Envelope { version: VERSION, record }).map_err(|error| {
        Error::new(ErrorKind::InvalidInput, format_args!("the record cannot be written: {error}"))
            .with_hint("records are JSON: names of files must be UTF-8")
    })
}

/// Writes one record file; durable on return.
///
/// # Errors
/// `Refused` when it exists and may not be replaced; as [`to_text`]; what the system answers.
pub(super) fn write_record<T: Serialize>(path: &Path, record: &T, overwrite: bool) -> Result<()> {
    let text = to_text(record).map_err(|error| error.with_path(path))? + "\n";
    let file = AtomicFile::create(path)?;
    let written = file.storage().write_all_at(text.as_bytes(), 0);
    written.map_err(|error| Error::io("write the record", error).with_path(path))?;
    file.commit(overwrite)
}

/// Reads one record file.
///
/// # Errors
/// `NotFound`; `Corrupt` when it is no record or longer than the limit; `Unsupported` when a newer program wrote it; what
/// the system answers.
pub(super) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let damaged = |why: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Corrupt, format_args!("this is no record of vhdkit: {why}")).with_path(path)
    };
    let file = FileStorage::open(path, Access::Read, Lock::None)?;
    let failed = |error| Error::io("read the record", error).with_path(path);
    let len = file.len().map_err(failed)?;
    if len > MAX_BYTES {
        return Err(damaged(&format_args!("{len} bytes, at most {MAX_BYTES} are read")));
    }
    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut text, 0).map_err(failed)?;
    let version: Version = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    if version.version != VERSION {
        let message = format_args!("a record of version {}, this program knows {VERSION}", version.version).to_string();
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_path(path)
            .with_hint("use the program that wrote it"));
    }
    let envelope: Envelope<T> = serde_json::from_slice(&text).map_err(|error| damaged(&error))?;
    Ok(envelope.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_replaced_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path().join("records"));
        assert_eq!(registry.names("set").unwrap(), Vec::<String>::new());
        assert_eq!(registry.load::<String>("set", "a").unwrap(), None);
        registry.save("set", "b", &"one").unwrap();
        registry.save("set", "a", &"two").unwrap();
        registry.save("set", "b", &"three").unwrap();
        registry.save("other", "c", &"four").unwrap();
        assert_eq!(registry.names("set").unwrap(), ["a", "b"]);
        assert_eq!(registry.load::<String>("set", "b").unwrap().as_deref(), Some("three"));
        registry.remove("set", "b").unwrap();
        registry.remove("set", "b").unwrap();
        assert_eq!(registry.names("set").unwrap(), ["a"]);
        let mut left: Vec<_> =
            fs::read_dir(registry.directory()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-c.json", "set-a.json"], "nothing temporary stays");
    }

    #[test]
    fn what_is_no_record_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path());
        let path = dir.path().join("set-x.json");
        for (text, kind) in [
            ("", ErrorKind::Corrupt),
            ("{}", ErrorKind::Corrupt),
            ("{\"version\":1}", ErrorKind::Corrupt),
            ("{\"version\":1,\"record\":5}", ErrorKind::Corrupt),
            ("{\"version\":2,\"novel\":true}", ErrorKind::Unsupported),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(registry.load::<String>("set", "x").unwrap_err().kind(), kind, "{text}");
        }
        File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert_eq!(registry.load::<String>("set", "x").unwrap_err().kind(), ErrorKind::Corrupt);
        for name in ["", ".", "../x", "a/b", ".hidden", "a b", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(registry.save("set", name, &1).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        }
    }

    #[test]
    fn one_at_a_time_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::at(dir.path().join("records"));
        assert!(!registry.is_held().unwrap(), "it is not there yet");
        let held = registry.hold().unwrap();
        assert_eq!(registry.hold().unwrap_err().kind(), ErrorKind::InUse);
        assert!(registry.is_held().unwrap());
        drop(held);
        assert!(!registry.is_held().unwrap());
        registry.wait_until_free().unwrap();
        // Somebody who looks is no user.
        let looks = registry.lock(Access::Read).unwrap();
        looks.0.lock_shared().unwrap();
        std::thread::scope(|scope| {
            let held = scope.spawn(|| registry.hold().map(drop));
            drop(looks);
            held.join().unwrap().unwrap();
        });
        registry.hold().unwrap();
    }
}
