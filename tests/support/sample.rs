//! The samples of `testdata/`.
//!
//! Owns: their text form.

use std::path::{Path, PathBuf};

/// The bytes of the sample `name`.
///
/// # Panics
/// When there is no such sample, or it is not in its text form.
pub fn load(name: &str) -> Vec<u8> {
    // The fuzz targets are a package one folder further down.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = ["testdata", "../testdata"].map(|folder| root.join(folder)).into_iter().find(|folder| folder.is_dir());
    let path = folder.expect("the folder testdata").join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(&text).unwrap_or_else(|line| panic!("{}: cannot read the line {line:?}", path.display()))
}

/// Writes the sample `name` to `folder` as `name` with `extension`.
///
/// # Panics
/// As [`load`]; when the file cannot be written.
pub fn write(name: &str, folder: &Path, extension: &str) -> PathBuf {
    let path = folder.join(name).with_extension(extension);
    std::fs::write(&path, load(name)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    path
}

fn parse(text: &str) -> Result<Vec<u8>, &str> {
    let mut bytes = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (at, run) = line.split_once(": ").ok_or(line)?;
        if at == "length" {
            bytes = vec![0; usize::from_str_radix(run, 16).map_err(|_| line)?];
            continue;
        }
        let at = usize::from_str_radix(at, 16).map_err(|_| line)?;
        let (run, count) = run.split_once(" x ").unwrap_or((run, "1"));
        let count = usize::from_str_radix(count, 16).map_err(|_| line)?;
        let unit = (0..run.len() / 2)
            .map(|byte| {
                run.get(2 * byte..2 * byte + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(line)
            })
            .collect::<Result<Vec<u8>, _>>()?;
        let range = at..at + unit.len() * count;
        bytes.get_mut(range).ok_or(line)?.copy_from_slice(&unit.repeat(count));
    }
    Ok(bytes)
}
