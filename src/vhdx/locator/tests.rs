//! Pairs outside of the item or sharing bytes, linkages in odd spellings, paths Windows would not take.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use super::*;
use crate::link::ParentPaths;
use proptest::prelude::*;

fn id() -> Guid {
    "0F0E0D0C-0B0A-0908-0706-050403020100".parse().unwrap()
}

fn parent() -> NewParent {
    let paths = ParentPaths { relative: Some(".\\parent.vhdx".into()), absolute: Some("D:\\VMs\\parent.vhdx".into()) };
    NewParent { id: ImageId::Vhdx(id()), paths, timestamp: 0 }
}

fn parse(bytes: &[u8]) -> (Result<Locator>, Findings) {
    let mut findings = Findings::new();
    let locator = Locator::parse(bytes, FileOffset(0x21_0000), &mut findings);
    (locator, findings)
}

fn parse_pairs(pairs: &[(&str, &str)]) -> (Result<Locator>, Findings) {
    let pairs = pairs.iter().map(|(key, value)| (key.encode_utf16().collect(), value.encode_utf16().collect()));
    parse(&Locator { pairs: pairs.collect() }.build().unwrap())
}

#[test]
fn new_child_reads_back_as_written() {
    let (locator, findings) = parse(&Locator::for_parent(&parent()).unwrap().build().unwrap());
    let locator = locator.unwrap();
    assert!(findings.list().is_empty());
    assert_eq!(locator.get(PARENT_LINKAGE).unwrap(), "{0f0e0d0c-0b0a-0908-0706-050403020100}");
    assert_eq!(locator.get(PARENT_LINKAGE2), None);
    let link = locator.link();
    assert_eq!(link.ids, [ImageId::Vhdx(id())]);
    assert_eq!(link.hints.iter().map(|hint| hint.kind).collect::<Vec<_>>(), [HintKind::Relative, HintKind::Absolute]);
}

#[test]
fn absolute_paths_are_stored_behind_their_prefix() {
    for (given, stored) in [
        (r"D:\VMs\p.vhdx", r"\\?\D:\VMs\p.vhdx"),
        ("d:/VMs/p.vhdx", r"\\?\d:\VMs\p.vhdx"),
        (r"\\srv\share\p.vhdx", r"\\?\UNC\srv\share\p.vhdx"),
        ("//srv/share/p.vhdx", r"\\?\UNC\srv\share\p.vhdx"),
        (r"\\?\D:\p.vhdx", r"\\?\D:\p.vhdx"),
        (r"\\?\UNC\srv\share\p.vhdx", r"\\?\UNC\srv\share\p.vhdx"),
        (r"\\.\PhysicalDrive1", r"\\.\PhysicalDrive1"),
        (r"D:\VMs\..\p.vhdx", r"D:\VMs\..\p.vhdx"),
        ("D:p.vhdx", "D:p.vhdx"),
        ("/vm/p.vhdx", "/vm/p.vhdx"),
        ("", ""),
    ] {
        let paths = ParentPaths { relative: None, absolute: Some(given.into()) };
        let mut locator = Locator::for_parent(&NewParent { paths: paths.clone(), ..parent() }).unwrap();
        assert_eq!(locator.get(ABSOLUTE_PATH).unwrap(), stored, "a new child of {given}");
        locator.set(ABSOLUTE_PATH, "old");
        locator.relink(&NewParent { paths, ..parent() }).unwrap();
        assert_eq!(locator.get(ABSOLUTE_PATH).unwrap(), stored, "a child moved to {given}");
    }
}

#[test]
fn parent_of_another_format_or_without_a_path_is_refused() {
    let other = NewParent { id: ImageId::Vhd([1; 16]), ..parent() };
    assert_eq!(Locator::for_parent(&other).unwrap_err().kind(), ErrorKind::InvalidInput);
    let nowhere = NewParent { paths: ParentPaths::default(), ..parent() };
    assert_eq!(Locator::for_parent(&nowhere).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// What Windows 10 writes: another order of keys, an absolute path without prefix, a second linkage of zeros.
#[test]
fn windows_pairs_in_windows_order() {
    let (locator, findings) = parse_pairs(&[
        (PARENT_LINKAGE, "{0f0e0d0c-0b0a-0908-0706-050403020100}"),
        (ABSOLUTE_PATH, "C:\\parent.vhdx"),
        (RELATIVE_PATH, ".\\parent.vhdx"),
        (VOLUME_PATH, "\\\\?\\Volume{00000000-0000-0000-0000-000000000000}\\parent.vhdx"),
        (PARENT_LINKAGE2, "{00000000-0000-0000-0000-000000000000}"),
    ]);
    assert!(findings.list().is_empty());
    let link = locator.unwrap().link();
    assert_eq!(link.ids.len(), 1);
    let kinds: Vec<HintKind> = link.hints.iter().map(|hint| hint.kind).collect();
    assert_eq!(kinds, [HintKind::Relative, HintKind::Volume, HintKind::Absolute]);
}

#[test]
fn linkage_in_any_case_with_or_without_braces() {
    for (text, odd) in [
        ("{0f0e0d0c-0b0a-0908-0706-050403020100}", false),
        ("{0F0E0D0C-0B0A-0908-0706-050403020100}", true),
        ("0f0e0d0c-0b0a-0908-0706-050403020100", true),
    ] {
        let (locator, findings) = parse_pairs(&[(PARENT_LINKAGE, text), (RELATIVE_PATH, "p")]);
        assert_eq!(locator.unwrap().linkage(), Some(id()));
        assert_eq!(findings.list().len(), usize::from(odd), "{text}");
    }
    for text in ["", "{}", "{0f0e0d0c}", "0f0e0d0c0b0a09080706050403020100"] {
        let error = parse_pairs(&[(PARENT_LINKAGE, text), (RELATIVE_PATH, "p")]).0.unwrap_err();
        assert_eq!(error.problem().unwrap().structure, Structure::VhdxLocator, "{text}");
    }
    assert_eq!(parse_pairs(&[(RELATIVE_PATH, "p")]).0.unwrap_err().problem().unwrap().fault, Fault::Missing);
}

#[test]
fn second_linkage_is_accepted_as_the_parent_too() {
    let mut locator = Locator::for_parent(&parent()).unwrap();
    let next = Guid::from_u128(9);
    locator.set_linkage2(Some(next));
    let locator = parse(&locator.build().unwrap()).0.unwrap();
    assert!(locator.link().accepts(ImageId::Vhdx(next)) && locator.link().accepts(ImageId::Vhdx(id())));

    let mut relinked = locator;
    relinked.relink(&NewParent { id: ImageId::Vhdx(next), ..parent() }).unwrap();
    assert_eq!(relinked.link().ids, [ImageId::Vhdx(next)]);
}

#[test]
fn pairs_outside_the_item_and_other_types_are_refused() {
    let good = Locator::for_parent(&parent()).unwrap().build().unwrap();
    let fault = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        parse(&bytes).0.unwrap_err().problem().unwrap().fault
    };
    assert_eq!(fault(0, &[0]), Fault::Unsupported);
    assert_eq!(fault(18, &[0xFF, 0xFF]), Fault::Limit);
    assert_eq!(fault(18, &[0xFF, 0]), Fault::Range);
    assert_eq!(fault(20, &[0; 4]), Fault::Range);
    assert_eq!(fault(24, &[0xFF; 4]), Fault::Range);
    assert_eq!(fault(28, &[1, 0]), Fault::Range);
    assert_eq!(parse(&good[..19]).0.unwrap_err().problem().unwrap().fault, Fault::Truncated);
}

/// Every pair names the whole item: 256 of them would be 256 times its length.
#[test]
fn pairs_that_share_bytes_cannot_multiply_the_item() {
    let mut bytes = vec![0x41u8; 60_000];
    let header = RawLocatorHeader {
        locator_type: LOCATOR_TYPE_VHDX.into(),
        reserved: U16::ZERO,
        pair_count: U16::new(MAX_LOCATOR_PAIRS),
    };
    bytes[..20].copy_from_slice(header.as_bytes());
    for pair in 0..256 {
        let entry = RawLocatorEntry {
            key_offset: U32::new(4000),
            value_offset: U32::new(4000),
            key_length: U16::new(56_000),
            value_length: U16::new(56_000),
        };
        bytes[20 + pair * 12..32 + pair * 12].copy_from_slice(entry.as_bytes());
    }
    assert_eq!(parse(&bytes).0.unwrap_err().problem().unwrap().fault, Fault::Overlap);
}

proptest! {
    #[test]
    fn pairs_survive_building_and_parsing(
        pairs in proptest::collection::vec(
            (proptest::collection::vec(1u16.., 1..20), proptest::collection::vec(any::<u16>(), 0..200)), 0..12),
    ) {
        let mut locator = Locator::for_parent(&parent()).unwrap();
        for (key, value) in pairs {
            if locator.pairs.iter().all(|(other, _)| *other != key) {
                locator.pairs.push((key, value));
            }
        }
        let (parsed, findings) = parse(&locator.build().unwrap());
        prop_assert_eq!(parsed.unwrap(), locator);
        prop_assert!(findings.list().is_empty());
    }

    #[test]
    fn any_bytes_are_answered(
        edits in proptest::collection::vec((0usize..120, any::<u8>()), 0..8), len in 0usize..400,
    ) {
        let mut bytes = Locator::for_parent(&parent()).unwrap().build().unwrap();
        for (at, value) in edits {
            bytes[at] = value;
        }
        bytes.truncate(len.max(bytes.len() / 2));
        let (parsed, findings) = parse(&bytes);
        prop_assert_eq!(parsed.is_err(), findings.list().iter().any(|finding| finding.severity == Severity::Fatal));
    }
}
