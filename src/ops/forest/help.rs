//! Which command would help.
//!
//! Owns: the commands of the program, spelled so that a shell takes them. Must not know: how a link was judged.

use super::{ForestParent, LinkState};
use std::path::Path;

/// A command that would help, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Help {
    /// The command, for a POSIX shell. A word in capitals stands for what only the user knows.
    pub command: String,
    /// What it does, or when it is the right one.
    pub when: String,
}

impl Help {
    fn new(command: String, when: impl Into<String>) -> Self {
        Self { command, when: when.into() }
    }

    /// For a file that does not open.
    pub(super) fn broken(path: &Path) -> Self {
        Self::new(format!("vhdkit check {}", quoted(path)), "says what is wrong with the file")
    }

    /// For a leaf whose chain opens: `depth` files can be merged; `scattered` below this directory.
    pub(super) fn merge(leaf: &Path, depth: usize, scattered: Option<&Path>) -> Self {
        let policy = scattered.map_or_else(String::new, |root| format!(" --parents under={}", quoted(root)));
        let files = if depth == 1 { "this file into its parent".to_owned() } else { format!("{depth} files into one") };
        Self::new(
            format!("vhdkit merge {} --depth {depth}{policy}", quoted(leaf)),
            format!("merges {files}; nothing else stands on them"),
        )
    }

    /// For a child whose paths lead to its parent over a map only.
    pub(super) fn map(child: &Path, parent: &Path) -> Self {
        Self::new(relink(child, &quoted(parent)), "makes it open without the map")
    }

    /// For a link that does not hold.
    pub(super) fn link(child: &Path, parent: &ForestParent) -> Option<Self> {
        let file = |path: &Option<std::path::PathBuf>| path.as_deref().map(quoted);
        Some(match parent.state {
            LinkState::Moved => Self::new(relink(child, &file(&parent.path)?), "points it at where its parent is now"),
            LinkState::WrongPath => {
                Self::new(relink(child, &file(&parent.path)?), "points it at its parent instead of a file like it")
            }
            LinkState::Mismatch => Self::new(
                relink(child, &file(&parent.wrong)?) + " --ignore-id-mismatch",
                "only if that file holds exactly what the child was made over",
            ),
            LinkState::Broken => Self::new(
                format!("vhdkit check {}", file(&parent.wrong)?),
                "says what is wrong with the file that its paths lead to",
            ),
            LinkState::Ambiguous => Self::new(relink(child, "FILE"), "FILE being the right one of those named"),
            LinkState::Missing => Self::new(
                format!("vhdkit reparent {} --search DIR", quoted(child)),
                "DIR being a directory in which its parent may be",
            ),
            LinkState::Raw => Self::new(
                format!("vhdkit info --chain {} --parent FILE", quoted(child)),
                "FILE being the raw file it was made over",
            ),
            LinkState::Linked | LinkState::Unstackable | LinkState::Circular => return None,
        })
    }
}

fn relink(child: &Path, parent: &str) -> String {
    format!("vhdkit reparent {} --parent {parent}", quoted(child))
}

/// `path` as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./,:=+@%-".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_each() {
        for (path, word) in [
            ("/vms/a-1.vhdx", "/vms/a-1.vhdx"),
            ("/vms/a b.vhdx", "'/vms/a b.vhdx'"),
            ("/it's", "'/it'\\''s'"),
            ("/$(reboot)", "'/$(reboot)'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
