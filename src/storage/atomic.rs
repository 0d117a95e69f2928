//! A new file that appears complete or not at all.
//!
//! Owns: the temporary name, the rename and its durability. Must not know: what is written.

#[cfg(test)]
pub(crate) mod model;
pub(crate) mod steps;

use super::file::{already_there, require_regular};
use super::{Access, FileStorage, Lock, Storage, offload};
use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use steps::{Step, is_taken};

/// The most bytes of the target's name in the temporary one; file systems end names at 255.
const MAX_NAME: usize = 200;
/// How many random letters follow it.
const RANDOM: usize = 12;
const SUFFIX: &str = ".partial";

/// What temporary names of the target `name` begin with.
fn prefix(name: &OsStr) -> String {
    let name = name.to_string_lossy();
    let kept = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|&end| end <= MAX_NAME).last();
    format!(".{}.", &name[..kept.unwrap_or(0)])
}

/// Removes what killed processes left of files that were to become `target`. For callers who know that no other process
/// is making one. What cannot be removed stays: it is hidden litter.
pub(crate) fn remove_leftovers(target: &Path) {
    let Some(name) = target.file_name() else { return };
    let prefix = prefix(name);
    remove_partial_files(directory_of(target), |rest| rest.strip_prefix(&prefix));
}

/// The same of all files that were to be in `directory`.
#[cfg(any(feature = "registry", test))]
pub(crate) fn remove_leftovers_in(directory: &Path) {
    remove_partial_files(directory, |rest| rest.strip_prefix('.')?.rsplit_once('.').map(|(_, random)| random));
}

fn remove_partial_files(directory: &Path, random: impl Fn(&str) -> Option<&str>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let random = name.to_str().and_then(|name| random(name.strip_suffix(SUFFIX)?));
        if random.is_some_and(|random| random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes the file at `path`, which may be gone already; durable on return. Answers whether it was there.
///
/// # Errors
/// What the system answers, as a failure to do `what`.
pub(crate) fn remove_if_there(path: &Path, what: &str) -> Result<bool> {
    if !is_taken(|| Step::Remove(path.to_path_buf())) {
        return Ok(true);
    }
    match fs::remove_file(path) {
        Ok(()) => sync_directory_of(path).map(|()| true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io(what, source).with_path(path)),
    }
}

/// The directory that a path leads to a name in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file under a temporary name beside its target. [`commit`](Self::commit) gives it the target's name; dropped before
/// that, it is removed. A killed process leaves `.<target>.<random>.partial` behind and the target untouched.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    target: PathBuf,
    temporary: PathBuf,
    storage: Arc<FileStorage>,
    committed: bool,
}

impl AtomicFile {
    /// Starts a file that is to become `target`. One that is there already gives its permissions to the new one.
    ///
    /// # Errors
    /// `InvalidInput` when `target` names no file; as [`FileStorage::create_new`].
    pub(crate) fn create(target: &Path) -> Result<Self> {
        let Some(name) = target.file_name() else {
            return Err(Error::new(ErrorKind::InvalidInput, "this path names no file").with_path(target));
        };
        let random = uuid::Uuid::new_v4().simple().to_string();
        let temporary = target.with_file_name(format!("{}{}{SUFFIX}", prefix(name), &random[..RANDOM]));
        let storage = Arc::new(FileStorage::create_new(&temporary).map_err(|error| error.with_path(target))?);
        let _ = is_taken(|| Step::Create(temporary.clone()));
        let file = Self { target: target.to_path_buf(), temporary, storage, committed: false };
        if let Ok(existing) = fs::metadata(target) {
            let failed = |source| Error::io("set the permissions of the new file", source).with_path(&file.temporary);
            fs::set_permissions(&file.temporary, existing.permissions()).map_err(failed)?;
        }
        Ok(file)
    }

    /// The file to fill. It stays open, and locked, after the commit for as long as somebody holds it.
    pub(crate) fn storage(&self) -> &Arc<FileStorage> {
        &self.storage
    }

    /// Makes the file durable and gives it its name, then makes the name durable.
    ///
    /// With `overwrite` a regular file of that name that nobody holds is replaced in one step (a symbolic link itself is
    /// replaced, not what it points to).
    ///
    /// # Errors
    /// `Refused` when the target exists and is not to be overwritten; `InUse` when somebody holds it; `Io`, `NoSpace`.
    /// Unless it was the last step that failed, the temporary file is removed and the target is as it was.
    pub(crate) fn commit(mut self, overwrite: bool) -> Result<()> {
        if is_taken(|| Step::SyncFile(self.temporary.clone())) {
            self.storage.sync().map_err(|source| Error::io("sync the new file", source).with_path(&self.target))?;
        }
        if overwrite {
            self.replace()?;
        } else {
            rename_new(&self.temporary, &self.target)?;
        }
        self.committed = true;
        sync_directory_of(&self.target)
    }

    fn replace(&self) -> Result<()> {
        let rename = || {
            if !is_taken(|| Step::Rename(self.temporary.clone(), self.target.clone())) {
                return Ok(());
            }
            fs::rename(&self.temporary, &self.target)
                .map_err(|source| Error::io("give the new file its name", source).with_path(&self.target))
        };
        match fs::symlink_metadata(&self.target) {
            Ok(metadata) if metadata.is_symlink() => rename(),
            Ok(metadata) => {
                require_regular(&self.target, metadata.file_type())?;
                // Held until the rename is done, so that nobody starts to use the file that is about to go.
                let _held = FileStorage::open(&self.target, Access::Read, Lock::Exclusive)?;
                rename()
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => rename(),
            Err(source) => Err(Error::io("examine the file to overwrite", source).with_path(&self.target)),
        }
    }
}

/// Gives the file `from` the name `to` in the same file system, unless something has it.
///
/// # Errors
/// `Refused` when the name is taken; what the system answers.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    if !is_taken(|| Step::Rename(from.to_path_buf(), to.to_path_buf())) {
        return Ok(());
    }
    let named = match offload::rename_new(from, to) {
        // A hard link refuses an existing name too. The second name is then removed; if that fails it is litter.
        Ok(false) => fs::hard_link(from, to).map(|()| {
            let _ = fs::remove_file(from);
        }),
        Ok(true) => Ok(()),
        Err(source) => Err(source),
    };
    named.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => already_there(to),
        _ => Error::io("give the new file its name", source).with_path(to),
    })
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing useful can be done about a failure here: the file is hidden litter.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes the names in the directory that holds `path` durable: what was created, renamed or removed there.
///
/// # Errors
/// `Io`, about the directory.
pub(crate) fn sync_directory_of(path: &Path) -> Result<()> {
    let directory = directory_of(path);
    if !is_taken(|| Step::SyncDirectory(directory.to_path_buf())) {
        return Ok(());
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| Error::io("sync the directory", source).with_path(directory))
}

#[cfg(test)]
mod tests;
