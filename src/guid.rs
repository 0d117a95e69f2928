//! GUIDs as VHDX files hold them.
//!
//! Owns: the mixed-endian field type ([MS-VHDX] section 1.2 uses the Windows GUID layout) and where fresh ids come from.
//! Must not know: which ids exist or what they identify.

pub use uuid::Uuid as Guid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID on disk: u32, u16, u16 little endian, then eight bytes as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub(crate) struct RawGuid(pub(crate) [u8; 16]);

const _: () = assert!(size_of::<RawGuid>() == 16);

impl RawGuid {
    /// The id it stands for.
    #[must_use]
    pub(crate) const fn get(self) -> Guid {
        Guid::from_bytes_le(self.0)
    }
}

impl From<Guid> for RawGuid {
    fn from(guid: Guid) -> Self {
        Self(guid.to_bytes_le())
    }
}

/// A fresh random (version 4) id.
#[must_use]
pub(crate) fn fresh() -> Guid {
    Guid::new_v4()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_form_agree_with_the_format_page() {
        let guid: Guid = "2DC27766-F623-4200-9D64-115E9BFD4A08".parse().unwrap();
        let raw = RawGuid::from(guid);
        assert_eq!(
            raw.0,
            [0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08]
        );
        assert_eq!(raw.get(), guid);
        assert!(RawGuid::default().get().is_nil());
    }
}
