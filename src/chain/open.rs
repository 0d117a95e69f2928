//! Opening a chain by name.
//!
//! Owns: the options, the order in which files are opened and locked, and the errors for a parent that is not there.
//! Must not know: how a path in a file becomes a path here (`locate`), what makes a parent right (`link`).

use super::locate::{self, Candidates, ParentPolicy};
use super::{Layer, MAX_LAYERS, link};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::image::Image;
use crate::link::ParentLink;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, FileIdentity, FileStorage, Lock, Storage};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How [`Chain::open`](super::Chain::open) opens the files of a chain.
///
/// By default: for reading, parents from the child's own directory, each file locked against writers.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    access: Access,
    policy: ParentPolicy,
    parents: Vec<PathBuf>,
    raw: bool,
    locked: bool,
    held: Range<usize>,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            access: Access::Read,
            policy: ParentPolicy::default(),
            parents: Vec::new(),
            raw: false,
            locked: true,
            held: 0..0,
        }
    }
}

impl ChainOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What the leaf is opened for. Parents are always opened for reading.
    #[must_use]
    pub fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Which files may be opened as parents.
    #[must_use]
    pub fn policy(mut self, policy: ParentPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Names the file of the next parent, nearest the leaf first, whatever the images say and the policy allows. Its
    /// identity is checked all the same.
    #[must_use]
    pub fn parent(mut self, path: impl Into<PathBuf>) -> Self {
        self.parents.push(path.into());
        self
    }

    /// The leaf is a raw disk image: its bytes are not looked at to tell what it is.
    #[must_use]
    pub fn raw(mut self, raw: bool) -> Self {
        self.raw = raw;
        self
    }

    /// Whether files are locked: against other writers when reading, against everybody when writing. Reading without
    /// locks shows whatever a writer has got to.
    #[must_use]
    pub fn locked(mut self, locked: bool) -> Self {
        self.locked = locked;
        self
    }

    /// Opens the files of these layers so that they can be written later, locked against everybody, though their images
    /// are opened for reading first.
    pub(crate) fn hold(mut self, layers: Range<usize>) -> Self {
        self.held = layers;
        self
    }

    fn open_file(&self, path: &Path, index: usize) -> Result<FileStorage> {
        let writes = self.held.contains(&index) || (index == 0 && self.access.writes());
        let access = if writes { Access::Write } else { Access::Read };
        let lock = match (self.locked, writes) {
            (false, _) => Lock::None,
            (true, true) => Lock::Exclusive,
            (true, false) => Lock::Shared,
        };
        FileStorage::open(path, access, lock)
    }
}

/// The image at `path` alone, its parents not looked for.
pub(super) fn open_leaf(path: &Path, options: &ChainOptions) -> Result<Layer> {
    let file = options.open_file(path, 0)?;
    open_layer(path, file, options.access, options.raw)
}

/// The parent of `child`, found under `options`; `None` when it names none.
pub(super) fn find_parent(child: &Layer, options: &ChainOptions) -> Result<Option<Layer>> {
    let Some(link) = child.image().parent_link() else { return Ok(None) };
    let mut seen = Vec::new();
    Search { options, child, link: &link, index: 1, seen: &mut seen }.run().map(Some)
}

/// The layers of the chain whose leaf is at `path`, leaf first, every link checked.
pub(super) fn open_layers(path: &Path, options: &ChainOptions) -> Result<Vec<Layer>> {
    let file = options.open_file(path, 0)?;
    let mut seen = vec![identity(&file, path)?];
    let mut layers = vec![open_layer(path, file, options.access, options.raw)?];
    while let Some(child) = layers.last()
        && let Some(parent) = child.image().parent_link()
    {
        if layers.len() >= MAX_LAYERS {
            return Err(child.blame(Error::new(
                ErrorKind::Chain,
                format_args!("the chain has more than {MAX_LAYERS} layers, the most this crate follows"),
            )));
        }
        let layer = Search { options, child, link: &parent, index: layers.len(), seen: &mut seen }.run()?;
        layers.push(layer);
    }
    Ok(layers)
}

fn identity(file: &FileStorage, path: &Path) -> Result<FileIdentity> {
    file.identity().map_err(|error| Error::io("look at the file", error).with_path(path))
}

fn open_layer(path: &Path, file: FileStorage, access: Access, raw: bool) -> Result<Layer> {
    let file = Arc::new(file);
    let storage: Arc<dyn Storage> = Arc::clone(&file) as Arc<dyn Storage>;
    let mut findings = Findings::new();
    let image = if raw {
        Image::open_raw(Arc::clone(&storage), access)
    } else {
        Image::open(Arc::clone(&storage), access, &mut findings)
    };
    let image = image.map_err(|error| error.with_path(path))?;
    Ok(Layer { image, path: Some(path.to_path_buf()), storage, file: Some(file), findings })
}

/// The search for one parent.
struct Search<'a> {
    options: &'a ChainOptions,
    child: &'a Layer,
    link: &'a ParentLink,
    /// The parent's index in the chain.
    index: usize,
    seen: &'a mut Vec<FileIdentity>,
}

impl Search<'_> {
    fn run(&mut self) -> Result<Layer> {
        let listed = self.index.checked_sub(1).and_then(|position| self.options.parents.get(position));
        if let Some(path) = listed {
            return self.open(&path.clone());
        }
        if self.link.ids.is_empty() {
            return Err(self.child.blame(
                Error::new(ErrorKind::ParentNotFound, "the parent is a raw file, which cannot be recognised")
                    .with_hint("name it with --parent FILE"),
            ));
        }
        let path = self.child.path().unwrap_or(Path::new("")).to_path_buf();
        let candidates = locate::candidates(&path, self.link, &self.options.policy)?;
        let mut failure = None;
        for path in &candidates.found {
            match self.open(path) {
                Ok(layer) => return Ok(layer),
                Err(error) => failure.get_or_insert(error),
            };
        }
        Err(failure.unwrap_or_else(|| self.not_found(&candidates)))
    }

    /// Opens the file at `path` as the parent, if it is the right one.
    fn open(&mut self, path: &Path) -> Result<Layer> {
        let file = self.options.open_file(path, self.index)?;
        let id = identity(&file, path)?;
        if self.seen.contains(&id) {
            let problem = Problem::new(
                Structure::ParentLink,
                Fault::Duplicate,
                format_args!("{} again", path.display()),
                "each file once in a chain",
            );
            return Err(self.child.blame(Error::from_problem(ErrorKind::Cycle, problem)));
        }
        let layer = open_layer(path, file, Access::Read, self.link.ids.is_empty())?;
        link::check(self.child, &layer)?;
        self.seen.push(id);
        Ok(layer)
    }

    fn not_found(&self, candidates: &Candidates) -> Error {
        let names: Vec<&str> = self.link.hints.iter().map(|hint| hint.path.as_str()).collect();
        let names = if names.is_empty() { "no path at all".to_owned() } else { names.join(", ") };
        if let Some(denied) = candidates.denied.first() {
            let message = format_args!("the parent {} lies outside what may be opened", denied.display()).to_string();
            return self.child.blame(
                Error::new(ErrorKind::ParentDenied, message)
                    .with_windows_name("ERROR_VHD_PARENT_VHD_ACCESS_DENIED")
                    .with_hint("allow it with --parents under=DIR or --parents any, or name it with --parent FILE"),
            );
        }
        let looked = match self.options.policy {
            ParentPolicy::Deny | ParentPolicy::Explicit => "nowhere: looking for parents is switched off".to_owned(),
            _ if candidates.missing.is_empty() => "nowhere on this machine: the paths mean nothing here".to_owned(),
            _ => {
                let places: Vec<String> = candidates.missing.iter().map(|path| path.display().to_string()).collect();
                places.join(", ")
            }
        };
        let problem = Problem::new(
            Structure::ParentLink,
            Fault::Missing,
            format_args!("no file for the parent it names ({names}); looked at {looked}"),
            "the parent's file",
        );
        self.child.blame(
            Error::from_problem(ErrorKind::ParentNotFound, problem)
                .with_hint("name the parent's file with --parent FILE (repeat it for further parents, nearest first)"),
        )
    }
}
