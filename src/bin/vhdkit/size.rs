//! Sizes as people write and read them.
//!
//! Owns: the units. Must not know: what a size is of.

use vhdkit::units::{GIB, KIB, MIB, TIB};

/// Units by letter; `B` alone is a byte.
const UNITS: [(&str, u64); 6] = [("P", 1024 * TIB), ("T", TIB), ("G", GIB), ("M", MIB), ("K", KIB), ("B", 1)];

/// The most digits after the point: 1/1024 of the largest unit needs fewer, and ten to this power fits 128 bits.
const MAX_FRACTION: usize = 18;

/// Bytes from `512`, `64K`, `64KiB`, `10G`, `1.5T`; units are powers of 1024, upper or lower case.
///
/// # Errors
/// What is wrong, in words: not a number, an unknown unit, part of a byte, more than 64 bits hold.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit_bytes(unit.trim_start()).ok_or_else(|| {
        format!("unknown unit {:?}: use B, K, M, G, T or P (powers of 1024), also as KiB, MiB ...", unit.trim_start())
    })?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return Err("not a size: write it like 512, 64K, 10G or 1.5T".to_owned());
    }
    if fraction.len() > MAX_FRACTION {
        return Err(format!("more than {MAX_FRACTION} digits after the point"));
    }
    let too_large = || "more than 64 bits can hold".to_owned();
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    // At most 18 digits, so both factors fit 128 bits with room.
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let part = fraction.parse::<u128>().unwrap_or(0) * u128::from(unit);
    if !part.is_multiple_of(scale) {
        return Err("not a whole number of bytes".to_owned());
    }
    let part = u64::try_from(part / scale).map_err(|_| too_large())?;
    whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(part)).ok_or_else(too_large)
}

/// As [`parse`], for sizes that formats keep in 32 bits.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse(text)?).map_err(|_| "4 GiB or more is too large here".to_owned())
}

fn unit_bytes(unit: &str) -> Option<u64> {
    if unit.is_empty() {
        return Some(1);
    }
    let unit = unit.to_ascii_uppercase();
    UNITS
        .iter()
        .find(|(letter, _)| match unit.strip_prefix(letter) {
            Some("") => true,
            Some("IB") => *letter != "B",
            _ => false,
        })
        .map(|(_, bytes)| *bytes)
}

/// `bytes` in the largest unit that leaves at least one, to two digits after the point: `1.5 GiB`, `512 bytes`.
pub(crate) fn human(bytes: u64) -> String {
    let Some((letter, unit)) = UNITS.iter().find(|(letter, unit)| *letter != "B" && bytes >= *unit) else {
        return if bytes == 1 { "1 byte".to_owned() } else { format!("{bytes} bytes") };
    };
    let hundredths = u128::from(bytes) * 100 / u128::from(*unit);
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match part {
        0 => format!("{whole} {letter}iB"),
        part if part % 10 == 0 => format!("{whole}.{} {letter}iB", part / 10),
        part => format!("{whole}.{part:02} {letter}iB"),
    }
}

/// `bytes` for people and to the byte: `1.5 GiB (1610612736 bytes)`.
pub(crate) fn exact(bytes: u64) -> String {
    if bytes < KIB { human(bytes) } else { format!("{} ({bytes} bytes)", human(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        let sizes = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64K", 64 * KIB),
            ("64k", 64 * KIB),
            ("64KiB", 64 * KIB),
            ("64 kib", 64 * KIB),
            ("10G", 10 * GIB),
            ("1.5T", 3 * TIB / 2),
            ("0.5K", 512),
            ("1.000M", MIB),
            ("0.0009765625K", 1),
            ("2MiB", 2 * MIB),
            ("18446744073709551615", u64::MAX),
            ("15.5P", 31 * 512 * TIB),
        ];
        for (text, bytes) in sizes {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        let reasons = [
            ("", "not a size"),
            ("K", "not a size"),
            (".5K", "not a size"),
            ("5.K", "not a size"),
            ("1.2.3K", "not a size"),
            ("-1", "unknown unit"),
            ("10X", "unknown unit"),
            ("10KB", "unknown unit"),
            ("10BiB", "unknown unit"),
            ("1e6", "unknown unit"),
            ("1.5", "whole number of bytes"),
            ("0.3K", "whole number of bytes"),
            ("18446744073709551616", "64 bits"),
            ("16384P", "64 bits"),
            ("99999999999999999999999999T", "64 bits"),
            ("0.0000000000000000001P", "digits"),
        ];
        for (text, reason) in reasons {
            let message = parse(text).expect_err(text);
            assert!(message.contains(reason), "{text}: {message}");
        }
        assert_eq!(parse_u32("4095M"), Ok(4095 << 20));
        assert!(parse_u32("4G").is_err());
    }

    #[test]
    fn sizes_are_shown_short_and_exact() {
        assert_eq!(human(0), "0 bytes");
        assert_eq!(human(1), "1 byte");
        assert_eq!(human(1023), "1023 bytes");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(10 * GIB), "10 GiB");
        assert_eq!(human(GIB + GIB / 16), "1.06 GiB");
        assert_eq!(human(u64::MAX), "16383.99 PiB");
        assert_eq!(exact(512), "512 bytes");
        assert_eq!(exact(3 * TIB / 2), "1.5 TiB (1649267441664 bytes)");
    }
}
