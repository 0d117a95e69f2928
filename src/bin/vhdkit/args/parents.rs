//! The options that say where a chain's parents are.
//!
//! Owns: how they are written and what they mean to the library. Must not know: the verbs.

use clap::Args;
use std::path::{Path, PathBuf};
use vhdkit::chain::{ChainOptions, ParentPolicy, PathMap};

/// Where parents may come from.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Parents")]
pub(crate) struct ParentArgs {
    /// The file of the next parent, whatever the images say; repeat it for further ones, nearest the leaf first. Its
    /// identity is checked all the same
    #[arg(long = "parent", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
}

/// Where parents may come from when they are not named.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Parents")]
pub(crate) struct PlaceArgs {
    /// Which files an image may name as its parent: those in its own directory (same-dir), those below a directory
    /// (under=DIR), any file (any), or only those given with --parent (none)
    #[arg(long = "parents", value_name = "POLICY", default_value = "same-dir", value_parser = policy)]
    policy: ParentPolicy,
    /// The Windows directory FROM, as images spell it, is DIR here; repeatable. FROM is a drive, a share, or a directory
    /// of one ('D:\VMs', '\\srv\share'), with or without \\?\, in any case. Files below DIR may then be opened
    #[arg(long = "map", value_name = "FROM=DIR", value_parser = map)]
    maps: Vec<PathMap>,
    /// Search DIR and everything below it, by identity, for parents that no path leads to; repeatable. Files below DIR
    /// may then be opened
    #[arg(long = "search", value_name = "DIR", value_parser = directory)]
    pub(crate) search: Vec<PathBuf>,
}

impl PlaceArgs {
    /// How a chain is opened.
    pub(crate) fn options(&self) -> ChainOptions {
        let options = ChainOptions::new().policy(self.policy.clone());
        let options = self.maps.iter().cloned().fold(options, ChainOptions::path_map);
        self.search.iter().fold(options, ChainOptions::search)
    }
}

impl ParentArgs {
    /// How a chain is opened, all `--parent` files counting as parents of its leaf.
    pub(crate) fn options(&self) -> ChainOptions {
        self.options_after(0)
    }

    /// As [`options`](Self::options), the first `used` files being spoken for.
    pub(crate) fn options_after(&self, used: usize) -> ChainOptions {
        self.files.iter().skip(used).fold(self.places.options(), ChainOptions::parent)
    }
}

/// `FROM=DIR`, cut at the first `=`: a directory here may have one in its name.
fn map(text: &str) -> Result<PathMap, String> {
    let (from, to) = text.split_once('=').ok_or("use FROM=DIR, such as 'D:\\VMs=/srv/vms'")?;
    PathMap::new(from, directory(to)?).map_err(|error| error.to_string())
}

fn directory(text: &str) -> Result<PathBuf, String> {
    if Path::new(text).is_dir() { Ok(text.into()) } else { Err(format!("{text:?} is not a directory")) }
}

fn policy(text: &str) -> Result<ParentPolicy, String> {
    match text.split_once('=') {
        None if text == "same-dir" => Ok(ParentPolicy::SameDirectory),
        None if text == "any" => Ok(ParentPolicy::Anywhere),
        None if text == "none" => Ok(ParentPolicy::Explicit),
        Some(("under", name)) => directory(name).map(ParentPolicy::Under),
        _ => Err("use same-dir, under=DIR, any or none".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        assert_eq!(policy("same-dir"), Ok(ParentPolicy::SameDirectory));
        assert_eq!(policy("any"), Ok(ParentPolicy::Anywhere));
        assert_eq!(policy("none"), Ok(ParentPolicy::Explicit));
        assert_eq!(policy("under=/"), Ok(ParentPolicy::Under("/".into())));
        assert!(policy("under=/no/such/directory").is_err());
        assert!(policy("under").is_err());
        assert!(policy("same-dir=x").is_err());
    }

    #[test]
    fn maps_are_read() {
        assert_eq!(map("D:\\VMs=/"), PathMap::new("D:\\VMs", "/").map_err(|error| error.to_string()));
        assert!(map("\\\\srv\\share=/").is_ok());
        for wrong in ["", "D:\\VMs", "D:\\VMs=", "D:\\VMs=/no/such/directory", "VMs=/", "=/"] {
            assert!(map(wrong).is_err(), "{wrong}");
        }
    }
}
