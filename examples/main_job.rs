//! The main job on files of its own: makes a chain of three VHDX files, shows it, merges it at depth 2, and shows that
//! the disk still holds the same bytes.

use sha2::{Digest, Sha256};
use std::path::Path;
use vhdkit::chain::{Chain, ChainOptions};
use vhdkit::ops::{CreateOptions, MergeOptions, create, info, merge};
use vhdkit::storage::Access;
use vhdkit::units::{GIB, MIB};
use vhdkit::{DiskKind, Format, Result, Watch};

fn main() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| vhdkit::Error::io("make a folder", error))?;
    let [base, middle, leaf] = ["base.vhdx", "middle.vhdx", "leaf.vhdx"].map(|name| folder.path().join(name));

    create(&base, &CreateOptions::new(Format::Vhdx, DiskKind::Dynamic).size(GIB).block_size(MIB as u32))?;
    fill(&base, 0, 96 * MIB, 1)?;
    create(&middle, &CreateOptions::new(Format::Vhdx, DiskKind::Differencing).parent(&base))?;
    fill(&middle, 16 * MIB + 512, 64 * MIB, 2)?;
    create(&leaf, &CreateOptions::new(Format::Vhdx, DiskKind::Differencing).parent(&middle))?;
    fill(&leaf, 48 * MIB + 4096, 80 * MIB, 3)?;

    println!("A chain of three files, leaf first:");
    for link in info(&leaf, &ChainOptions::new(), true)?.chain {
        let (name, bytes) = (link.info.path.unwrap_or_default(), link.info.file_size);
        println!("  depth {}: {} ({:?}, {} MiB)", link.depth, name.display(), link.info.kind, bytes / MIB);
    }
    let before = sha256(&leaf)?;
    println!("SHA-256 of the disk that the leaf shows: {before}");

    let report = merge(&leaf, &MergeOptions::depth(2).delete(true), &Watch::none())?;
    println!("Merged leaf and middle into the base: {} MiB moved, both deleted.", report.moved / MIB);

    let after = sha256(&base)?;
    println!("SHA-256 of the disk that the base shows: {after}");
    assert_eq!(before, after, "the merge changed the disk");
    println!("The bytes are the same.");
    Ok(())
}

/// Writes `len` bytes that tell their place and `seed` at `offset` of the disk.
fn fill(image: &Path, offset: u64, len: u64, seed: u64) -> Result<()> {
    let mut chain = Chain::open(image, &ChainOptions::new().access(Access::Write))?;
    let bytes: Vec<u8> =
        (0..len / 8).flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed).to_le_bytes()).collect();
    chain.write_at(&bytes, offset)?;
    chain.close()
}

fn sha256(image: &Path) -> Result<String> {
    let chain = Chain::open(image, &ChainOptions::new())?;
    let mut digest = Sha256::new();
    std::io::copy(&mut chain.reader(), &mut digest).map_err(|error| vhdkit::Error::io("read the disk", error))?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
