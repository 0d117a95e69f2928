//! Other images that stand on the files a merge changes.
//!
//! Owns: which files of the chain they are looked for of. Must not know: how they are found, how they are given up.

use super::{MergeOptions, Siblings, Span};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::link::ImageId;
use crate::ops::children;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The images near `chain` whose parent is a file that the merge of `span` changes or deletes, and that are not of the
/// chain themselves. Sorted. A file that cannot be opened is no image to us and is passed over.
pub(super) fn find(chain: &Chain, span: Span, options: &MergeOptions) -> Result<Vec<PathBuf>> {
    let layers = chain.layers();
    let real = |path: &Path| fs::canonicalize(path).ok();
    let own: BTreeSet<PathBuf> = layers.iter().filter_map(|layer| layer.path().and_then(real)).collect();
    // The source itself goes on showing what it showed, so its children are safe unless it is deleted.
    let first = if options.delete { span.source } else { span.source + 1 };
    let ids: Vec<ImageId> = layers[first..=span.target].iter().filter_map(|layer| layer.image().id()).collect();
    children::find(&ids, &own, &options.search)
}

/// Refuses to go on when there are any and they are not given up.
pub(super) fn require_none(siblings: &[PathBuf], policy: Siblings) -> Result<()> {
    if policy == Siblings::Invalidate || siblings.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = siblings.iter().map(|path| path.display().to_string()).collect();
    let message = format_args!("other images stand on files that would change: {}", names.join(", ")).to_string();
    let hint = "merge or move them first, or give them up with --siblings invalidate";
    Err(Error::new(ErrorKind::Refused, message).with_hint(hint))
}
