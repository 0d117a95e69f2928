//! Damaging a sound image, and making the checksums over the damage right again.
//!
//! Owns: the kinds of edits. Without the last step hardly an input would get past the first checksum.

use crate::fields::{Field, Seal};
use crate::images::Subject;
use crate::input::Input;
use crate::scratch;
use std::path::PathBuf;
use std::sync::LazyLock;
use vhdkit::storage::{MemoryStorage, Storage};

/// The most edits one input makes.
const MAX_EDITS: usize = 12;
/// The longest a file is made.
const MAX_LEN: u64 = 1 << 44;
const SECTOR: u64 = 512;

/// The leaf of `subject` with the edits of `input`.
pub(crate) fn damaged(input: &mut Input<'_>, subject: &Subject) -> MemoryStorage {
    let file = subject.fresh();
    let mut seals: Vec<&Seal> = Vec::new();
    for _ in 0..MAX_EDITS {
        if input.is_empty() {
            break;
        }
        edit(input, subject, &file, &mut seals);
    }
    let len = file.len().expect("memory has a length");
    // A file that was cut may have lost what a seal lies over.
    for seal in seals.into_iter().filter(|seal| end_of(seal) <= len) {
        seal.mend(&file);
    }
    keep(&file);
    file
}

/// Writes the file that an input makes to where `VHDKIT_FUZZ_KEEP` says, for whoever looks into a failure.
pub(crate) fn keep(file: &MemoryStorage) {
    static PLACE: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os("VHDKIT_FUZZ_KEEP").map(PathBuf::from));
    if let Some(place) = &*PLACE {
        drop(std::fs::remove_file(place));
        scratch::write(place, file);
    }
}

fn end_of(seal: &Seal) -> u64 {
    match *seal {
        Seal::VhdFooter(at) => at + 512,
        Seal::VhdHeader(at) => at + 1024,
        Seal::Vhdx(at, len) => at + len,
        Seal::Entry { log, .. } => log + (1 << 20),
    }
}

fn edit<'a>(input: &mut Input<'_>, subject: &'a Subject, file: &MemoryStorage, seals: &mut Vec<&'a Seal>) {
    match input.byte() % 12 {
        0..=2 => {
            let field = field(input, subject);
            let values = field.values(&subject.fresh());
            let at = input.below(values.len());
            if let Some((_, bytes)) = values.get(at) {
                put(file, field, bytes, seals);
            }
        }
        3..=4 => {
            let field = field(input, subject);
            let bytes = input.bytes(field.len);
            put(file, field, &bytes, seals);
        }
        5..=6 => {
            // Another field's value, moved a little: places in the file that are in use.
            let (from, to) = (field(input, subject), field(input, subject));
            let delta = i64::from(input.byte() as i8) << (input.byte() % 24);
            let len = from.len.min(to.len).min(8);
            let number = number(file, from, len).wrapping_add_signed(delta);
            put(file, to, &bytes_of(number, to, len), seals);
        }
        7 => {
            let field = field(input, subject);
            let len = field.len.min(8);
            let delta = i64::from(input.byte() as i8) << (input.byte() % 48);
            let number = number(file, field, len).wrapping_add_signed(delta);
            put(file, field, &bytes_of(number, field, len), seals);
        }
        8 => {
            // A field without its checksum.
            let field = field(input, subject);
            let bytes = input.bytes(field.len);
            put(file, field, &bytes, &mut Vec::new());
        }
        9 => {
            let len = 1 + input.below(64);
            let at = u64::from(input.word());
            write(file, at % file_len(file).max(1), &input.bytes(len));
        }
        10 => {
            let (len, delta) = (file_len(file), i64::from(input.short() as i16));
            let wanted = len.wrapping_add_signed(delta << input.below(28));
            let grow = input.flag() || wanted < len;
            if wanted <= MAX_LEN && grow {
                file.set_len(wanted).expect("memory takes any length");
            }
        }
        _ => {
            // A copy of some sectors elsewhere: second headers, aliased tables, footers in blocks.
            let sectors = (file_len(file) / SECTOR).max(1);
            let (from, to) = (u64::from(input.word()) % sectors, u64::from(input.word()) % sectors);
            let mut bytes = vec![0; (SECTOR * (1 + input.below(8) as u64)) as usize];
            if file.read_exact_at(&mut bytes, from * SECTOR).is_ok() {
                write(file, to * SECTOR, &bytes);
            }
        }
    }
}

fn field<'a>(input: &mut Input<'_>, subject: &'a Subject) -> &'a Field {
    &subject.fields[usize::from(input.short()) % subject.fields.len()]
}

fn file_len(file: &MemoryStorage) -> u64 {
    file.len().expect("memory has a length")
}

/// Writes as much of `bytes` as lies inside the file.
fn write(file: &MemoryStorage, at: u64, bytes: &[u8]) {
    let len = file_len(file).saturating_sub(at).min(bytes.len() as u64);
    file.write_all_at(&bytes[..len as usize], at).expect("memory takes writes");
}

fn put<'a>(file: &MemoryStorage, field: &'a Field, bytes: &[u8], seals: &mut Vec<&'a Seal>) {
    field.at.iter().for_each(|&at| write(file, at, bytes));
    seals.extend(&field.seals);
}

/// The first `len` bytes of `field` as a number; 0 where the file was cut.
fn number(file: &MemoryStorage, field: &Field, len: usize) -> u64 {
    let mut bytes = vec![0; len];
    if file.read_exact_at(&mut bytes, field.at[0]).is_err() {
        return 0;
    }
    if !field.big_endian {
        bytes.reverse();
    }
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn bytes_of(number: u64, field: &Field, len: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes()[8 - len..].to_vec();
    if !field.big_endian {
        bytes.reverse();
    }
    bytes
}
