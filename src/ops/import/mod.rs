//! Taking in chains that were made on another machine.
//!
//! Owns: the order of an import, and what makes one complete. Must not know: how a link is written, how a file is found.
//!
//! A chain that lands on another machine has lost its place: its files name each other by paths that mean nothing here,
//! were renamed, or moved apart. They are told by identity, and their links are written anew, base first, so that every
//! link is right when the next one is looked at. An import that cannot do all of it does what it can and says what is
//! missing; it takes nothing back by itself ([`cleanup_import`] does).

mod find;
mod manifest;
mod record;
mod report;

pub use manifest::{ExportOptions, Manifest, ManifestFile, export};
pub use record::{CleanupReport, cleanup_import, imports};
pub use report::{FoundBy, ImportOutcome, ImportReport, Imported, ImportedChain, MissingFile, NotImported};

use super::change::{SetOptions, set};
use super::registry::Registry;
use super::reparent::{AbsolutePath, ReparentOptions, reparent};
use crate::chain::{ChainOptions, ParentPolicy, relative_windows_path};
use crate::error::{Error, ErrorKind, Result};
use crate::guid::{self, Guid};
use crate::image::Format;
use crate::link::{HintKind, ImageId, SavedLink};
use crate::watch::Watch;
use find::{Candidate, Pool};
use record::Log;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How chains are taken in.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    search: Vec<PathBuf>,
    pinned: Vec<PathBuf>,
    registry: Option<PathBuf>,
    read_only: bool,
    verify_hash: bool,
    fresh_ids: bool,
    chain: ChainOptions,
}

impl ImportOptions {
    /// Links that do not lead to their parents are written anew.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A further directory to look for files in, and below it.
    #[must_use]
    pub fn search(mut self, directory: impl Into<PathBuf>) -> Self {
        self.search.push(directory.into());
        self
    }

    /// Where several files have one identity, this one is meant.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pinned.push(path.into());
        self
    }

    /// Where the record of what was written is kept, and where one import is at work at a time; default `.vhdkit` in the
    /// directory.
    #[must_use]
    pub fn registry(mut self, directory: impl Into<PathBuf>) -> Self {
        self.registry = Some(directory.into());
        self
    }

    /// Whether nothing is written: the chains that are there open with their parents named (default false).
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether every file that the manifest has a checksum of is read and compared before anything is written.
    #[must_use]
    pub fn verify_hash(mut self, verify: bool) -> Self {
        self.verify_hash = verify;
        self
    }

    /// Whether every disk gets an identity of its own once all of it is there: a virtual disk id for each VHDX chain, a
    /// Unique ID for each VHD, their children following. Such an import cannot be taken back.
    #[must_use]
    pub fn fresh_ids(mut self, fresh: bool) -> Self {
        self.fresh_ids = fresh;
        self
    }

    /// What Windows calls directories of this machine, by [`ChainOptions::map`]: files are looked for there, and absolute
    /// paths are written so.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }
}

/// Finds the files of `manifest` in `directory` and makes their chains open there.
///
/// Each file is looked for where maps say that its Windows path leads, by its name in the directory, and by identity in
/// the directory and below. Its identity must fit wherever it is; of several files that have it none is taken. A file is
/// imported when its parent is. Links that do not lead to their parent are written anew, unless the import is
/// [`read_only`](ImportOptions::read_only).
///
/// # Errors
/// `InUse` when another import is at work; what reading the directory answers; `Cancelled`. A file that is missing or does
/// not open is part of the answer.
pub fn import(
    manifest: &Manifest,
    directory: impl AsRef<Path>,
    options: &ImportOptions,
    watch: &Watch<'_>,
) -> Result<ImportReport> {
    let directory = real(directory.as_ref())?;
    manifest.depths().map_err(|why| Error::new(ErrorKind::InvalidInput, why))?;
    let mut pool = pool(&directory, options, watch)?;
    let mut found = Vec::with_capacity(manifest.files.len());
    for wanted in &manifest.files {
        watch.check()?;
        let mut one = pool.find(wanted, &directory, options)?;
        if let (Ok((index, _)), true) = (&one, options.verify_hash) {
            let path = &pool.images[*index].path;
            if !find::same_bytes(wanted, path, watch)? {
                one = Err(NotImported::OtherBytes { path: path.clone() });
            }
        }
        found.push(one);
    }
    Import { manifest, pool: &pool, found, options, directory: &directory }.run(watch)
}

/// Takes in every chain whose files lie in `directory`, without a manifest: what is there is what is wanted.
///
/// # Errors
/// As [`import`].
pub fn adopt(directory: impl AsRef<Path>, options: &ImportOptions, watch: &Watch<'_>) -> Result<ImportReport> {
    let directory = real(directory.as_ref())?;
    let pool = pool(&directory, options, watch)?;
    let (mut manifest, own) = pool.manifest();
    for (entry, &index) in manifest.files.iter_mut().zip(&own) {
        let link = pool.images[index].link.as_ref();
        if let (None, Some(link)) = (entry.parent, link) {
            let pinned = options.pinned.iter().filter_map(|path| std::fs::canonicalize(path).ok());
            let chosen: Vec<usize> = pinned
                .filter_map(|path| own.iter().position(|&other| pool.images[other].path == path))
                .filter(|&other| pool.images[own[other]].id.is_some_and(|id| link.accepts(id)))
                .collect();
            entry.parent = chosen.first().copied().filter(|_| chosen.len() == 1);
        }
    }
    if manifest.depths().is_err() {
        // Two files that name each other: neither has a base.
        let message = "images in this directory name each other as parents in a circle";
        return Err(Error::new(ErrorKind::Cycle, message)
            .with_path(&directory)
            .with_hint("`vhdkit chain` draws them; take the wrong one away"));
    }
    let found = own.iter().map(|&index| Ok((index, FoundBy::Path))).collect();
    Import { manifest: &manifest, pool: &pool, found, options, directory: &directory }.run(watch)
}

fn real(directory: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(directory).map_err(|error| Error::io("search the directory", error).with_path(directory))
}

fn pool(directory: &Path, options: &ImportOptions, watch: &Watch<'_>) -> Result<Pool> {
    let more = options.search.iter().map(PathBuf::as_path);
    let directories: Vec<&Path> = [directory].into_iter().chain(more).collect();
    Pool::collect(&directories, watch)
}

/// An import whose files have been looked for.
struct Import<'a> {
    manifest: &'a Manifest,
    pool: &'a Pool,
    /// For each file of the manifest, where it is in the pool.
    found: Vec<Result<(usize, FoundBy), NotImported>>,
    options: &'a ImportOptions,
    directory: &'a Path,
}

impl Import<'_> {
    fn run(mut self, watch: &Watch<'_>) -> Result<ImportReport> {
        let registry = match &self.options.registry {
            Some(directory) => Registry::at(directory),
            None => Registry::for_import(self.directory),
        };
        // A look leaves nothing behind, not even the directory of records.
        let held = if self.options.read_only { None } else { Some(registry.hold()?) };
        let mut log = held.as_ref().map(|held| Log::new(&registry, held));
        let depths = self.manifest.depths().map_err(|why| Error::new(ErrorKind::InvalidInput, why))?;
        let mut order: Vec<usize> = (0..self.manifest.files.len()).collect();
        order.sort_by_key(|&index| depths[index]);
        let mut imported = Vec::new();
        for index in order {
            watch.check()?;
            let Ok((place, found_by)) = self.found[index] else { continue };
            match self.link(index, place, log.as_mut())? {
                Ok((parent, relinked)) => {
                    let path = self.pool.images[place].path.clone();
                    let name = self.manifest.files[index].name.clone();
                    imported.push((index, Imported { name, path, found_by, parent, relinked }));
                }
                Err(why) => self.found[index] = Err(why),
            }
        }
        let fresh = self.options.fresh_ids && !self.options.read_only && self.found.iter().all(Result::is_ok);
        if let Some(log) = log.as_ref().filter(|_| fresh) {
            log.forget()?;
            self.renew(&imported)?;
        }
        let id = log.filter(|log| !log.is_empty() && !fresh).map(|log| log.id);
        imported.sort_by_key(|(index, _)| *index);
        let mut report = self.report(id, imported.into_iter().map(|(_, one)| one).collect());
        if self.options.fresh_ids && !fresh {
            report.warnings.push("no disk got an identity of its own, as not every file is there".to_owned());
        }
        Ok(report)
    }

    /// Gives every disk an identity of its own, bases first; children follow theirs.
    fn renew(&self, imported: &[(usize, Imported)]) -> Result<()> {
        let mut ids: Vec<Option<Guid>> = vec![None; self.manifest.files.len()];
        for (index, one) in imported {
            let file = &self.manifest.files[*index];
            // One id for all files of a chain: they are one disk.
            let id = file.parent.and_then(|parent| ids[parent]).unwrap_or_else(guid::fresh);
            ids[*index] = Some(id);
            let options = match file.format {
                Format::Vhdx => SetOptions::new().disk_id(id),
                _ => SetOptions::new().fresh_unique_id(),
            };
            let directories = [self.directory].into_iter().chain(self.options.search.iter().map(PathBuf::as_path));
            set(&one.path, &directories.fold(options.relink(true), SetOptions::search))?;
        }
        Ok(())
    }

    /// Makes the link of file `index`, which lies at `place`, lead to its parent; answers the parent and whether anything
    /// was written.
    fn link(
        &self,
        index: usize,
        place: usize,
        log: Option<&mut Log<'_>>,
    ) -> Result<Result<(Option<PathBuf>, bool), NotImported>> {
        let child = &self.pool.images[place];
        let Some(link) = &child.link else { return Ok(Ok((None, false))) };
        let parent = self.manifest.files[index].parent.and_then(|parent| self.found[parent].as_ref().ok());
        let parent = parent.map(|&(place, _)| &self.pool.images[place]);
        let Some(parent) = parent.filter(|parent| parent.id.is_some_and(|id| link.accepts(id))) else {
            let candidates: Vec<PathBuf> =
                self.pool.all(&link.ids).into_iter().map(|index| self.pool.images[index].path.clone()).collect();
            return Ok(Err(NotImported::ParentNotImported {
                path: child.path.clone(),
                parent: link.ids.first().map(ImageId::to_string),
                candidates: if candidates.len() > 1 { candidates } else { Vec::new() },
            }));
        };
        let (Some(log), Some(kept)) = (log, &child.kept) else { return Ok(Ok((Some(parent.path.clone()), false))) };
        if self.leads_there(child, parent)? {
            return Ok(Ok((Some(parent.path.clone()), false)));
        }
        match self.relink(child, parent, kept, log) {
            Ok(()) => Ok(Ok((Some(parent.path.clone()), true))),
            Err(error) => Ok(Err(NotImported::NotRelinked { path: child.path.clone(), error: error.to_string() })),
        }
    }

    /// Whether the first path the child holds is the right one already, and the absolute one as the maps say.
    fn leads_there(&self, child: &Candidate, parent: &Candidate) -> Result<bool> {
        let Some(link) = &child.link else { return Ok(true) };
        let hint = |kind| link.hints.iter().find(|hint| hint.kind == kind).map(|hint| hint.path.as_str());
        let relative = relative_windows_path(&child.path, &parent.path)?;
        let same = hint(HintKind::Relative).is_some_and(|path| path == relative || format!(".\\{path}") == relative);
        let absolute = self.options.chain.windows_path(&parent.path);
        let plain = |path: &str| path.strip_prefix("\\\\?\\").unwrap_or(path).to_lowercase();
        let fits =
            absolute.is_none_or(|wanted| hint(HintKind::Absolute).is_some_and(|path| plain(path) == plain(&wanted)));
        Ok(same && fits)
    }

    fn relink(&self, child: &Candidate, parent: &Candidate, kept: &SavedLink, log: &mut Log<'_>) -> Result<()> {
        // The parents of the parent are known: nothing a file says decides what is opened.
        let chain = ChainOptions::new().policy(ParentPolicy::Explicit);
        let chain = self.parents_of(&parent.path).into_iter().fold(chain, ChainOptions::parent);
        let absolute = match self.options.chain.windows_path(&parent.path) {
            Some(path) => AbsolutePath::Set(path),
            None => AbsolutePath::Keep,
        };
        log.before(&child.path, kept.clone())?;
        reparent(&child.path, &parent.path, &ReparentOptions::new().absolute(absolute).chain(chain))?;
        log.after(&child.path)
    }

    /// The files below the one at `path`, nearest first, as far as they were found.
    fn parents_of(&self, path: &Path) -> Vec<PathBuf> {
        let mut parents = Vec::new();
        let at = |place: usize| &self.pool.images[place].path;
        let position =
            |path: &Path| self.found.iter().position(|one| one.as_ref().is_ok_and(|&(place, _)| at(place) == path));
        let mut here = position(path);
        while let Some(index) = here.and_then(|index| self.manifest.files[index].parent) {
            let Ok((place, _)) = self.found[index] else { break };
            parents.push(at(place).clone());
            here = Some(index);
        }
        parents
    }

    fn report(&self, id: Option<String>, imported: Vec<Imported>) -> ImportReport {
        let mut not_imported = Vec::new();
        for (file, one) in self.manifest.files.iter().zip(&self.found) {
            if let Err(why) = one {
                let (name, original, id) = (file.name.clone(), file.path.clone(), file.id.to_string());
                not_imported.push(MissingFile { name, original, id, why: why.clone() });
            }
        }
        let outcome = match (imported.is_empty(), not_imported.is_empty()) {
            (_, true) => ImportOutcome::Complete,
            (false, false) => ImportOutcome::SomeNotImported,
            (true, false) => ImportOutcome::NoneImported,
        };
        let stood_on: BTreeSet<&Path> = imported.iter().filter_map(|one| one.parent.as_deref()).collect();
        let leaves = imported.iter().filter(|one| !stood_on.contains(one.path.as_path()));
        let chains = leaves.map(|one| ImportedChain { leaf: one.path.clone(), parents: self.parents_of(&one.path) });
        let places = self.found.iter().filter_map(|one| one.as_ref().ok());
        let images = places.map(|&(place, _)| &self.pool.images[place]);
        let bases: Vec<&Candidate> = images.filter(|image| image.link.is_none()).collect();
        let warnings = find::duplicates(&bases);
        ImportReport { id, outcome, not_imported, chains: chains.collect(), warnings, imported }
    }
}
