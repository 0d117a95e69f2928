//! The links of a forest: what each child's identity and its paths say, and whether they say the same.
//!
//! Owns: the states of a link, circles, which images open. Must not know: how files were found, how a link is mended.

use super::help::Help;
use super::{ForestImage, ForestParent};
use crate::chain::{Chain, ChainOptions, FoundFile, Index};
use crate::error::Result;
use crate::link::ImageId;
use crate::storage::FileIdentity;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How it stands with the link between a child and its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum LinkState {
    /// The child's paths lead to the right file.
    Linked,
    /// The right file is here, and no path of the child's leads to it.
    Moved,
    /// The right file is here, and a path of the child's leads to another one.
    WrongPath,
    /// A path leads to a file of another identity, and no file here has the right one: the parent was changed or replaced
    /// after the child was made.
    Mismatch,
    /// A path leads to an image that does not open, and no file here has the right identity.
    Broken,
    /// Neither a path nor the identity leads anywhere.
    Missing,
    /// Several files have the identity, and no path of the child's leads to one of them.
    Ambiguous,
    /// The right file has sectors of another size.
    Unstackable,
    /// The parents lead back to the child.
    Circular,
    /// The child stands on a raw file, which has no identity.
    Raw,
}

/// One image while its link is judged.
pub(super) struct Entry {
    pub(super) image: ForestImage,
    pub(super) file: FoundFile,
    pub(super) id: Option<ImageId>,
    pub(super) sector: u32,
    /// The identities of its parent.
    pub(super) wanted: Option<Vec<ImageId>>,
    /// The files its paths lead to, real paths.
    pub(super) hits: Vec<PathBuf>,
    /// Those of them that take no map.
    pub(super) unmapped: Vec<PathBuf>,
}

/// Where a parent is.
#[derive(Clone, Debug)]
enum At {
    /// An image of the forest.
    Inside(usize),
    /// An image elsewhere, and whether its own chain opens.
    Outside(PathBuf, bool),
}

/// What was found out about one link.
struct Link {
    state: LinkState,
    parent: Option<At>,
    wrong: Option<PathBuf>,
    candidates: Vec<PathBuf>,
}

impl Link {
    fn new(state: LinkState) -> Self {
        Self { state, parent: None, wrong: None, candidates: Vec::new() }
    }
}

/// All links of a forest.
pub(super) struct Links<'a> {
    entries: &'a [Entry],
    links: Vec<Option<Link>>,
    children: Vec<Vec<usize>>,
    opens: Vec<bool>,
}

/// What links are judged by.
struct Judge<'a> {
    entries: &'a [Entry],
    by_id: HashMap<ImageId, Vec<usize>>,
    by_file: HashMap<FileIdentity, usize>,
    broken: &'a [(PathBuf, String)],
    options: ChainOptions,
    /// The images of the directories that the caller wants searched, when there are any.
    elsewhere: Option<Index>,
    /// Images outside the directory that were opened: their identity, and whether their chain opens.
    outside: HashMap<PathBuf, Option<(ImageId, bool)>>,
}

impl<'a> Links<'a> {
    /// Judges the links of `entries`; `broken` are the files that do not open.
    ///
    /// # Errors
    /// Those of searching the directories of `options`.
    pub(super) fn new(entries: &'a [Entry], broken: &'a [(PathBuf, String)], options: &ChainOptions) -> Result<Self> {
        let searched = options.searched();
        let mut judge = Judge {
            entries,
            by_id: HashMap::new(),
            by_file: entries.iter().enumerate().map(|(at, entry)| (entry.file.identity, at)).collect(),
            broken,
            options: options.clone().locked(false),
            elsewhere: if searched.is_empty() { None } else { Some(Index::build(searched)?) },
            outside: HashMap::new(),
        };
        for (at, entry) in entries.iter().enumerate() {
            if let Some(id) = entry.id {
                judge.by_id.entry(id).or_default().push(at);
            }
        }
        let links = (0..entries.len()).map(|at| judge.link(at)).collect();
        let mut all = Self { entries, links, children: vec![Vec::new(); entries.len()], opens: Vec::new() };
        all.walk();
        for at in 0..entries.len() {
            if let Some(parent) = all.parent(at) {
                all.children[parent].push(at);
            }
        }
        Ok(all)
    }

    /// The image that `at` stands on, when it is one of the forest.
    fn parent(&self, at: usize) -> Option<usize> {
        match self.links[at].as_ref()?.parent {
            Some(At::Inside(parent)) => Some(parent),
            _ => None,
        }
    }

    /// Finds the circles, and which images open: each image is looked at once, below it those that are not known yet.
    fn walk(&mut self) {
        let mut known: Vec<Option<bool>> = vec![None; self.entries.len()];
        for start in 0..self.entries.len() {
            let mut trail: Vec<usize> = Vec::new();
            let mut place: HashMap<usize, usize> = HashMap::new();
            let mut next = Some(start);
            while let Some(at) = next.filter(|&at| known[at].is_none()) {
                if let Some(&first) = place.get(&at) {
                    for &member in &trail[first..] {
                        if let Some(link) = &mut self.links[member] {
                            link.state = LinkState::Circular;
                        }
                    }
                    break;
                }
                place.insert(at, trail.len());
                trail.push(at);
                next = self.parent(at);
            }
            for &at in trail.iter().rev() {
                let below = match self.links[at].as_ref().map(|link| (link.state, &link.parent)) {
                    None => true,
                    Some((LinkState::Linked, Some(At::Inside(parent)))) => known[*parent].unwrap_or(false),
                    Some((LinkState::Linked, Some(At::Outside(_, opens)))) => *opens,
                    Some(_) => false,
                };
                known[at] = Some(below);
            }
        }
        self.opens = known.into_iter().map(|known| known.unwrap_or(false)).collect();
    }

    /// The report of each image, in the order of the entries; `root` is the directory all of them lie below.
    pub(super) fn into_images(self, root: &Path) -> Vec<ForestImage> {
        let path = |at: usize| self.entries[at].file.path.clone();
        let report = |(at, entry): (usize, &Entry)| {
            let mut image = entry.image.clone();
            image.children = self.children[at].iter().map(|&child| path(child)).collect();
            image.leaf = image.children.is_empty();
            image.opens = self.opens[at];
            if let (Some(link), Some(parent)) = (&self.links[at], &mut image.parent) {
                let found = link.parent.as_ref().map(|found| match found {
                    At::Inside(parent) => path(*parent),
                    At::Outside(path, _) => path.clone(),
                });
                (parent.state, parent.path) = (link.state, found);
                (parent.wrong, parent.candidates) = (link.wrong.clone(), link.candidates.clone());
            }
            image.help = self.help(at, &image, root);
            image
        };
        self.entries.iter().enumerate().map(report).collect()
    }

    fn help(&self, at: usize, image: &ForestImage, root: &Path) -> Option<Help> {
        match &image.parent {
            Some(parent) if parent.state != LinkState::Linked => Help::link(&image.path, parent),
            Some(ForestParent { path: Some(path), .. }) if !self.entries[at].unmapped.contains(path) => {
                Some(Help::map(&image.path, path))
            }
            Some(_) if image.leaf && image.opens => self.merge(at, image, root),
            _ => None,
        }
    }

    /// The merge of a leaf into the deepest file that nobody else stands on, nor on a file between.
    fn merge(&self, leaf: usize, image: &ForestImage, root: &Path) -> Option<Help> {
        let mut depth = 0;
        let (mut at, mut scattered) = (leaf, false);
        // Opening takes all parents, merging those without other children only.
        let mut merging = true;
        while let Some(parent) = self.parent(at) {
            let path = &self.entries[parent].file.path;
            if !self.entries[at].unmapped.contains(path) {
                return None;
            }
            scattered |= path.parent() != self.entries[at].file.path.parent();
            merging &= self.children[parent].len() == 1;
            depth += usize::from(merging);
            at = parent;
        }
        let outside = self.links[at].is_some();
        (depth > 0 && !outside).then(|| Help::merge(&image.path, depth, scattered.then_some(root)))
    }
}

impl Judge<'_> {
    fn link(&mut self, at: usize) -> Option<Link> {
        let entry = &self.entries[at];
        let wanted = entry.wanted.as_ref()?;
        if wanted.is_empty() {
            return Some(Link::new(LinkState::Raw));
        }
        let mut alike: Vec<usize> = wanted.iter().filter_map(|id| self.by_id.get(id)).flatten().copied().collect();
        let names_itself = alike.contains(&at);
        alike.retain(|&other| other != at);
        let mut link = Link::new(LinkState::Missing);
        for hit in &entry.hits {
            let inside = file_identity(hit).and_then(|file| self.by_file.get(&file).copied());
            match inside {
                Some(parent) if alike.contains(&parent) => return Some(self.stacked(at, At::Inside(parent))),
                Some(_) => {}
                None => match self.look(hit) {
                    Some((id, opens)) if wanted.contains(&id) => {
                        return Some(self.stacked(at, At::Outside(hit.clone(), opens)));
                    }
                    _ => {}
                },
            }
            if link.wrong.is_none() {
                let is_broken = self.broken.iter().any(|(path, _)| path == hit);
                link.state = if is_broken { LinkState::Broken } else { LinkState::Mismatch };
                link.wrong = Some(hit.clone());
            }
        }
        let mut found: Vec<At> = alike.into_iter().map(At::Inside).collect();
        if found.is_empty() && !names_itself {
            found = self.searched(wanted);
        }
        match (found.len(), found.pop()) {
            (1, Some(only)) => {
                let found = self.stacked(at, only);
                let misled = if link.wrong.is_some() { LinkState::WrongPath } else { LinkState::Moved };
                link.state = if found.state == LinkState::Linked { misled } else { found.state };
                link.parent = found.parent;
            }
            (_, Some(last)) => {
                link.state = LinkState::Ambiguous;
                link.candidates = found.into_iter().chain([last]).map(|at| self.path(at)).collect();
            }
            (_, None) if names_itself => link.state = LinkState::Circular,
            (_, None) => {}
        }
        Some(link)
    }

    /// The images with one of these identities in the searched directories, those of the forest left out.
    fn searched(&mut self, wanted: &[ImageId]) -> Vec<At> {
        let found = self.elsewhere.as_ref().map(|index| index.all(wanted)).unwrap_or_default();
        let outside = found.into_iter().filter(|file| !self.by_file.contains_key(&file.identity));
        let paths: Vec<PathBuf> = outside.map(|file| file.path.clone()).collect();
        let opens = |path: &Path, judge: &mut Self| judge.look(path).is_some_and(|(_, opens)| opens);
        paths.into_iter().map(|path| At::Outside(path.clone(), opens(&path, self))).collect()
    }

    fn path(&self, at: At) -> PathBuf {
        match at {
            At::Inside(at) => self.entries[at].file.path.clone(),
            At::Outside(path, _) => path,
        }
    }

    fn stacked(&self, child: usize, parent: At) -> Link {
        let fits = match parent {
            At::Inside(parent) => self.entries[parent].sector == self.entries[child].sector,
            At::Outside(..) => true,
        };
        let state = if fits { LinkState::Linked } else { LinkState::Unstackable };
        Link { parent: Some(parent), ..Link::new(state) }
    }

    /// The identity of an image outside the directory, and whether its chain opens.
    fn look(&mut self, path: &Path) -> Option<(ImageId, bool)> {
        if let Some(known) = self.outside.get(path) {
            return *known;
        }
        let opened = Chain::open_as_far(path, &self.options).ok();
        let found = opened.and_then(|(layers, broken)| Some((layers.first()?.image().id()?, broken.is_none())));
        self.outside.insert(path.to_path_buf(), found);
        found
    }
}

fn file_identity(path: &Path) -> Option<FileIdentity> {
    fs::metadata(path).ok().map(|metadata| FileIdentity::of(&metadata))
}
