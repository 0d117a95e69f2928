//! Merging the files of a chain into one of its ancestors, in place.
//!
//! Owns: the request, its refusals, and the report. Must not know: formats beyond what a link and a size mean.
//!
//! Depth counts from the leaf, and the leaf is depth 1. Merging *s..t* takes the files of depth s to t-1 into the file
//! of depth t, nearest the leaf first, so that t shows exactly what s showed. Every byte written to t is one that a file
//! between s and t-1 decides anyway, so what s and every file nearer the leaf show never changes, at no instant: an
//! interruption costs time, and running the merge again finishes it.

mod checkpoint;
mod ending;
mod plan;
mod run;
mod siblings;

pub(super) use checkpoint::BesideTarget;
pub use checkpoint::CheckpointStore;
pub use plan::{MergePlan, PlannedFile};
pub use run::{MergeReport, merge_chain};

use ending::Note;

use crate::chain::{Chain, ChainOptions, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::storage::FileStorage;
use crate::units::GIB;
use crate::watch::Watch;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes moved between two checkpoints: what an interruption costs at most, against five syncs to save it.
const CHECKPOINT_EVERY: u64 = GIB;

/// What to do about other children of the files that change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Siblings {
    /// Refuse the merge, naming them.
    #[default]
    Refuse,
    /// Go on; they no longer show what they showed, and a VHDX one will no longer open.
    Invalidate,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Depth(usize),
    File(PathBuf),
}

/// Which files to merge into which, and how.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    source: usize,
    target: Target,
    relink: bool,
    delete: bool,
    siblings: Siblings,
    search: Vec<PathBuf>,
    jobs: usize,
    scan_zeros: bool,
    chain: ChainOptions,
    restart: bool,
    checkpoint_every: u64,
    store: Option<Arc<dyn CheckpointStore>>,
}

impl MergeOptions {
    fn with(source: usize, target: Target) -> Self {
        Self {
            source,
            target,
            relink: false,
            delete: false,
            siblings: Siblings::default(),
            search: Vec::new(),
            jobs: 0,
            scan_zeros: true,
            chain: ChainOptions::default(),
            restart: false,
            checkpoint_every: CHECKPOINT_EVERY,
            store: None,
        }
    }

    /// Form 1: the `depth` files nearest the leaf go into the next one.
    #[must_use]
    pub fn depth(depth: usize) -> Self {
        Self::with(1, Target::Depth(depth.saturating_add(1)))
    }

    /// Form 2: the files of depth `source` to `target` - 1 go into the file of depth `target`.
    #[must_use]
    pub fn between(source: usize, target: usize) -> Self {
        Self::with(source, Target::Depth(target))
    }

    /// Everything from the leaf down goes into the ancestor `file`.
    #[must_use]
    pub fn into_file(file: impl Into<PathBuf>) -> Self {
        Self::with(1, Target::File(file.into()))
    }

    /// After a merge that does not start at the leaf: points the child of the source at the target.
    #[must_use]
    pub fn relink(mut self, relink: bool) -> Self {
        self.relink = relink;
        self
    }

    /// Deletes the merged files once everything is durable.
    #[must_use]
    pub fn delete(mut self, delete: bool) -> Self {
        self.delete = delete;
        self
    }

    /// What to do about other children of the files that change.
    #[must_use]
    pub fn siblings(mut self, siblings: Siblings) -> Self {
        self.siblings = siblings;
        self
    }

    /// A further directory to look for siblings in, and below it; the directories of the chain's files always are.
    #[must_use]
    pub fn search(mut self, directory: impl Into<PathBuf>) -> Self {
        self.search.push(directory.into());
        self
    }

    /// How many threads copy; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// Whether data bound for unallocated blocks of a root target is read first, so that zeros are not allocated
    /// (default true).
    #[must_use]
    pub fn scan_zeros(mut self, scan: bool) -> Self {
        self.scan_zeros = scan;
        self
    }

    /// How the chain is opened.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }

    /// Copies everything again, whatever an interrupted merge left behind (default false).
    #[must_use]
    pub fn restart(mut self, restart: bool) -> Self {
        self.restart = restart;
        self
    }

    /// How many bytes are moved between two checkpoints, rounded up to a block of the target; default 1 GiB. A cancelled
    /// merge always leaves one. Less than the 256 MiB that are made durable at a time costs speed.
    #[must_use]
    pub fn checkpoint_every(mut self, bytes: u64) -> Self {
        self.checkpoint_every = bytes;
        self
    }

    /// Keeps the checkpoint there instead of in a file beside the target.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn CheckpointStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// The layers the request means in `chain`.
    fn layers(&self, chain: &Chain) -> Result<Span> {
        let count = chain.layers().len();
        let target = match &self.target {
            Target::Depth(depth) => *depth,
            Target::File(file) => depth_of(chain, file)?,
        };
        let source = self.source;
        let fail = |message: String| {
            let hint = "depth counts from the leaf, which is 1; `vhdkit info --chain` lists the files with their depth";
            Err(Error::new(ErrorKind::Chain, message).with_hint(hint))
        };
        if source == 0 || source >= target {
            return fail(format!(
                "cannot merge depth {source} into depth {target}: the source must be nearer the leaf"
            ));
        }
        if count == 1 {
            return fail(format!("{} is not a differencing image: there is nothing to merge", chain.leaf().name()));
        }
        if target > count {
            return fail(format!("there is no file of depth {target}: the chain has {count} files"));
        }
        if self.relink && source == 1 {
            return fail("nothing to relink: the merge starts at the leaf, which has no child".to_owned());
        }
        if self.delete && source > 1 && !self.relink {
            let message = format!("deleting the merged files would orphan the file of depth {}", source - 1);
            return Err(Error::new(ErrorKind::Refused, message).with_hint("add --relink to point it at the target"));
        }
        Ok(Span { source: source - 1, target: target - 1, relink: self.relink })
    }
}

/// The layers of a merge by index, leaf = 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    source: usize,
    target: usize,
    relink: bool,
}

impl Span {
    /// The layers that change and must be held: the survivor when it is relinked, the merged ones, the target.
    fn affected(self) -> std::ops::Range<usize> {
        let first = if self.relink { self.source.saturating_sub(1) } else { self.source };
        first..self.target + 1
    }
}

fn depth_of(chain: &Chain, file: &Path) -> Result<usize> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let wanted = real(file)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, "the file to merge into does not exist").with_path(file))?;
    let index = chain.layers().iter().position(|layer| layer.path().and_then(real).as_ref() == Some(&wanted));
    index.map(|index| index + 1).ok_or_else(|| {
        Error::new(ErrorKind::Chain, "not a file of this chain")
            .with_path(file)
            .with_hint("`vhdkit info --chain` lists the files of the chain")
    })
}

/// Opens the chain at `leaf` and locks every file the merge will change, images opened for reading.
fn open_held(leaf: &Path, options: &MergeOptions) -> Result<(Chain, Span)> {
    // The depth of a target named by file is known only from the chain, so it is looked at before it is locked; what
    // counts is checked again under the locks.
    let chain = Chain::open(leaf, &options.chain.clone().locked(false))?;
    let span = options.layers(&chain)?;
    drop(chain);
    let chain = Chain::open(leaf, &options.chain.clone().hold(span.affected()))?;
    let again = options.layers(&chain)?;
    if again == span {
        Ok((chain, span))
    } else {
        Err(Error::new(ErrorKind::InUse, "the chain changed while it was being opened").with_path(leaf))
    }
}

/// What a merge would do, without doing it.
///
/// # Errors
/// Those of [`merge`] that come before its first write, except siblings and space, which the plan lists instead; `Refused`
/// when an interrupted merge has nothing left but files to relink or delete.
pub fn plan_merge(leaf: impl AsRef<Path>, options: &MergeOptions) -> Result<MergePlan> {
    let leaf = leaf.as_ref();
    if let Some(note) = Note::of(leaf, options)
        && note.pending(leaf, options)?.is_some()
    {
        return Err(ending::only_the_end(leaf));
    }
    let chain = Chain::open(leaf, &options.chain.clone())?;
    let span = options.layers(&chain)?;
    plan::make(&chain, span, options)
}

/// Merges files of the chain whose leaf is at `leaf`.
///
/// All affected files are locked first, then everything is checked, then written; whatever ends it early (an error, a
/// cancel, the machine) leaves every file nearer the leaf than the target showing what it showed, and calling it again
/// finishes it. One that ends while it relinks and deletes is finished too, by a note beside the leaf; only files that
/// are as it left them are deleted then.
///
/// # Errors
/// Before the first write: `Chain` (depth), `ParentNotFound` and its kin, `InUse`, `ReadOnly`, `Refused` (siblings,
/// a saved state), `NoSpace`. Later: `Io`, `NoSpace`, `Corrupt` (a block that cannot be read), `Cancelled`.
pub fn merge(leaf: impl AsRef<Path>, options: &MergeOptions, watch: &Watch<'_>) -> Result<MergeReport> {
    let leaf = leaf.as_ref();
    let note = Note::of(leaf, options);
    if let Some(note) = &note
        && let Some(begun) = note.pending(leaf, options)?
    {
        return note.finish(leaf, options, begun);
    }
    let (mut chain, span) = open_held(leaf, options)?;
    let plan = plan::make(&chain, span, options)?;
    plan.require_startable(options.siblings)?;
    let beside = plan.target.path.as_deref().and_then(|target| BesideTarget::new(target, "merge"));
    let store = match (&options.store, &beside) {
        (Some(store), _) => Some(&**store),
        (None, Some(beside)) => Some(beside as &dyn CheckpointStore),
        (None, None) => None,
    };
    let mut report = run::Run { span, options, watch, store, note: note.as_ref() }.run(&mut chain)?;
    report.siblings = plan.siblings;
    let merged: Vec<PathBuf> = chain.layers()[span.source..span.target]
        .iter()
        .filter_map(|layer| layer.path().map(Path::to_path_buf))
        .collect();
    // The locks outlive the images: a merge that began before the rest is done would have its files taken away.
    let _held: Vec<Arc<FileStorage>> = chain.layers().iter().filter_map(Layer::held_file).collect();
    chain.close()?;
    if options.delete {
        report.deleted = run::delete(merged)?;
    }
    if let Some(store) = store {
        store.clear()?;
    }
    if let Some(note) = note.filter(|_| span.relink || options.delete) {
        note.clear()?;
    }
    Ok(report)
}
