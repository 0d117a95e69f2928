//! Which file is which of those that are wanted.
//!
//! Owns: where files are looked for, and that identity beats name. Must not know: what is done with those that are found.

use super::ImportOptions;
use super::manifest::{self, Manifest, ManifestFile};
use super::report::{FoundBy, NotImported};
use crate::chain::{Chain, ChainOptions, regular_files};
use crate::error::Result;
use crate::image::Image;
use crate::link::{HintKind, ImageId, ParentLink, PathHint, SavedLink};
use crate::storage::FileIdentity;
use crate::watch::Watch;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// The most images that are looked at.
pub(super) const MAX_IMAGES: usize = 10_000;

/// An image that is there.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) file: FileIdentity,
    pub(super) id: Option<ImageId>,
    pub(super) entry: Option<ManifestFile>,
    pub(super) link: Option<ParentLink>,
    pub(super) kept: Option<SavedLink>,
    /// VHDX: the virtual disk id.
    pub(super) disk_id: Option<String>,
}

/// The images that are there, by path, and those that do not open.
#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) images: Vec<Candidate>,
    pub(super) broken: Vec<(PathBuf, String)>,
    known: HashMap<FileIdentity, usize>,
}

impl Pool {
    /// Looks at every regular file below `directories`; links are not followed.
    ///
    /// # Errors
    /// Those of walking a directory.
    pub(super) fn collect(directories: &[&Path], watch: &Watch<'_>) -> Result<Self> {
        let mut pool = Self::default();
        for directory in directories {
            for file in regular_files(directory)?.files {
                watch.check()?;
                if pool.images.len() < MAX_IMAGES && !pool.known.contains_key(&file.identity) {
                    pool.add(&file.path);
                }
            }
        }
        Ok(pool)
    }

    /// Opens the image at `path`, alone; answers where it is in the pool.
    fn add(&mut self, path: &Path) -> Option<usize> {
        let layer = match Chain::open_leaf(path, &ChainOptions::new().locked(false)) {
            Ok(layer) => layer,
            Err(error) => {
                self.broken.push((path.to_path_buf(), error.to_string()));
                return None;
            }
        };
        let file = layer.file()?.identity().ok()?;
        if let Some(&index) = self.known.get(&file) {
            return Some(index);
        }
        let image = layer.image();
        let disk_id = if let Image::Vhdx(image) = image { Some(image.disk_id().to_string()) } else { None };
        let candidate = Candidate {
            path: path.to_path_buf(),
            file,
            id: image.id(),
            entry: ManifestFile::of(&layer, None).ok(),
            link: image.parent_link(),
            kept: image.saved_link().ok().flatten(),
            disk_id,
        };
        self.known.insert(file, self.images.len());
        self.images.push(candidate);
        self.images.len().checked_sub(1)
    }

    /// A manifest of the images that are there, parents by identity. A parent of which there are several is none.
    pub(super) fn manifest(&self) -> (Manifest, Vec<usize>) {
        let mut by_id: HashMap<ImageId, Vec<usize>> = HashMap::new();
        let own: Vec<usize> = (0..self.images.len()).filter(|&index| self.images[index].entry.is_some()).collect();
        for (position, &index) in own.iter().enumerate() {
            if let Some(id) = self.images[index].id {
                by_id.entry(id).or_default().push(position);
            }
        }
        let files = own.iter().filter_map(|&index| {
            let candidate = &self.images[index];
            let mut entry = candidate.entry.clone()?;
            let link = candidate.link.as_ref();
            let wanted: BTreeSet<usize> =
                link.into_iter().flat_map(|link| &link.ids).filter_map(|id| by_id.get(id)).flatten().copied().collect();
            entry.parent = wanted.first().copied().filter(|_| wanted.len() == 1);
            Some(entry)
        });
        (Manifest { files: files.collect() }, own)
    }

    /// Those that are one of `ids`, by path.
    pub(super) fn all(&self, ids: &[ImageId]) -> Vec<usize> {
        let mut found: Vec<usize> =
            (0..self.images.len()).filter(|&index| self.images[index].id.is_some_and(|id| ids.contains(&id))).collect();
        found.sort_by(|&one, &two| self.images[one].path.cmp(&self.images[two].path));
        found
    }

    /// Finds `wanted`: by where the maps lead, by its name in `directory`, by identity. The identity must fit wherever it
    /// is found, and be that of one file only unless the caller pinned one.
    pub(super) fn find(
        &mut self,
        wanted: &ManifestFile,
        directory: &Path,
        options: &ImportOptions,
    ) -> Result<Result<(usize, FoundBy), NotImported>> {
        let hints = wanted.path.iter().map(|path| PathHint { kind: HintKind::Absolute, path: path.clone() });
        let name = PathHint { kind: HintKind::Name, path: wanted.name.clone() };
        let link = ParentLink { ids: vec![wanted.image_id()], hints: hints.chain([name]).collect() };
        let mut named = options.chain.named_by(&directory.join("x"), &link)?;
        named.extend(options.pinned.iter().cloned());
        let places: Vec<usize> = named.iter().filter_map(|path| self.add(path)).collect();
        let ids = [wanted.image_id()];
        let fits = self.all(&ids);
        let pinned: Vec<usize> = fits.iter().copied().filter(|&index| self.is_pinned(index, options)).collect();
        let only = match (pinned.as_slice(), fits.as_slice()) {
            (&[only], _) => Some((only, FoundBy::Given)),
            ([], &[only]) => Some((only, self.how(only, wanted, &places))),
            _ => None,
        };
        if let Some(found) = only {
            return Ok(Ok(found));
        }
        if !fits.is_empty() {
            let candidates = fits.iter().map(|&index| self.images[index].path.clone()).collect();
            return Ok(Err(NotImported::Ambiguous { candidates }));
        }
        if let Some(&other) = places.first() {
            let path = self.images[other].path.clone();
            let found = self.images[other].id.map(|id| id.to_string());
            return Ok(Err(NotImported::OtherIdentity { path, found }));
        }
        let is_named = |(path, _): &&(PathBuf, String)| {
            path.file_name().is_some_and(|name| name.to_string_lossy().eq_ignore_ascii_case(&wanted.name))
        };
        if let Some((path, error)) = self.broken.iter().find(is_named) {
            return Ok(Err(NotImported::Broken { path: path.clone(), error: error.clone() }));
        }
        Ok(Err(NotImported::Missing))
    }

    fn is_pinned(&self, index: usize, options: &ImportOptions) -> bool {
        options
            .pinned
            .iter()
            .any(|path| fs::metadata(path).is_ok_and(|metadata| FileIdentity::of(&metadata) == self.images[index].file))
    }

    fn how(&self, index: usize, wanted: &ManifestFile, places: &[usize]) -> FoundBy {
        let name = self.images[index].path.file_name().map(|name| name.to_string_lossy().to_lowercase());
        let same_name = name.is_some_and(|name| name == wanted.name.to_lowercase());
        match places.contains(&index) {
            true if same_name => FoundBy::Path,
            _ if same_name => FoundBy::Name,
            _ => FoundBy::Identity,
        }
    }
}

/// Whether the file at `path` has the bytes the manifest says.
///
/// # Errors
/// What reading it answers; `Cancelled`.
pub(super) fn same_bytes(wanted: &ManifestFile, path: &Path, watch: &Watch<'_>) -> Result<bool> {
    let Some(sum) = &wanted.sha256 else { return Ok(true) };
    let layer = Chain::open_leaf(path, &ChainOptions::new())?;
    let Some(file) = layer.file() else { return Ok(false) };
    Ok(manifest::sha256(file, watch).map_err(|error| error.with_path(path))? == *sum)
}

/// Virtual disk ids that images of different chains have, with those images. Windows tells disks apart by them.
pub(super) fn duplicates(bases: &[&Candidate]) -> Vec<String> {
    let mut by_id: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
    for base in bases {
        if let Some(id) = &base.disk_id {
            by_id.entry(id).or_default().push(&base.path);
        }
    }
    let several = by_id.into_iter().filter(|(_, paths)| paths.len() > 1);
    several
        .map(|(id, paths)| {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            format!("different disks have the virtual disk id {id}: {}", paths.join(", "))
        })
        .collect()
}
