//! The document that describes chains on their way to another machine.
//!
//! Owns: what it says, how it is made from open chains, how it is read and checked. Must not know: how files are found
//! again.

use crate::chain::{Chain, ChainOptions, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::guid::Guid;
use crate::image::Format;
use crate::link::ImageId;
use crate::ops::registry::{self, Registry};
use crate::storage::{FileIdentity, FileStorage, Storage};
use crate::units::MIB;
use crate::watch::Watch;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The most files of a manifest.
const MAX_FILES: usize = 10_000;

/// The images of one or more chains. Its JSON form, a version around it, is described by [`SCHEMA`](Self::SCHEMA):
///
/// ```json
#[doc = include_str!("manifest.schema.json")]
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Every file once.
    pub files: Vec<ManifestFile>,
}

/// One file of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its name, without directories.
    pub name: String,
    /// Where it was.
    #[serde(default)]
    pub path: Option<String>,
    /// `Vhd` or `Vhdx`.
    pub format: Format,
    /// What its children know it by: VHDX the DataWriteGuid, VHD the Unique ID.
    pub id: Guid,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// The file's length in bytes.
    pub file_size: u64,
    /// The index of its parent.
    #[serde(default)]
    pub parent: Option<usize>,
    /// SHA-256 of the file's bytes, in lower-case hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
}

impl ManifestFile {
    /// Its identity as links name it.
    #[must_use]
    pub fn image_id(&self) -> ImageId {
        match self.format {
            Format::Vhdx => ImageId::Vhdx(self.id),
            _ => ImageId::Vhd(*self.id.as_bytes()),
        }
    }

    /// What `layer` is.
    pub(super) fn of(layer: &Layer, parent: Option<usize>) -> Result<Self> {
        let image = layer.image();
        let id = match image.id() {
            Some(ImageId::Vhdx(id)) => id,
            Some(ImageId::Vhd(bytes)) => Guid::from_bytes(bytes),
            None => {
                let message = "a raw image has no identity by which it could be found again";
                return Err(layer.blame(Error::new(ErrorKind::Unsupported, message)));
            }
        };
        let path = layer.path().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "only files can be exported"))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the name is not UTF-8").with_path(path))?;
        Ok(Self {
            name: name.to_owned(),
            path: path.to_str().map(str::to_owned),
            format: image.format(),
            id,
            virtual_size: image.virtual_size(),
            file_size: layer.file_size()?,
            parent,
            sha256: None,
        })
    }
}

/// How chains are exported.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    hash: bool,
    chain: ChainOptions,
}

impl ExportOptions {
    /// No checksums, parents from the child's own directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether each file's SHA-256 is taken, which reads all of it.
    #[must_use]
    pub fn hash(mut self, hash: bool) -> Self {
        self.hash = hash;
        self
    }

    /// How the chains are opened. Where maps say what Windows calls a file, that is the path in the manifest.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }
}

/// Describes the chains whose leaves are `leaves`; a file that several of them share is there once. Nothing is written.
///
/// # Errors
/// Those of opening the chains; `Unsupported` for raw images; `Cancelled`.
pub fn export(leaves: &[PathBuf], options: &ExportOptions, watch: &Watch<'_>) -> Result<Manifest> {
    let mut files: Vec<ManifestFile> = Vec::new();
    let mut seen: HashMap<FileIdentity, usize> = HashMap::new();
    for leaf in leaves {
        let chain = Chain::open(leaf, &options.chain)?;
        let mut below = None;
        for layer in chain.layers().iter().rev() {
            let failed = |error| layer.blame(Error::io("look at the file", error));
            let file = layer.file().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "only files can be exported"))?;
            let identity = file.identity().map_err(failed)?;
            if let Some(&index) = seen.get(&identity) {
                below = Some(index);
                continue;
            }
            let mut entry = ManifestFile::of(layer, below)?;
            if let Some(real) = layer.path().and_then(|path| std::fs::canonicalize(path).ok()) {
                let local = real.to_str().map(str::to_owned);
                entry.path = options.chain.windows_path(&real).or(local).or(entry.path);
            }
            if options.hash {
                entry.sha256 = Some(sha256(file, watch).map_err(|error| layer.blame(error))?);
            }
            if files.len() >= MAX_FILES {
                let message = format_args!("more than {MAX_FILES} files in a manifest").to_string();
                return Err(Error::new(ErrorKind::InvalidInput, message));
            }
            below = Some(files.len());
            seen.insert(identity, files.len());
            files.push(entry);
        }
    }
    Ok(Manifest { files })
}

/// SHA-256 of all bytes of `file`.
pub(super) fn sha256(file: &FileStorage, watch: &Watch<'_>) -> Result<String> {
    let failed = |error| Error::io("read the file", error);
    let len = file.len().map_err(failed)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; MIB as usize];
    let mut at = 0;
    while at < len {
        watch.check()?;
        let step = (len - at).min(MIB) as usize;
        file.read_exact_at(&mut buffer[..step], at).map_err(failed)?;
        digest.update(&buffer[..step]);
        at += step as u64;
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Manifest {
    /// The JSON Schema of its JSON form.
    pub const SCHEMA: &str = include_str!("manifest.schema.json");

    /// Its JSON form, its version around it.
    #[must_use]
    pub fn to_json(&self) -> String {
        registry::to_text(self).unwrap_or_default()
    }

    /// Writes it to `path`, which must not exist unless `overwrite` says that it may.
    ///
    /// # Errors
    /// `Refused` when the file exists; what the system answers.
    pub fn write(&self, path: impl AsRef<Path>, overwrite: bool) -> Result<()> {
        registry::write_record(path.as_ref(), self, overwrite)
    }

    /// Reads it from `path`, which may come from a stranger.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when it is no manifest; `Unsupported` for one of a later version; what the system answers.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let manifest: Self = registry::read_record(path)?;
        manifest.check().map_err(|why| {
            Error::new(ErrorKind::Corrupt, format_args!("this manifest contradicts itself: {why}")).with_path(path)
        })?;
        Ok(manifest)
    }

    /// Every parent is there, none leads back to its child, formats fit, names are names.
    fn check(&self) -> Result<(), String> {
        if self.files.len() > MAX_FILES {
            return Err(format!("{} files, at most {MAX_FILES} are read", self.files.len()));
        }
        for (index, file) in self.files.iter().enumerate() {
            let plain = !file.name.is_empty() && !file.name.contains(['/', '\\', '\0']) && file.name != "..";
            if !plain || file.name == "." {
                return Err(format!("file {index} has the name {:?}", file.name));
            }
            if file.format == Format::Raw {
                return Err(format!("file {index} ({}) is raw", file.name));
            }
            let Some(parent) = file.parent else { continue };
            match self.files.get(parent) {
                None => return Err(format!("the parent of file {index} ({}) is not there", file.name)),
                Some(other) if other.format != file.format => {
                    return Err(format!("file {index} ({}) and its parent have different formats", file.name));
                }
                Some(_) => {}
            }
        }
        self.depths().map(drop)
    }

    /// How many parents each file has.
    pub(super) fn depths(&self) -> Result<Vec<usize>, String> {
        let mut depths: Vec<Option<usize>> = vec![None; self.files.len()];
        for start in 0..self.files.len() {
            // Up to a file whose depth is known; a walk longer than the list goes in a circle.
            let mut walk = Vec::new();
            let mut at = Some(start);
            let known = loop {
                match at {
                    None => break None,
                    Some(index) if depths[index].is_some() => break depths[index],
                    Some(index) => {
                        if walk.len() >= self.files.len() {
                            return Err(format!("the parents of {} lead back to it", self.files[start].name));
                        }
                        walk.push(index);
                        at = self.files[index].parent;
                    }
                }
            };
            let first = known.map_or(0, |known| known + 1);
            for (depth, index) in (first..).zip(walk.into_iter().rev()) {
                depths[index] = Some(depth);
            }
        }
        Ok(depths.into_iter().flatten().collect())
    }
}

impl Registry {
    /// The records beside the manifest or the directory that is imported.
    pub(super) fn for_import(directory: &Path) -> Self {
        Self::beside(&directory.join("x"))
    }
}
