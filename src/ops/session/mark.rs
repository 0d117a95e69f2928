//! Whether a file is still as it was made.
//!
//! Owns: what of a file counts for that. Must not know: whose file it is.

use crate::error::{Error, ErrorKind, Result};
use crate::storage::{Access, FileStorage, Lock, PAGE, Storage};
use crate::units::{MIB, round_down};
use crate::zeros;
use std::path::Path;

/// A checksum of the file at `path` and its length, holes passed over; `None` when there is none.
pub(super) fn mark(path: &Path) -> Result<Option<u32>> {
    let file = match FileStorage::open(path, Access::Read, Lock::None) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let sum = || -> std::io::Result<u32> {
        let len = file.len()?;
        let mut sum = crc32c::crc32c(&len.to_le_bytes());
        let mut buffer = vec![0; MIB as usize];
        let mut at = 0;
        while let Some(data) = file.next_data(at)?.filter(|&data| data < len) {
            let data = round_down(data, PAGE as u64).max(at);
            let step = (len - data).min(MIB);
            let bytes = &mut buffer[..step as usize];
            file.read_exact_at(bytes, data)?;
            // Zeros count for nothing wherever they are: a hole and zeros are the same contents.
            for (page, at) in bytes.chunks(PAGE).zip((data..).step_by(PAGE)) {
                if !zeros::is_zero(page) {
                    sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &at.to_le_bytes()), page);
                }
            }
            at = data + step;
        }
        Ok(sum)
    };
    sum().map(Some).map_err(|error| Error::io("read the new leaf", error).with_path(path))
}
