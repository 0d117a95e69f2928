//! The bytes of a VHDX file, structure by structure ([MS-VHDX], all of section 2).
//!
//! Owns: one little-endian record per on-disk structure with its size asserted, signatures, well-known ids, the fixed
//! layout of the first megabyte, named limits, and the checksum rule.
//! Must not know: what a value means or which values are allowed; nothing here reads a file.

use crate::guid::{Guid, RawGuid};
use crate::units::{GIB, KIB, MIB, TIB};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// File type identifier ([MS-VHDX] 2.2.1).
pub(crate) const IDENTIFIER_SIGNATURE: [u8; 8] = *b"vhdxfile";
/// Header ([MS-VHDX] 2.2.2).
pub(crate) const HEADER_SIGNATURE: [u8; 4] = *b"head";
/// Region table ([MS-VHDX] 2.2.3).
pub(crate) const REGION_SIGNATURE: [u8; 4] = *b"regi";
/// Log entry header ([MS-VHDX] 2.3.1.1).
pub(crate) const LOG_ENTRY_SIGNATURE: [u8; 4] = *b"loge";
/// Log zero descriptor ([MS-VHDX] 2.3.1.2).
pub(crate) const LOG_ZERO_SIGNATURE: [u8; 4] = *b"zero";
/// Log data descriptor ([MS-VHDX] 2.3.1.3).
pub(crate) const LOG_DATA_SIGNATURE: [u8; 4] = *b"desc";
/// Log data sector ([MS-VHDX] 2.3.1.4).
pub(crate) const LOG_SECTOR_SIGNATURE: [u8; 4] = *b"data";
/// Metadata table ([MS-VHDX] 2.6.1.1).
pub(crate) const METADATA_SIGNATURE: [u8; 8] = *b"metadata";

/// Every object past the header area starts on a multiple of this.
pub(crate) const ALIGNMENT: u64 = MIB;
/// The identifier, both headers and both region tables live below this.
pub(crate) const HEADER_AREA_LEN: u64 = MIB;
/// Where the two headers are.
pub(crate) const HEADER_AT: [u64; 2] = [64 * KIB, 128 * KIB];
/// The part of a 64 KiB header slot that is used.
pub(crate) const HEADER_LEN: usize = 4096;
/// Where the two region tables are.
pub(crate) const REGION_TABLE_AT: [u64; 2] = [192 * KIB, 256 * KIB];
/// Length of one region table.
pub(crate) const REGION_TABLE_LEN: usize = 64 << 10;
/// Length of the metadata table at the start of its region; items start behind it.
pub(crate) const METADATA_TABLE_LEN: usize = 64 << 10;
/// The unit of the log, of its descriptors' targets and of metadata updates.
pub(crate) const LOG_PAGE: u64 = 4096;
/// Length of a sector bitmap block.
pub(crate) const BITMAP_BLOCK_LEN: u64 = MIB;
/// Sectors covered by one sector bitmap block, and so by one chunk: one bit each.
pub(crate) const CHUNK_SECTORS: u64 = 1 << 23;
/// Length of one entry of the block allocation table.
pub(crate) const BAT_ENTRY_LEN: u64 = 8;

/// Version field of a header; anything else must not be processed.
pub(crate) const VERSION: u16 = 1;
/// The only log version there is.
pub(crate) const LOG_VERSION: u16 = 0;

/// [MS-VHDX] 2.2.3.1: what fits behind the region table header.
pub(crate) const MAX_REGIONS: u32 = 2047;
/// [MS-VHDX] 2.6.1.1: what fits behind the metadata table header.
pub(crate) const MAX_METADATA_ENTRIES: u16 = 2047;
/// [MS-VHDX] 2.6.1.2.
pub(crate) const MAX_METADATA_ITEM_LEN: u32 = 1 << 20;
/// [MS-VHDX] 2.6.1.1: entries of users.
pub(crate) const MAX_USER_ITEMS: usize = 1024;
/// The longest metadata region other readers open (the format has no limit of its own).
pub(crate) const MAX_METADATA_REGION: u64 = 128 * MIB;
/// A log longer than this is taken for damage: Windows writes 1 MiB, and finding the active sequence reads all of it.
pub(crate) const MAX_LOG_LEN: u32 = 1 << 30;
/// [MS-VHDX] 2.6.2.1.
pub(crate) const MIN_BLOCK_SIZE: u64 = MIB;
/// [MS-VHDX] 2.6.2.1.
pub(crate) const MAX_BLOCK_SIZE: u64 = 256 * MIB;
/// [MS-VHDX] 2.6.2.2.
pub(crate) const MAX_VIRTUAL_SIZE: u64 = 64 * TIB;
/// More key-value pairs than this in a parent locator are taken for damage: the format knows five keys.
pub(crate) const MAX_LOCATOR_PAIRS: u16 = 256;
/// No offset in any file reaches this far (2^60 bytes): keeps sums of offsets and lengths inside 64 bits.
pub(crate) const MAX_FILE_OFFSET: u64 = GIB << 30;

const fn guid(value: u128) -> Guid {
    Guid::from_u128(value)
}

/// Region: block allocation table.
pub(crate) const REGION_BAT: Guid = guid(0x2DC2_7766_F623_4200_9D64_115E_9BFD_4A08);
/// Region: metadata.
pub(crate) const REGION_METADATA: Guid = guid(0x8B7C_A206_4790_4B9A_B8FE_575F_050F_886E);
/// Metadata item: file parameters.
pub(crate) const ITEM_FILE_PARAMETERS: Guid = guid(0xCAA1_6737_FA36_4D43_B3B6_33F0_AA44_E76B);
/// Metadata item: virtual disk size.
pub(crate) const ITEM_VIRTUAL_SIZE: Guid = guid(0x2FA5_4224_CD1B_4876_B211_5DBE_D83B_F4B8);
/// Metadata item: virtual disk id ("page 83 data").
pub(crate) const ITEM_DISK_ID: Guid = guid(0xBECA_12AB_B2E6_4523_93EF_C309_E000_C746);
/// Metadata item: logical sector size.
pub(crate) const ITEM_LOGICAL_SECTOR: Guid = guid(0x8141_BF1D_A96F_4709_BA47_F233_A8FA_AB5F);
/// Metadata item: physical sector size.
pub(crate) const ITEM_PHYSICAL_SECTOR: Guid = guid(0xCDA3_48C7_445D_4471_9CC9_E988_5251_C556);
/// Metadata item: parent locator.
pub(crate) const ITEM_PARENT_LOCATOR: Guid = guid(0xA8D3_5F2D_B30B_454D_ABF7_D3D8_4834_AB0C);
/// Metadata item: drive geometry, undocumented; other software knows it.
pub(crate) const ITEM_GEOMETRY: Guid = guid(0xDA02_D7BC_3D3A_423C_AC88_2A36_AB21_479B);
/// Metadata item: the file's creation has not finished, undocumented.
pub(crate) const ITEM_INCOMPLETE: Guid = guid(0x71CC_85F0_1B69_4E28_9558_C3BF_83AE_75D3);
/// Metadata item: label area of persistent memory disks, undocumented.
pub(crate) const ITEM_PMEM_LABEL: Guid = guid(0x10E1_AE8A_4B7E_4169_A40F_CD70_DE92_8393);
/// The only parent locator type there is.
pub(crate) const LOCATOR_TYPE_VHDX: Guid = guid(0xB04A_EFB7_D19E_4A81_B789_25B8_E944_5913);

/// Region table entry: an unknown region must keep a reader out.
pub(crate) const REGION_REQUIRED: u32 = 1;
/// Metadata entry: a user's item, not the format's.
pub(crate) const ITEM_IS_USER: u32 = 1;
/// Metadata entry: belongs to the virtual disk, so travels with it on fork and merge.
pub(crate) const ITEM_IS_VIRTUAL_DISK: u32 = 2;
/// Metadata entry: an unknown item must keep a reader out.
pub(crate) const ITEM_IS_REQUIRED: u32 = 4;
/// File parameters: blocks stay allocated (a fixed disk).
pub(crate) const PARAMETER_LEAVE_BLOCKS: u32 = 1;
/// File parameters: a differencing disk.
pub(crate) const PARAMETER_HAS_PARENT: u32 = 2;

/// [MS-VHDX] 2.2.1: the start of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawIdentifier {
    pub(crate) signature: [u8; 8],
    /// UTF-16LE, padded with NUL.
    pub(crate) creator: [u8; 512],
}
const _: () = assert!(size_of::<RawIdentifier>() == 520);

/// [MS-VHDX] 2.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawHeader {
    pub(crate) signature: [u8; 4],
    pub(crate) checksum: U32,
    pub(crate) sequence: U64,
    pub(crate) file_write_guid: RawGuid,
    pub(crate) data_write_guid: RawGuid,
    pub(crate) log_guid: RawGuid,
    pub(crate) log_version: U16,
    pub(crate) version: U16,
    pub(crate) log_length: U32,
    pub(crate) log_offset: U64,
    pub(crate) reserved: [u8; 4016],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_LEN);

/// [MS-VHDX] 2.2.3.1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRegionHeader {
    pub(crate) signature: [u8; 4],
    pub(crate) checksum: U32,
    pub(crate) entry_count: U32,
    pub(crate) reserved: U32,
}
const _: () = assert!(size_of::<RawRegionHeader>() == 16);

/// [MS-VHDX] 2.2.3.2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRegionEntry {
    pub(crate) id: RawGuid,
    pub(crate) offset: U64,
    pub(crate) length: U32,
    pub(crate) flags: U32,
}
const _: () = assert!(size_of::<RawRegionEntry>() == 32);

/// [MS-VHDX] 2.3.1.1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLogEntryHeader {
    pub(crate) signature: [u8; 4],
    pub(crate) checksum: U32,
    pub(crate) entry_length: U32,
    pub(crate) tail: U32,
    pub(crate) sequence: U64,
    pub(crate) descriptor_count: U32,
    pub(crate) reserved: U32,
    pub(crate) log_guid: RawGuid,
    pub(crate) flushed_file_offset: U64,
    pub(crate) last_file_offset: U64,
}
const _: () = assert!(size_of::<RawLogEntryHeader>() == 64);

/// [MS-VHDX] 2.3.1.2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawZeroDescriptor {
    pub(crate) signature: [u8; 4],
    pub(crate) reserved: U32,
    pub(crate) zero_length: U64,
    pub(crate) file_offset: U64,
    pub(crate) sequence: U64,
}
const _: () = assert!(size_of::<RawZeroDescriptor>() == 32);

/// [MS-VHDX] 2.3.1.3.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawDataDescriptor {
    pub(crate) signature: [u8; 4],
    /// The page's bytes 4092 to 4095, displaced by the data sector's sequence number.
    pub(crate) trailing_bytes: [u8; 4],
    /// The page's bytes 0 to 7, displaced by the data sector's signature and sequence number.
    pub(crate) leading_bytes: [u8; 8],
    pub(crate) file_offset: U64,
    pub(crate) sequence: U64,
}
const _: () = assert!(size_of::<RawDataDescriptor>() == 32);

/// [MS-VHDX] 2.3.1.4.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawDataSector {
    pub(crate) signature: [u8; 4],
    pub(crate) sequence_high: U32,
    pub(crate) data: [u8; 4084],
    pub(crate) sequence_low: U32,
}
const _: () = assert!(size_of::<RawDataSector>() as u64 == LOG_PAGE);

/// [MS-VHDX] 2.6.1.1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawMetadataHeader {
    pub(crate) signature: [u8; 8],
    pub(crate) reserved: U16,
    pub(crate) entry_count: U16,
    pub(crate) reserved2: [u8; 20],
}
const _: () = assert!(size_of::<RawMetadataHeader>() == 32);

/// [MS-VHDX] 2.6.1.2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawMetadataEntry {
    pub(crate) id: RawGuid,
    /// From the start of the metadata region.
    pub(crate) offset: U32,
    pub(crate) length: U32,
    pub(crate) flags: U32,
    pub(crate) reserved: U32,
}
const _: () = assert!(size_of::<RawMetadataEntry>() == 32);

/// [MS-VHDX] 2.6.2.1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawFileParameters {
    pub(crate) block_size: U32,
    pub(crate) flags: U32,
}
const _: () = assert!(size_of::<RawFileParameters>() == 8);

/// [MS-VHDX] 2.6.2.6.1.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocatorHeader {
    pub(crate) locator_type: RawGuid,
    pub(crate) reserved: U16,
    pub(crate) pair_count: U16,
}
const _: () = assert!(size_of::<RawLocatorHeader>() == 20);

/// [MS-VHDX] 2.6.2.6.2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawLocatorEntry {
    /// From the start of the item.
    pub(crate) key_offset: U32,
    /// From the start of the item.
    pub(crate) value_offset: U32,
    pub(crate) key_length: U16,
    pub(crate) value_length: U16,
}
const _: () = assert!(size_of::<RawLocatorEntry>() == 12);

/// The checksum of a structure: CRC-32C with the four bytes of its own checksum field, at offset 4, taken as zero.
#[must_use]
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(bytes.len().min(4));
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(crc, rest.get(4..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn checksum_is_castagnoli_with_its_own_field_as_zero() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(checksum(b"head\0\0\0\0rest"), crc32c::crc32c(b"head\0\0\0\0rest"));
        assert_eq!(checksum(b"head\xFF\x01\x02\x03rest"), crc32c::crc32c(b"head\0\0\0\0rest"));
    }

    /// Vector of an empty log entry: sequence 1, both file offsets 4 MiB.
    #[test]
    fn empty_log_entry_vector() {
        let mut page = [0u8; 4096];
        let header = RawLogEntryHeader {
            signature: LOG_ENTRY_SIGNATURE,
            checksum: U32::ZERO,
            entry_length: U32::new(4096),
            tail: U32::ZERO,
            sequence: U64::new(1),
            descriptor_count: U32::ZERO,
            reserved: U32::ZERO,
            log_guid: "00112233-4455-6677-8899-aabbccddeeff".parse::<Guid>().unwrap().into(),
            flushed_file_offset: U64::new(0x40_0000),
            last_file_offset: U64::new(0x40_0000),
        };
        page[..64].copy_from_slice(header.as_bytes());
        assert_eq!(checksum(&page), 0x6384_8303);
    }

    #[test]
    fn well_known_ids_have_the_bytes_of_the_format() {
        assert_eq!(RawGuid::from(ITEM_FILE_PARAMETERS).0[..4], [0x37, 0x67, 0xA1, 0xCA]);
        assert_eq!(RawGuid::from(LOCATOR_TYPE_VHDX).0[8..], [0xB7, 0x89, 0x25, 0xB8, 0xE9, 0x44, 0x59, 0x13]);
        assert_eq!(REGION_METADATA.to_string(), "8b7ca206-4790-4b9a-b8fe-575f050f886e");
        assert_eq!(ITEM_PMEM_LABEL.to_string(), "10e1ae8a-4b7e-4169-a40f-cd70de928393");
    }
}
