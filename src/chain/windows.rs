//! Absolute Windows paths on another system.
//!
//! Owns: the ways Windows spells the root of a path, when one path lies below another, and the table that says where such
//! a path is here. Must not know: which files exist, what may be opened.

use super::locate::MAX_PATH_COMPONENTS;
use crate::error::{Error, ErrorKind, Result};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// The prefixes that switch Windows' own parsing of a path off, or name a device.
const VERBATIM: [&str; 3] = ["\\\\?\\", "\\\\.\\", "\\??\\"];
/// The part that stands for the root of a network path; server and share are parts of their own.
const UNC: &str = "\\\\";

/// An absolute Windows path: its root, then one part per directory. `.` and `..` are resolved by their names alone, as
/// Windows does it, so that `D:\VMs\..\x` does not lie below `D:\VMs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WindowsPath {
    parts: Vec<String>,
}

impl WindowsPath {
    /// Reads `text`: `D:\...`, `\\server\share\...`, `\\?\D:\...`, `\\?\UNC\server\share\...`, `\\?\Volume{...}\...`, and
    /// `\...` or `/...`, which has no drive. `None` for a relative path, a drive without a root (`D:name`), any other
    /// device, and more parts than a path can have.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.replace('/', "\\");
        let verbatim = VERBATIM.iter().find_map(|prefix| text.strip_prefix(prefix));
        let (root, rest) = match verbatim {
            Some(rest) => verbatim_root(rest)?,
            None => plain_root(&text)?,
        };
        // Windows does not climb out of a share.
        let floor: usize = if root == UNC { 3 } else { 1 };
        let mut parts = vec![root];
        for part in rest.split('\\').filter(|part| !part.is_empty() && *part != ".") {
            match part {
                ".." if parts.len() > floor => drop(parts.pop()),
                ".." => {}
                name if parts.len() < MAX_PATH_COMPONENTS => parts.push(name.to_owned()),
                _ => return None,
            }
        }
        let names_a_server = parts.first().is_none_or(|root| root != UNC) || parts.len() > 1;
        names_a_server.then_some(Self { parts })
    }

    /// The parts by which it lies below `other`, none when it is the same path; `None` when it lies elsewhere. Case does
    /// not count, and a part is compared as a whole.
    fn below(&self, other: &Self) -> Option<&[String]> {
        let (head, tail) = self.parts.split_at_checked(other.parts.len())?;
        let same = |(one, two): (&String, &String)| one.to_lowercase() == two.to_lowercase();
        head.iter().zip(&other.parts).all(same).then_some(tail)
    }

    /// How Windows spells it, with `more` below it.
    fn spell<'a>(&'a self, more: impl Iterator<Item = &'a str>) -> String {
        let mut parts = self.parts.iter().map(String::as_str).chain(more);
        let root = parts.next().unwrap_or_default();
        let rest: Vec<&str> = parts.collect();
        let separator = if root.ends_with('\\') { "" } else { "\\" };
        format!("{root}{separator}{}", rest.join("\\"))
    }
}

/// The root of what follows `\\?\`, and the rest.
fn verbatim_root(text: &str) -> Option<(String, &str)> {
    if let Some(rest) = strip_prefix_any_case(text, "UNC\\") {
        return Some((UNC.to_owned(), rest));
    }
    if strip_prefix_any_case(text, "Volume{").is_some() {
        let (volume, rest) = text.split_once('\\').unwrap_or((text, ""));
        return Some((format!("\\\\?\\{volume}"), rest));
    }
    drive(text)
}

fn plain_root(text: &str) -> Option<(String, &str)> {
    match text.strip_prefix(UNC) {
        Some(rest) => Some((UNC.to_owned(), rest)),
        None => drive(text).or_else(|| Some(("\\".to_owned(), text.strip_prefix('\\')?))),
    }
}

/// `D:` and what follows its root.
fn drive(text: &str) -> Option<(String, &str)> {
    let (letter, rest) = text.split_once(':')?;
    let is_letter = letter.len() == 1 && letter.starts_with(|c: char| c.is_ascii_alphabetic());
    let rooted = rest.is_empty() || rest.starts_with('\\');
    (is_letter && rooted).then(|| (format!("{letter}:"), rest))
}

fn strip_prefix_any_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, tail) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(tail)
}

/// Whether `path` is an absolute Windows path.
pub(crate) fn is_windows_path(path: &str) -> bool {
    WindowsPath::parse(path).is_some()
}

/// Where the files below one Windows directory are on this machine; see [`ChainOptions::map`](super::ChainOptions::map).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathMap {
    from: WindowsPath,
    to: PathBuf,
}

impl PathMap {
    /// `from` on Windows is `to` here.
    ///
    /// # Errors
    /// `InvalidInput` when `from` is not an absolute Windows path.
    pub fn new(from: &str, to: impl Into<PathBuf>) -> Result<Self> {
        let from = WindowsPath::parse(from).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, format_args!("{from:?} is not an absolute Windows path")).with_hint(
                "give a drive, a share or a directory of one: D:\\VMs, \\\\server\\share, \\\\?\\Volume{...}",
            )
        })?;
        Ok(Self { from, to: to.into() })
    }

    /// The local directory.
    pub(super) fn to(&self) -> &Path {
        &self.to
    }

    /// How far down its Windows directory lies: of two maps the deeper one says more.
    pub(super) fn depth(&self) -> usize {
        self.from.parts.len()
    }

    /// The parts below [`to`](Self::to) that lead to `path`.
    pub(super) fn apply<'a>(&self, path: &'a WindowsPath) -> Option<&'a [String]> {
        path.below(&self.from)
    }

    /// What Windows calls the file whose real path is `real`; `None` when it lies elsewhere or its path is not Unicode.
    pub(super) fn windows_path(&self, real: &Path) -> Option<String> {
        let to = std::fs::canonicalize(&self.to).ok()?;
        let parts: Option<Vec<&str>> =
            real.strip_prefix(to).ok()?.components().map(Component::as_os_str).map(OsStr::to_str).collect();
        Some(self.from.spell(parts?.into_iter()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::unwrap_used)]

    use super::*;

    fn parts(text: &str) -> Option<Vec<String>> {
        WindowsPath::parse(text).map(|path| path.parts)
    }

    #[test]
    fn every_spelling_of_a_root_is_understood() {
        let drive = parts("D:\\VMs\\a.vhdx");
        assert_eq!(drive.as_deref().unwrap(), ["D:", "VMs", "a.vhdx"]);
        for same in ["\\\\?\\D:\\VMs\\a.vhdx", "\\\\.\\D:\\VMs\\a.vhdx", "\\??\\D:\\VMs\\a.vhdx", "D:/VMs//.\\a.vhdx"] {
            assert_eq!(parts(same), drive, "{same}");
        }
        let share = parts("\\\\srv\\share\\a.vhdx");
        assert_eq!(share.as_deref().unwrap(), ["\\\\", "srv", "share", "a.vhdx"]);
        for same in ["\\\\?\\UNC\\srv\\share\\a.vhdx", "\\\\?\\unc\\srv\\share\\a.vhdx", "//srv/share/a.vhdx"] {
            assert_eq!(parts(same), share, "{same}");
        }
        assert_eq!(parts("\\\\?\\Volume{12-34}\\a").unwrap(), ["\\\\?\\Volume{12-34}", "a"]);
        assert_eq!(parts("/vms/a.vhd").unwrap(), ["\\", "vms", "a.vhd"]);
        assert_eq!(parts("C:").unwrap(), ["C:"]);
        for no_root in
            ["", ".\\a", "a.vhdx", "..\\a", "C:a", "1:\\a", "CD:\\a", "\\\\", "\\\\?\\", "\\\\?\\GLOBALROOT\\a"]
        {
            assert_eq!(parts(no_root), None, "{no_root}");
        }
        assert_eq!(parts(&"\\a".repeat(MAX_PATH_COMPONENTS)), None);
    }

    /// Bug this finds: a path that looks as if it lay in a mapped directory and climbs out of it.
    #[test]
    fn dots_are_resolved_before_paths_are_compared() {
        assert_eq!(parts("D:\\VMs\\..\\x").unwrap(), ["D:", "x"]);
        assert_eq!(parts("D:\\..\\..\\x").unwrap(), ["D:", "x"]);
        assert_eq!(parts("\\\\srv\\share\\..\\..\\x").unwrap(), ["\\\\", "srv", "share", "x"]);
    }

    #[test]
    fn a_prefix_ends_where_a_part_ends() {
        let map = |from: &str| PathMap::new(from, "/srv").unwrap();
        let apply =
            |from: &str, path: &str| map(from).apply(&WindowsPath::parse(path).unwrap()).map(<[String]>::to_vec);
        let tail = Some(vec!["a".to_owned(), "B.vhdx".to_owned()]);
        assert_eq!(apply("D:\\VMs", "d:\\vms\\a\\B.vhdx"), tail);
        assert_eq!(apply("D:\\VMs\\", "\\\\?\\D:\\VMS\\a\\B.vhdx"), tail);
        assert_eq!(apply("\\\\?\\D:\\vms", "D:\\VMs\\a\\B.vhdx"), tail);
        assert_eq!(apply("d:", "D:\\a\\B.vhdx"), tail);
        assert_eq!(apply("\\\\SRV\\share", "\\\\?\\UNC\\srv\\Share\\a\\B.vhdx"), tail);
        assert_eq!(apply("\\\\?\\volume{1}", "\\\\?\\Volume{1}\\a\\B.vhdx"), tail);
        assert_eq!(apply("/old", "/old/a/B.vhdx"), tail);
        assert_eq!(apply("D:\\\u{dc}ber", "d:\\\u{fc}BER\\a\\B.vhdx"), tail, "case beyond ASCII");
        for (from, elsewhere) in [
            ("D:\\VM", "D:\\VMs\\a"),
            ("D:\\VMs", "D:\\VM"),
            ("D:\\VMs", "E:\\VMs\\a"),
            ("D:\\VMs", "D:\\VMs\\..\\a"),
            ("\\\\srv\\share", "\\\\srv\\share2\\a"),
            ("\\VMs", "D:\\VMs\\a"),
        ] {
            assert_eq!(apply(from, elsewhere), None, "{from} {elsewhere}");
        }
        for relative in ["VMs", "D:VMs", ".\\VMs", ""] {
            assert_eq!(PathMap::new(relative, "/srv").unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_map_is_read_backwards_too() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        let spelled = |from: &str, file: &str| PathMap::new(from, dir.path()).unwrap().windows_path(&real.join(file));
        assert_eq!(spelled("D:\\VMs", "a/b.vhdx").as_deref(), Some("D:\\VMs\\a\\b.vhdx"));
        assert_eq!(spelled("D:", "b.vhdx").as_deref(), Some("D:\\b.vhdx"));
        assert_eq!(spelled("\\\\?\\UNC\\srv\\share", "b.vhdx").as_deref(), Some("\\\\srv\\share\\b.vhdx"));
        assert_eq!(spelled("\\\\?\\Volume{1}\\x", "b").as_deref(), Some("\\\\?\\Volume{1}\\x\\b"));
        assert_eq!(PathMap::new("D:", "/no/such").unwrap().windows_path(&real), None);
        let sibling = real.with_extension("other").join("b");
        assert_eq!(PathMap::new("D:", dir.path()).unwrap().windows_path(&sibling), None);
    }
}
