//! Opening a chain by name.
//!
//! Owns: the order in which files are opened and locked, and the errors for a parent that is not there.
//! Must not know: how a path in a file becomes a path here (`locate`), what makes a parent right (`link`), how files are
//! found by what they are (`search`).

use super::locate::{self, Candidates, ParentPolicy};
use super::options::ChainOptions;
use super::search::{self, Index};
use super::{Layer, MAX_LAYERS, kin, link, marks};
use crate::error::{Error, ErrorKind, Result};
use crate::finding::Findings;
use crate::image::Image;
use crate::link::ParentLink;
use crate::problem::{Fault, Problem, Structure};
use crate::storage::{Access, FileIdentity, FileStorage, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The image at `path` alone, its parents not looked for.
pub(super) fn open_leaf(path: &Path, options: &ChainOptions) -> Result<Layer> {
    let file = options.open_file(path, 0)?;
    open_layer(path, file, options.access, options.raw)
}

/// The parent of `child`, found under `options`; `None` when it names none.
pub(super) fn find_parent(child: &Layer, options: &ChainOptions) -> Result<Option<Layer>> {
    let Some(link) = child.image().parent_link() else { return Ok(None) };
    Search { options, child, link: &link, index: 1 }.run(&mut Met::default()).map(Some)
}

/// The layers of the chain whose leaf is at `path`, leaf first, every link checked.
pub(super) fn open_layers(path: &Path, options: &ChainOptions) -> Result<Vec<Layer>> {
    match open_as_far(path, options)? {
        (layers, None) => Ok(layers),
        (_, Some(error)) => Err(error),
    }
}

/// The layers from the leaf at `path` down to where the chain breaks, and what it breaks on; none when it is whole.
pub(super) fn open_as_far(path: &Path, options: &ChainOptions) -> Result<(Vec<Layer>, Option<Error>)> {
    let file = options.open_file(path, 0)?;
    let mut met = Met { files: vec![identity(&file, path)?], ..Met::default() };
    let layers = vec![open_layer(path, file, options.access, options.raw)?];
    follow(layers, options, &mut met)
}

/// As [`open_layers`], of files that may be damaged; the leaf alone when `alone`.
pub(super) fn open_damaged(path: &Path, options: &ChainOptions, alone: bool) -> Result<Vec<Layer>> {
    let file = options.open_file(path, 0)?;
    let mut met = Met { files: vec![identity(&file, path)?], damaged: true, ..Met::default() };
    let leaf = if options.raw { open_layer(path, file, Access::Read, true) } else { open_damaged_layer(path, file) };
    let layers = vec![leaf?];
    match if alone { (layers, None) } else { follow(layers, options, &mut met)? } {
        (layers, None) => Ok(layers),
        (_, Some(error)) => Err(error.with_hint("rescue what this file alone holds with --alone")),
    }
}

/// Adds to `layers`, which are open, the parents of the last of them.
fn follow(mut layers: Vec<Layer>, options: &ChainOptions, met: &mut Met) -> Result<(Vec<Layer>, Option<Error>)> {
    while let Some(child) = layers.last()
        && let Some(link) = child.image().parent_link()
    {
        if layers.len() >= MAX_LAYERS {
            let long = child.blame(Error::new(
                ErrorKind::Chain,
                format_args!("the chain has more than {MAX_LAYERS} layers, the most this crate follows"),
            ));
            return Ok((layers, Some(long)));
        }
        match (Search { options, child, link: &link, index: layers.len() }).run(met) {
            Ok(layer) => layers.push(layer),
            Err(error) => return Ok((layers, Some(error))),
        }
    }
    Ok((layers, None))
}

fn identity(file: &FileStorage, path: &Path) -> Result<FileIdentity> {
    file.identity().map_err(|error| Error::io("look at the file", error).with_path(path))
}

fn open_layer(path: &Path, file: FileStorage, access: Access, raw: bool) -> Result<Layer> {
    let file = Arc::new(file);
    let storage: Arc<dyn Storage> = Arc::clone(&file) as Arc<dyn Storage>;
    let mut findings = Findings::new();
    marks::note(path, &mut findings);
    let image = if raw {
        Image::open_raw(Arc::clone(&storage), access)
    } else {
        Image::open(Arc::clone(&storage), access, &mut findings)
    };
    let image = image.map_err(|error| kin::explain(path, error.with_path(path)))?;
    Ok(Layer { image, path: Some(path.to_path_buf()), storage, file: Some(file), findings, assumptions: Vec::new() })
}

fn open_damaged_layer(path: &Path, file: FileStorage) -> Result<Layer> {
    let file = Arc::new(file);
    let layer = Layer::open_damaged(&(Arc::clone(&file) as Arc<dyn Storage>)).map_err(|error| error.with_path(path))?;
    Ok(Layer { file: Some(file), ..layer.named(path) })
}

/// What was met on the way down a chain.
#[derive(Default)]
struct Met {
    /// The files that are part of it.
    files: Vec<FileIdentity>,
    /// The images of the searched directories, once they were needed.
    index: Option<Index>,
    /// Files may be damaged.
    damaged: bool,
}

impl Met {
    fn index(&mut self, directories: &[PathBuf]) -> Result<&Index> {
        let index = match self.index.take() {
            Some(index) => index,
            None => Index::build(directories)?,
        };
        Ok(self.index.insert(index))
    }
}

/// The search for one parent.
struct Search<'a> {
    options: &'a ChainOptions,
    child: &'a Layer,
    link: &'a ParentLink,
    /// The parent's index in the chain.
    index: usize,
}

impl Search<'_> {
    fn run(&self, met: &mut Met) -> Result<Layer> {
        let listed = self.index.checked_sub(1).and_then(|position| self.options.parents.get(position));
        if let Some(path) = listed {
            return self.open(path, met);
        }
        if self.link.ids.is_empty() {
            return Err(self.child.blame(
                Error::new(ErrorKind::ParentNotFound, "the parent is a raw file, which cannot be recognised")
                    .with_hint("name it with --parent FILE"),
            ));
        }
        let path = self.child.path().unwrap_or(Path::new(""));
        let candidates = locate::candidates(path, self.link, &self.options.policy, &self.options.maps)?;
        let mut failure = None;
        for path in &candidates.found {
            match self.open(path, met) {
                Ok(layer) => return Ok(layer),
                Err(error) => failure.get_or_insert(error),
            };
        }
        // The right file in its right place that cannot be read now is not to be replaced by a copy of it.
        let is_elsewhere = |error: &Error| !matches!(error.kind(), ErrorKind::Io | ErrorKind::InUse);
        if failure.as_ref().is_none_or(is_elsewhere)
            && let Some(layer) = self.by_identity(met)?
        {
            return Ok(layer);
        }
        Err(failure.unwrap_or_else(|| self.not_found(&candidates, met)))
    }

    /// The parent among the images of the searched directories.
    fn by_identity(&self, met: &mut Met) -> Result<Option<Layer>> {
        if self.options.search.is_empty() {
            return Ok(None);
        }
        let found = met.index(&self.options.search)?.find(self.link).map_err(|error| self.child.blame(error))?.cloned();
        let Some(file) = found else { return Ok(None) };
        let layer = self.open(&file.path, met)?;
        search::require_same(&layer, &file)?;
        Ok(Some(layer))
    }

    /// Opens the file at `path` as the parent, if it is the right one.
    fn open(&self, path: &Path, met: &mut Met) -> Result<Layer> {
        let file = self.options.open_file(path, self.index)?;
        let id = identity(&file, path)?;
        if met.files.contains(&id) {
            let problem = Problem::new(
                Structure::ParentLink,
                Fault::Duplicate,
                format_args!("{} again", path.display()),
                "each file once in a chain",
            );
            return Err(self.child.blame(Error::from_problem(ErrorKind::Cycle, problem)));
        }
        let raw = self.link.ids.is_empty();
        let layer = if met.damaged && !raw {
            open_damaged_layer(path, file)
        } else {
            open_layer(path, file, Access::Read, raw)
        }?;
        link::check(self.child, &layer)?;
        met.files.push(id);
        Ok(layer)
    }

    fn not_found(&self, candidates: &Candidates, met: &Met) -> Error {
        let names: Vec<&str> = self.link.hints.iter().map(|hint| hint.path.as_str()).collect();
        let names = if names.is_empty() { "no path at all".to_owned() } else { names.join(", ") };
        if let Some(denied) = candidates.denied.first() {
            let message = format_args!("the parent {} lies outside what may be opened", denied.display()).to_string();
            return self.child.blame(
                Error::new(ErrorKind::ParentDenied, message)
                    .with_windows_name("ERROR_VHD_PARENT_VHD_ACCESS_DENIED")
                    .with_hint(
                        "allow it with --parents under=DIR or --parents any, or name it with --parent FILE or --map",
                    ),
            );
        }
        let mut places: Vec<String> = candidates.missing.iter().map(|path| path.display().to_string()).collect();
        if let Some(index) = &met.index {
            let directories: Vec<String> = self.options.search.iter().map(|dir| dir.display().to_string()).collect();
            places.push(format!("the identities of {} images below {}", index.count(), directories.join(" and ")));
        }
        let looked = match self.options.policy {
            _ if !places.is_empty() => places.join(", "),
            ParentPolicy::Deny | ParentPolicy::Explicit => "nowhere: looking for parents is switched off".to_owned(),
            _ => "nowhere on this machine: the paths mean nothing here".to_owned(),
        };
        let problem = Problem::new(
            Structure::ParentLink,
            Fault::Missing,
            format_args!("no file for the parent it names ({names}); looked at {looked}"),
            "the parent's file",
        );
        let error = Error::from_problem(ErrorKind::ParentNotFound, problem);
        self.child.blame(error.with_hint(
            "name the parent's file with --parent FILE (repeat it for further parents, nearest first), say where a \
             Windows directory is now with --map 'D:\\VMs=/dir', or search for it with --search DIR",
        ))
    }
}
