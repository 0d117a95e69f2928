//! Where an interrupted merge goes on.
//!
//! Owns: what is remembered beside the target, and when it may be believed. Must not know: how the merge is carried out.
//!
//! A checkpoint saves time and never decides what is right. It is believed only when the ids prove that nothing was
//! written since: for VHDX the DataWriteGuid of every merged file and of the target. A VHD has no such id, so there
//! the finished part is compared byte by byte and copied where it differs. Once all is merged it also names the files
//! (see `ending`).

use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::storage::atomic::{AtomicFile, remove_if_there, remove_leftovers};
use crate::storage::{Access, FileStorage, Lock, Storage};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Span;

/// The longest checkpoint that is read: some 100 bytes per file of the longest chain.
const MAX_BYTES: u64 = 1 << 20;
/// The first line, with the version of what follows.
const TITLE: &str = "vhdkit merge checkpoint ";
const VERSION: u32 = 1;

/// Where an operation that can be interrupted keeps its place. The library keeps it in a file beside the target; a user
/// with storages of their own can keep it elsewhere.
pub trait CheckpointStore: Send + Sync + fmt::Debug {
    /// What was saved last, or `None`. Damaged contents may be handed out: they are recognised.
    ///
    /// # Errors
    /// What the store answers.
    fn load(&self) -> Result<Option<Vec<u8>>>;

    /// Keeps `bytes` in place of what was saved before. Durable on return.
    ///
    /// # Errors
    /// What the store answers.
    fn save(&self, bytes: &[u8]) -> Result<()>;

    /// Forgets. Nothing saved is no error.
    ///
    /// # Errors
    /// What the store answers.
    fn clear(&self) -> Result<()>;
}

/// The checkpoint file `.NAME.vhdkit-VERB` beside the target `NAME`, replaced in one step.
#[derive(Debug)]
pub(in crate::ops) struct BesideTarget(PathBuf);

impl BesideTarget {
    pub(in crate::ops) fn new(target: &Path, verb: &str) -> Option<Self> {
        let name = target.file_name()?.to_string_lossy();
        Some(Self(target.with_file_name(format!(".{name}.vhdkit-{verb}"))))
    }
}

impl CheckpointStore for BesideTarget {
    fn load(&self) -> Result<Option<Vec<u8>>> {
        let file = match FileStorage::open(&self.0, Access::Read, Lock::None) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let read = || {
            let mut bytes = vec![0; usize::try_from(file.len()?.min(MAX_BYTES)).unwrap_or(0)];
            file.read_exact_at(&mut bytes, 0).map(|()| bytes)
        };
        read().map(Some).map_err(|error| Error::io("read the checkpoint", error).with_path(&self.0))
    }

    fn save(&self, bytes: &[u8]) -> Result<()> {
        let file = AtomicFile::create(&self.0)?;
        file.storage()
            .write_all_at(bytes, 0)
            .map_err(|error| Error::io("write the checkpoint", error).with_path(&self.0))?;
        file.commit(true)
    }

    fn clear(&self) -> Result<()> {
        // Whoever merges into the target holds it, so what others left here is from the dead.
        remove_leftovers(&self.0);
        remove_if_there(&self.0, "remove the checkpoint").map(drop)
    }
}

/// A merge and how far it got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    format: String,
    pub(super) source: usize,
    pub(super) target: usize,
    /// Identity and virtual size of each merged file, nearest the leaf first.
    pub(super) merged: Vec<(String, u64)>,
    pub(super) target_id: String,
    /// Everything before this offset of the disk is in the target, durable.
    pub(super) done: u64,
    /// Once all is merged: the merged files, nearest the leaf first, and the target.
    pub(super) files: Vec<NotedFile>,
}

/// A file as it was when all was merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NotedFile {
    /// Below the directory of the leaf, or absolute; `None` for a storage that is no file.
    pub(super) path: Option<PathBuf>,
    /// What another writer cannot but change, without spaces.
    pub(super) stamp: String,
}

/// What a saved checkpoint is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Nothing: start at the beginning.
    Start,
    /// Everything before this offset is done.
    Skip(u64),
    /// Everything before this offset was done, and may have changed since.
    Compare(u64),
}

impl Resume {
    /// How far the interrupted merge had got, if there was one.
    pub(super) fn done(self) -> Option<u64> {
        match self {
            Self::Start => None,
            Self::Skip(done) | Self::Compare(done) => Some(done),
        }
    }
}

impl Checkpoint {
    /// The place of the merge of `span` in `chain`, at its beginning.
    pub(super) fn of(chain: &Chain, span: Span) -> Self {
        let id = |index: usize| {
            let layer = chain.layers().get(index);
            layer.and_then(|layer| layer.image().id()).map_or_else(String::new, |id| id.to_string())
        };
        let size = |index: usize| chain.layers().get(index).map_or(0, |layer| layer.image().virtual_size());
        Self {
            format: chain.leaf().image().format().to_string(),
            source: span.source,
            target: span.target,
            merged: (span.source..span.target).map(|index| (id(index), size(index))).collect(),
            target_id: id(span.target),
            done: 0,
            files: Vec::new(),
        }
    }

    /// The same merge, this far.
    pub(super) fn at(&self, done: u64) -> Self {
        Self { done, files: Vec::new(), ..self.clone() }
    }

    /// The same merge at its end, with the files that are of it.
    pub(super) fn ending(&self, files: Vec<NotedFile>) -> Self {
        Self { files, ..self.clone() }
    }

    /// What `saved` says about this merge, given whether the target's identity proves anything.
    ///
    /// # Errors
    /// `Refused` when a newer version of this program wrote it: what it means is not known here.
    pub(super) fn resume(&self, saved: &[u8]) -> Result<Resume> {
        let Some(saved) = Self::decode(saved)? else { return Ok(Resume::Start) };
        if saved.at(0) != *self || saved.done == 0 {
            return Ok(Resume::Start);
        }
        Ok(if self.format == Format::Vhdx.to_string() { Resume::Skip(saved.done) } else { Resume::Compare(saved.done) })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut text = format!("{TITLE}{VERSION}\nformat {}\nsource {}\n", self.format, self.source);
        text.push_str(&format!("target {} {}\n", self.target, self.target_id));
        for (id, size) in &self.merged {
            text.push_str(&format!("merged {id} {size}\n"));
        }
        text.push_str(&format!("done {}\n", self.done));
        for file in &self.files {
            text.push_str(&format!("file {} {}\n", file.stamp, file.path.as_deref().map_or_else(String::new, escaped)));
        }
        let sum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc {sum:08x}\n"));
        text.into_bytes()
    }

    /// `None` for bytes that are no whole checkpoint.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(text) = std::str::from_utf8(bytes).ok() else { return Ok(None) };
        let Some((body, sum)) = text.split_once("crc ") else { return Ok(None) };
        if format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) != sum {
            return Ok(None);
        }
        let mut lines = body.lines();
        match lines.next().and_then(|line| line.strip_prefix(TITLE)?.parse::<u32>().ok()) {
            Some(VERSION) => {}
            Some(newer) => {
                return Err(Error::new(
                    ErrorKind::Refused,
                    format_args!(
                        "an interrupted merge left a checkpoint of version {newer}, this program knows {VERSION}"
                    ),
                )
                .with_hint("finish it with the newer program, or start over with --restart"));
            }
            None => return Ok(None),
        }
        Ok(Self::fields(lines))
    }

    fn fields(lines: std::str::Lines<'_>) -> Option<Self> {
        let mut all = Self::default();
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "format" => all.format = value.to_owned(),
                "source" => all.source = value.parse().ok()?,
                "target" => {
                    let (depth, id) = value.split_once(' ')?;
                    (all.target, all.target_id) = (depth.parse().ok()?, id.to_owned());
                }
                "merged" => {
                    let (id, size) = value.split_once(' ')?;
                    all.merged.push((id.to_owned(), size.parse().ok()?));
                }
                "done" => all.done = value.parse().ok()?,
                "file" => {
                    let (stamp, path) = value.split_once(' ')?;
                    let path = if path.is_empty() { None } else { Some(unescaped(path)?) };
                    all.files.push(NotedFile { path, stamp: stamp.to_owned() });
                }
                _ => return None,
            }
        }
        Some(all)
    }
}

/// `path` as one word: bytes that are no printing ASCII, and `%`, as `%XX`.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'%' | 0..=b' ' | 0x7F.. => text.push_str(&format!("%{byte:02x}")),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

fn unescaped(text: &str) -> Option<PathBuf> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend(rest.as_bytes());
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Checkpoint {
        Checkpoint {
            format: "vhdx".to_owned(),
            source: 0,
            target: 2,
            merged: vec![("a".to_owned(), 5), ("b".to_owned(), 6)],
            target_id: "g".to_owned(),
            done: 0,
            files: Vec::new(),
        }
    }

    #[test]
    fn the_files_of_an_ending_come_back_as_they_were_and_do_not_hinder_a_resume() {
        let odd = OsString::from_vec(b"/a b/%41\n\xff\xc3\xa4.vhd".to_vec());
        let file = |path: Option<PathBuf>| NotedFile { path, stamp: "1/2.3".to_owned() };
        let files = vec![file(Some(PathBuf::from(odd))), file(None), file(Some(PathBuf::from("-")))];
        let ending = Checkpoint { files, ..sample().at(77) };
        assert_eq!(Checkpoint::decode(&ending.encode()).unwrap().as_ref(), Some(&ending));
        assert_eq!(sample().resume(&ending.encode()).unwrap(), Resume::Skip(77));
        assert_eq!(unescaped("a%4"), None);
        assert_eq!(unescaped("a%zz"), None);
    }

    #[test]
    fn only_the_same_merge_is_resumed() {
        let merge = sample();
        assert_eq!(merge.resume(&merge.at(77).encode()).unwrap(), Resume::Skip(77));
        assert_eq!(merge.resume(&merge.encode()).unwrap(), Resume::Start);
        let vhd = Checkpoint { format: "vhd".to_owned(), ..sample() };
        assert_eq!(vhd.resume(&vhd.at(77).encode()).unwrap(), Resume::Compare(77));
        let others = [
            Checkpoint { target: 1, ..sample() },
            Checkpoint { source: 1, ..sample() },
            Checkpoint { target_id: "h".to_owned(), ..sample() },
            Checkpoint { merged: vec![("a".to_owned(), 5), ("x".to_owned(), 6)], ..sample() },
            Checkpoint { merged: vec![("a".to_owned(), 5), ("b".to_owned(), 7)], ..sample() },
            Checkpoint { merged: vec![("a".to_owned(), 5)], ..sample() },
        ];
        for other in others {
            assert_eq!(merge.resume(&other.at(77).encode()).unwrap(), Resume::Start, "{other:?}");
        }
    }

    #[test]
    fn damage_anywhere_is_not_believed_and_a_newer_version_is_an_error() {
        let whole = sample().at(77).encode();
        for at in 0..whole.len() {
            for flip in [1, 0x10, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                assert_eq!(sample().resume(&bytes).unwrap(), Resume::Start, "byte {at}");
            }
            assert_eq!(sample().resume(&whole[..at]).unwrap(), Resume::Start, "cut at {at}");
        }
        let text = String::from_utf8(whole).unwrap().replace("checkpoint 1", "checkpoint 2");
        let body = text.split_once("crc ").unwrap().0;
        let newer = format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()));
        assert_eq!(sample().resume(newer.as_bytes()).unwrap_err().kind(), ErrorKind::Refused);
    }
}
