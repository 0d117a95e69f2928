//! A second reader of both formats, written from the format pages and nothing else.
//!
//! Owns: the chain: whose parent is whose, and which layer answers for a byte. It favours being plainly right over speed,
//! and refuses what the pages call corrupt.

pub mod vhd;
pub mod vhdx;
pub mod vhdx_log;

use crate::support::bytes::{Bytes, Contents, Digesting, Outcome};
use std::fs::File;
use std::path::Path;
use vhd::Vhd;
use vhdx::Vhdx;

/// What a layer says of a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They lie in its file from this offset on.
    Data(u64),
    /// They are zero.
    Zero,
    /// Its parent knows.
    Parent,
}

/// One file of a chain.
pub enum Layer<'a> {
    /// A VHD file.
    Vhd(Vhd<'a>),
    /// A VHDX file.
    Vhdx(Box<Vhdx<'a>>),
    /// The bytes themselves.
    Raw(Box<dyn Bytes + 'a>),
}

impl<'a> Layer<'a> {
    /// Reads the structures of `file`, whatever its format.
    pub fn open(file: Box<dyn Bytes + 'a>) -> Outcome<Self> {
        let mut start = [0; 8];
        if file.fill(0, &mut start).is_ok() && &start == b"vhdxfile" {
            Ok(Self::Vhdx(Box::new(Vhdx::open(file)?)))
        } else {
            Ok(Self::Vhd(Vhd::open(file)?))
        }
    }

    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Vhd(image) => image.size,
            Self::Vhdx(image) => image.size,
            Self::Raw(file) => file.length().expect("the length of a raw file"),
        }
    }

    fn file(&self) -> &dyn Bytes {
        match self {
            Self::Vhd(image) => &*image.file,
            Self::Vhdx(image) => &image.file,
            Self::Raw(file) => &**file,
        }
    }

    fn run(&self, offset: u64, limit: u64) -> Outcome<(u64, Answer)> {
        match self {
            Self::Vhd(image) => image.run(offset, limit),
            Self::Vhdx(image) => image.run(offset, limit),
            Self::Raw(_) => Ok((limit, Answer::Data(offset))),
        }
    }

    fn has_parent(&self) -> bool {
        match self {
            Self::Vhd(image) => image.is_differencing(),
            Self::Vhdx(image) => image.has_parent,
            Self::Raw(_) => false,
        }
    }

    fn check_parent(&self, parent: &Self) -> Outcome<()> {
        match (self, parent) {
            (Self::Vhd(child), Self::Vhd(parent)) if child.parent_id == parent.id => Ok(()),
            (Self::Vhd(child), Self::Vhd(parent)) => {
                Err(format!("the child names parent {:02x?}, the parent is {:02x?}", child.parent_id, parent.id))
            }
            (Self::Vhdx(child), Self::Vhdx(parent)) => child.check_parent(parent),
            _ => Err("layers of different formats".to_owned()),
        }
    }
}

/// A chain, ready to be read.
pub struct SpecDisk<'a> {
    /// Leaf first.
    pub layers: Vec<Layer<'a>>,
}

impl<'a> SpecDisk<'a> {
    /// Opens the chain of `paths`, leaf first, base last.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Outcome<Self> {
        let open = |path: &P| -> Outcome<Box<dyn Bytes + 'a>> {
            let path = path.as_ref();
            let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(Box::new(file))
        };
        Self::from_bytes(paths.iter().map(open).collect::<Outcome<_>>()?)
    }

    /// Opens the chain of `files`, leaf first, base last.
    pub fn from_bytes(files: Vec<Box<dyn Bytes + 'a>>) -> Outcome<Self> {
        let layers = files
            .into_iter()
            .enumerate()
            .map(|(depth, file)| Layer::open(file).map_err(|error| format!("file {} of the chain: {error}", depth + 1)))
            .collect::<Outcome<Vec<_>>>()?;
        for (depth, pair) in layers.windows(2).enumerate() {
            pair[0].check_parent(&pair[1]).map_err(|error| format!("file {} of the chain: {error}", depth + 1))?;
        }
        let last = layers.last().ok_or("an empty chain")?;
        if last.has_parent() {
            return Err("the last file of the chain has a parent too".to_owned());
        }
        Ok(Self { layers })
    }

    /// The virtual size in bytes.
    pub fn size(&self) -> u64 {
        self.layers[0].size()
    }

    /// The `len` bytes at `offset` of the virtual disk.
    pub fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        let mut buf = vec![0; len];
        self.fill(0, offset, &mut buf)?;
        Ok(buf)
    }

    fn fill(&self, depth: usize, offset: u64, buf: &mut [u8]) -> Outcome<()> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let layer = self.layers.get(depth);
            // Past the end of a layer there are zeros, whatever lies deeper.
            let Some(layer) = layer.filter(|layer| at < layer.size()) else {
                buf[done..].fill(0);
                return Ok(());
            };
            let limit = (buf.len() - done) as u64;
            let (len, answer) = layer.run(at, limit.min(layer.size() - at))?;
            let part = &mut buf[done..done + len as usize];
            match answer {
                Answer::Zero => part.fill(0),
                Answer::Parent => self.fill(depth + 1, at, part)?,
                Answer::Data(from) => {
                    layer.file().fill(from, part).map_err(|error| format!("data at {from:#x}: {error}"))?;
                }
            }
            done += len as usize;
        }
        Ok(())
    }

    /// Length and digest of the whole virtual disk.
    pub fn contents(&self) -> Outcome<Contents> {
        const PIECE: u64 = 4 << 20;
        let mut digest = Digesting::default();
        let mut at = 0;
        while at < self.size() {
            let len = PIECE.min(self.size() - at);
            digest.update(&self.read(at, len as usize)?);
            at += len;
        }
        Ok(digest.finish())
    }
}

/// The whole virtual disk of the chain `paths`, leaf first. For small disks.
///
/// # Panics
/// When the chain cannot be read, or is larger than 256 MiB: use [`SpecDisk::contents`] then.
pub fn read_chain<P: AsRef<Path>>(paths: &[P]) -> Vec<u8> {
    let shown = || paths.iter().map(|path| path.as_ref().display().to_string()).collect::<Vec<_>>().join(" -> ");
    let disk = SpecDisk::open(paths).unwrap_or_else(|error| panic!("{}: {error}", shown()));
    assert!(disk.size() <= 256 << 20, "{}: {} bytes are too many to return", shown(), disk.size());
    disk.read(0, disk.size() as usize).unwrap_or_else(|error| panic!("{}: {error}", shown()))
}
