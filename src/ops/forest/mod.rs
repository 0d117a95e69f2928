//! Every image below a directory: who stands on whom, and what keeps which of them from opening.
//!
//! Owns: the report, and which files are in it. Must not know: how a link is judged (`links`), what would mend it
//! (`help`).

mod help;
mod links;

pub use help::Help;
pub use links::LinkState;

use crate::chain::{ChainOptions, FoundFile, Layer, ParentPolicy, open_found, regular_files};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Format;
use crate::link::{DiskKind, ImageId};
use crate::storage::FileIdentity;
use links::{Entry, Links};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The most images of one forest: each takes some kilobytes of memory, its paths being what they are.
pub const MAX_FOREST_IMAGES: usize = 10_000;

/// The longest path of a child's that is shown, in characters; no system follows a longer one.
const MAX_SHOWN_PATH: usize = 4096;

/// Names by which a file is expected to be an image, so that one that is not is worth a word.
const IMAGE_EXTENSIONS: [&str; 4] = ["vhd", "vhdx", "avhd", "avhdx"];

/// The images below a directory. All paths are real ones.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Forest {
    /// The directory.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub directory: PathBuf,
    /// The images, by path.
    pub images: Vec<ForestImage>,
    /// Files that look like images, or should be by their names, and do not open.
    pub broken: Vec<BrokenFile>,
    /// Identities that several files have. Their children cannot tell these files apart.
    pub duplicates: Vec<Duplicate>,
    /// Directories that could not be read or lie too deep.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub skipped: Vec<PathBuf>,
}

/// One image.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForestImage {
    /// Its file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Fixed, dynamic or differencing.
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub kind: DiskKind,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// What its children know it by.
    pub id: Option<String>,
    /// Its parent, for differencing images.
    pub parent: Option<ForestParent>,
    /// The images that stand on it.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub children: Vec<PathBuf>,
    /// Whether none does.
    pub leaf: bool,
    /// Whether every link down to its base is [`Linked`](LinkState::Linked).
    pub opens: bool,
    /// What could be done about it, or with it.
    pub help: Option<Help>,
}

/// What became of the search for a parent.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ForestParent {
    /// How it stands with the link.
    pub state: LinkState,
    /// The right file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub path: Option<PathBuf>,
    /// The wrong file that the child's paths lead to.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::one"))]
    pub wrong: Option<PathBuf>,
    /// Where several files have the right identity: all of them.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub candidates: Vec<PathBuf>,
    /// The first path the child holds for it.
    pub named: Option<String>,
    /// The identity the child wants.
    pub identity: Option<String>,
}

/// A file that does not open.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BrokenFile {
    /// The file.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::path"))]
    pub path: PathBuf,
    /// Why it does not open.
    pub error: String,
    /// What could be done about it.
    pub help: Option<Help>,
}

/// An identity that several files have.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Duplicate {
    /// The identity.
    pub id: String,
    /// The files, by path.
    #[cfg_attr(feature = "serde", serde(serialize_with = "crate::ops::paths::list"))]
    pub files: Vec<PathBuf>,
}

impl Forest {
    /// Whether every image opens, each by a name of its own.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.broken.is_empty() && self.duplicates.is_empty() && self.images.iter().all(|image| image.opens)
    }

    /// The image at `path`.
    #[must_use]
    pub fn image(&self, path: &Path) -> Option<&ForestImage> {
        let at = self.images.binary_search_by(|image| image.path.as_path().cmp(path)).ok()?;
        self.images.get(at)
    }

    /// The images to begin drawing with: those that stand on no other image of the forest, and of each circle the first.
    #[must_use]
    pub fn roots(&self) -> Vec<&ForestImage> {
        let mut roots = Vec::new();
        let mut below: HashSet<&Path> = HashSet::new();
        let stands = |image: &ForestImage| {
            let parent = image.parent.as_ref().and_then(|parent| parent.path.as_deref());
            parent.is_some_and(|path| self.image(path).is_some())
        };
        let is_circle =
            |image: &&ForestImage| image.parent.as_ref().is_some_and(|parent| parent.state == LinkState::Circular);
        let free = self.images.iter().filter(|image| !stands(image));
        for image in free.chain(self.images.iter().filter(is_circle)) {
            if below.insert(&image.path) {
                roots.push(image);
                let mut open = vec![image];
                while let Some(image) = open.pop() {
                    let children = image.children.iter().filter_map(|path| self.image(path));
                    open.extend(children.filter(|child| below.insert(&child.path)));
                }
            }
        }
        roots.sort_by(|one, two| one.path.cmp(&two.path));
        roots
    }
}

/// Looks at every image below `directory` (regular files, symbolic links not followed). Files are read without locks:
/// what is shown of one that is being written is whatever its writer has got to.
///
/// A child's paths are followed inside `directory`, where `options` map them to, and wherever the policy of `options`
/// allows. Parents that are not in `directory` are looked for by identity in the directories that `options` name.
///
/// # Errors
/// `InvalidInput` when there are more than [`MAX_SEARCH_ENTRIES`](crate::chain::MAX_SEARCH_ENTRIES) entries or
/// [`MAX_FOREST_IMAGES`] images; what the system answers for `directory` itself. A file that does not open is part of the
/// answer.
pub fn forest(directory: impl AsRef<Path>, options: &ChainOptions) -> Result<Forest> {
    let directory = directory.as_ref();
    let root =
        fs::canonicalize(directory).map_err(|error| Error::io("search the directory", error).with_path(directory))?;
    let scan = regular_files(&root)?;
    let mut collected = Collected { root: &root, options, entries: Vec::new(), broken: Vec::new() };
    let mut seen: HashSet<FileIdentity> = HashSet::new();
    for file in scan.files.iter().filter(|file| seen.insert(file.identity)) {
        collected.add(file)?;
    }
    let Collected { entries, broken, .. } = collected;
    let duplicates = duplicates(&entries);
    let links = Links::new(&entries, &broken, options)?;
    let images = links.into_images(&root);
    let broken = broken.into_iter().map(|(path, error)| BrokenFile { help: Some(Help::broken(&path)), path, error });
    Ok(Forest { images, broken: broken.collect(), duplicates, skipped: scan.skipped, directory: root })
}

/// The images met so far.
struct Collected<'a> {
    root: &'a Path,
    options: &'a ChainOptions,
    entries: Vec<Entry>,
    broken: Vec<(PathBuf, String)>,
}

impl Collected<'_> {
    fn add(&mut self, file: &FoundFile) -> Result<()> {
        match open_found(file) {
            Ok(layer) => {
                if self.entries.len() >= MAX_FOREST_IMAGES {
                    let message = format!("more than {MAX_FOREST_IMAGES} images lie below this directory");
                    return Err(Error::new(ErrorKind::InvalidInput, message)
                        .with_path(self.root)
                        .with_hint("name a directory further down"));
                }
                self.entries.push(self.entry(file, &layer)?);
            }
            Err(error) if is_image(&file.path, &error) && self.broken.len() < MAX_FOREST_IMAGES => {
                self.broken.push((file.path.clone(), error.to_string()));
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn entry(&self, file: &FoundFile, layer: &Layer) -> Result<Entry> {
        let image = layer.image();
        let link = image.parent_link();
        let inside = self.options.clone().policy(ParentPolicy::Under(self.root.to_path_buf()));
        let mut hits = Vec::new();
        if let Some(link) = &link {
            hits = inside.named_by(&file.path, link)?;
            // Outside the directory the caller's own policy counts.
            let outside = self.options.named_by(&file.path, link)?;
            hits.extend(outside.into_iter().filter(|path| !path.starts_with(self.root)));
        }
        let unmapped = match &link {
            Some(link) if self.options.has_maps() => inside.without_maps().named_by(&file.path, link)?,
            _ => hits.clone(),
        };
        let first = link.as_ref().and_then(|link| link.hints.first());
        Ok(Entry {
            file: file.clone(),
            id: image.id(),
            sector: image.logical_sector_size(),
            wanted: link.as_ref().map(|link| link.ids.clone()),
            hits,
            unmapped,
            image: ForestImage {
                path: file.path.clone(),
                format: image.format(),
                kind: image.kind(),
                virtual_size: image.virtual_size(),
                file_size: layer.file_size()?,
                id: image.id().map(|id| id.to_string()),
                parent: link.as_ref().map(|link| ForestParent {
                    state: LinkState::Missing,
                    path: None,
                    wrong: None,
                    candidates: Vec::new(),
                    named: first.map(|hint| hint.path.chars().take(MAX_SHOWN_PATH).collect()),
                    identity: link.ids.first().map(ImageId::to_string),
                }),
                children: Vec::new(),
                leaf: true,
                opens: false,
                help: None,
            },
        })
    }
}

/// Whether a file that does not open is an image all the same: by what it holds, or by its name.
fn is_image(path: &Path, error: &Error) -> bool {
    let named = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Refused)
        || named.is_some_and(|extension| IMAGE_EXTENSIONS.contains(&extension.as_str()))
}

fn duplicates(entries: &[Entry]) -> Vec<Duplicate> {
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for entry in entries {
        if let Some(id) = &entry.image.id {
            files.entry(format!("{} {id}", entry.image.format)).or_default().push(entry.file.path.clone());
        }
    }
    let several = files.into_iter().filter(|(_, files)| files.len() > 1);
    several.map(|(id, files)| Duplicate { id, files }).collect()
}
