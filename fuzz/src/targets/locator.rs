//! Parent locators of any content, and Windows paths mapped to folders here.
//!
//! Owns: a plain reading of what a locator says, and files to be found by a path.

use crate::fields::Seal;
use crate::guarded::Guarded;
use crate::input::Input;
use crate::scratch;
use crate::subjects::{VHD, VHDX};
use crate::support::spec::vhdx::{LOCATOR_TYPE, METADATA_REGION, PARENT_LOCATOR, items, regions};
use crate::views::assert_typed;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use vhdkit::chain::{Chain, ChainOptions, Layer, ParentPolicy};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::vhd::{Vhd, VhdCreate};
use vhdkit::{HintKind, ImageId, NewParent, ParentLink, ParentPaths};

const KIB: u64 = 1 << 10;
const LINKAGE: &str = "{AAAAAAAA-bbbb-4ccc-8ddd-EEEEEEEEEEEE}";

/// One locator, of one format; or one path.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 3 {
        0 => vhdx(&mut input),
        1 => vhd(&mut input),
        _ => mapping(&mut input),
    }
}

/// UTF-16 that is text, or a path, or anything.
fn units(input: &mut Input<'_>) -> Vec<u16> {
    let texts = [".\\p.vhdx", "..\\a\\p.vhdx", "C:\\vms\\p.vhdx", "\\\\?\\Volume{12-34}\\p", "/p", "x", LINKAGE];
    match input.byte() % 4 {
        0 => (0..input.below(20)).map(|_| input.short()).collect(),
        1 => (0..input.below(20)).map(|_| u16::from(input.byte() % 128)).collect(),
        _ => input.pick(&texts).encode_utf16().collect(),
    }
}

fn le_bytes(units: &[u16]) -> Vec<u8> {
    units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// VHDX

fn vhdx(input: &mut Input<'_>) {
    let keys = ["parent_linkage2", "relative_path", "volume_path", "absolute_win32_path", "Relative_path", "other"];
    let mut pairs: Vec<(Vec<u16>, Vec<u16>)> = Vec::new();
    for _ in 0..input.below(7) {
        let key = if input.one_in(8) { units(input) } else { input.pick(&keys).encode_utf16().collect() };
        pairs.push((key, units(input)));
    }
    let linkage = input.byte();
    if !linkage.is_multiple_of(8) {
        let text = if linkage % 8 == 1 { units(input) } else { LINKAGE.encode_utf16().collect() };
        let place = usize::from(linkage / 8) % (pairs.len() + 1);
        pairs.insert(place, ("parent_linkage".encode_utf16().collect(), text));
    }
    let mut item = item(&pairs);
    let broken = input.one_in(4);
    if broken {
        for _ in 0..input.below(6) {
            let at = usize::from(input.short()) % item.len();
            item[at] = input.byte();
        }
    }
    let file = with_item(&item);
    match Layer::open(Guarded::for_reading(&file), Access::Read) {
        Ok(layer) if !broken => {
            let link = layer.image().parent_link().expect("a differencing image");
            agrees_with_pairs(&link, &pairs);
        }
        Ok(layer) => drop(layer.image().parent_link().expect("a differencing image")),
        Err(error) => {
            assert_typed(&error);
            let lossy = |units: &[u16]| String::from_utf16_lossy(units);
            let sound = pairs.iter().all(|(key, _)| !key.is_empty())
                && pairs.iter().any(|(key, value)| lossy(key) == "parent_linkage" && lossy(value) == LINKAGE);
            let first = pairs.iter().find(|(key, _)| lossy(key) == "parent_linkage");
            let first_is_sound = first.is_some_and(|(_, value)| lossy(value) == LINKAGE);
            assert!(broken || !sound || !first_is_sound, "a sound locator is refused: {error}");
        }
    }
}

/// The item's bytes, each text in its own place.
fn item(pairs: &[(Vec<u16>, Vec<u16>)]) -> Vec<u8> {
    let (mut rows, mut texts) = (Vec::new(), Vec::new());
    let start = 20 + 12 * pairs.len();
    for (key, value) in pairs {
        let mut place = |units: &[u16]| {
            let at = start + texts.len();
            texts.extend(le_bytes(units));
            (at as u32, units.len() as u16 * 2)
        };
        let ((key_at, key_len), (value_at, value_len)) = (place(key), place(value));
        rows.extend(key_at.to_le_bytes());
        rows.extend(value_at.to_le_bytes());
        rows.extend(key_len.to_le_bytes());
        rows.extend(value_len.to_le_bytes());
    }
    let count = (pairs.len() as u16).to_le_bytes();
    [&LOCATOR_TYPE[..], &[0; 2], &count, &rows, &texts].concat()
}

/// The differencing image with `item` in place of its locator.
fn with_item(item: &[u8]) -> MemoryStorage {
    let file = VHDX[1].fresh();
    let get = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at).expect("inside the file");
        bytes
    };
    let regions = regions(&get(192 * KIB, 64 * KIB));
    let region = regions.iter().find(|row| row.id == METADATA_REGION).expect("a metadata region").offset;
    let rows = items(&get(region, 64 * KIB)).expect("a metadata table");
    let row = rows.iter().position(|row| row.id == PARENT_LOCATOR).expect("a locator");
    let at = region + 32 + 32 * row as u64;
    let place = 512 * KIB;
    file.write_all_at(&(place as u32).to_le_bytes(), at + 16).expect("memory takes writes");
    file.write_all_at(&(item.len() as u32).to_le_bytes(), at + 20).expect("memory takes writes");
    file.write_all_at(item, region + place).expect("memory takes writes");
    file
}

fn agrees_with_pairs(link: &ParentLink, pairs: &[(Vec<u16>, Vec<u16>)]) {
    let value = |key: &str| {
        let found = pairs.iter().find(|(have, _)| key.encode_utf16().eq(have.iter().copied()));
        found.map(|(_, value)| String::from_utf16_lossy(value))
    };
    let keys = [
        ("relative_path", HintKind::Relative),
        ("volume_path", HintKind::Volume),
        ("absolute_win32_path", HintKind::Absolute),
    ];
    let wanted: Vec<(HintKind, String)> =
        keys.into_iter().filter_map(|(key, kind)| Some((kind, value(key)?))).collect();
    let found: Vec<(HintKind, String)> = link.hints.iter().map(|hint| (hint.kind, hint.path.clone())).collect();
    assert_eq!(found, wanted);
    if value("parent_linkage").is_some_and(|text| text == LINKAGE) {
        let named = link.ids.first().map(ToString::to_string);
        assert_eq!(named.as_deref(), Some("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"));
    }
    let two = value("parent_linkage2").is_some_and(|text| text == LINKAGE);
    assert!(!two || link.ids.len() == 2, "{:?}", link.ids);
    assert!(!link.ids.is_empty() && link.ids.len() <= 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// VHD

const CODES: [&[u8; 4]; 7] = [b"W2ru", b"W2ku", b"MacX", b"Wi2r", b"Wi2k", b"Mac ", b"\0\0\0\0"];

fn vhd(input: &mut Input<'_>) {
    let file = VHD[1].fresh();
    let len = file.len().expect("memory has a length");
    let tail = len - 512;
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, tail).expect("a footer");
    let mut at = tail;
    let mut wanted: Vec<(usize, String)> = Vec::new();
    for slot in 0..8 {
        let code = input.below(CODES.len());
        let data = if code < 2 { le_bytes(&units(input)) } else { eight_bit(input) };
        let entry = [
            &CODES[code][..],
            &(data.len().next_multiple_of(512) as u32).to_be_bytes(),
            &(data.len() as u32).to_be_bytes(),
            &[0; 4],
            &at.to_be_bytes(),
        ]
        .concat();
        file.write_all_at(&entry, 512 + 576 + 24 * slot).expect("memory takes writes");
        file.write_all_at(&data, at).expect("memory takes writes");
        if code < 5 {
            wanted.extend(plain(code, &data).map(|path| (code, path)));
        }
        at += data.len().next_multiple_of(512) as u64;
    }
    let name: Vec<u16> = units(input);
    let mut field: Vec<u8> = name.iter().flat_map(|unit| unit.to_be_bytes()).collect();
    field.resize(512, 0);
    file.write_all_at(&field, 512 + 64).expect("memory takes writes");
    file.write_all_at(&footer, at).expect("memory takes writes");
    Seal::VhdHeader(512).mend(&file);
    let layer = Layer::open(Guarded::for_reading(&file), Access::Read);
    let layer = layer.unwrap_or_else(|error| panic!("paths do not keep an image from opening: {error}"));
    let link = layer.image().parent_link().expect("a differencing image");
    wanted.sort_by_key(|(code, _)| *code);
    let mut wanted: Vec<String> = wanted.into_iter().map(|(_, path)| path).collect();
    let name: Vec<u16> = name.into_iter().take_while(|&unit| unit != 0).collect();
    if !name.is_empty() {
        wanted.push(String::from_utf16_lossy(&name));
    }
    let found: Vec<String> = link.hints.iter().map(|hint| hint.path.clone()).collect();
    assert_eq!(found, wanted);
    let mut parent = [0; 16];
    file.read_exact_at(&mut parent, 512 + 40).expect("a header");
    assert_eq!(link.ids, [ImageId::Vhd(parent)]);
}

fn eight_bit(input: &mut Input<'_>) -> Vec<u8> {
    let texts = ["file://localhost/a%20b/p.vhd", "file:///p%2", "file://./p%zz%+1.vhd", "p.vhd", "", "file://", "\0"];
    if input.flag() {
        input.pick(&texts).as_bytes().to_vec()
    } else {
        let len = input.below(24);
        input.bytes(len)
    }
}

/// What the data of a locator says, read the plain way; nothing when that is no path.
fn plain(code: usize, data: &[u8]) -> Option<String> {
    let text = match code {
        0 | 1 => {
            let units: Vec<u16> = data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            String::from_utf16_lossy(&units)
        }
        2 => return url(data),
        _ => data.iter().map(|&byte| byte as char).collect(),
    };
    let path = text.trim_end_matches('\0');
    (!path.is_empty()).then(|| path.to_owned())
}

/// RFC 2396: the path of a file URL, `%XX` being one byte; the host does not matter, `.` is none.
fn url(data: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(data).trim_end_matches('\0').to_owned();
    let rest = text.strip_prefix("file://")?;
    let start = if rest.starts_with('.') { 0 } else { rest.find('/').unwrap_or(0) };
    let bytes = &rest.as_bytes()[start..];
    let (mut path, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                path.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                path.push(byte);
                at += 1;
            }
        }
    }
    (!path.is_empty()).then(|| String::from_utf8_lossy(&path).into_owned())
}

// ---------------------------------------------------------------------------------------------------------------------
// Mapped paths

const ROOTS: [&str; 6] = ["C:", "d:", "\\\\srv\\share", "\\\\?\\Volume{1-2}", "\\\\?\\C:", "\\\\?\\UNC\\srv\\share"];
const NAMES: [&str; 8] = ["VMs", "vms", "a", "B", "\u{dc}ber", "..", ".", "x y"];

/// A child names its parent by a Windows path below a mapped directory, in any spelling; the parent lies there.
fn mapping(input: &mut Input<'_>) {
    let folder = scratch::folder();
    let root = fs::canonicalize(folder.path()).expect("a folder");
    let local = root.join("local");
    fs::create_dir(&local).expect("a folder");
    let from_root = input.below(ROOTS.len());
    let from: Vec<&str> = (0..input.below(3)).map(|_| input.pick(&NAMES)).collect();
    let below: Vec<&str> = (0..input.below(5)).map(|_| input.pick(&NAMES)).chain(["p.vhd"]).collect();
    let mapped = std::iter::once(ROOTS[from_root]).chain(from.iter().copied()).collect::<Vec<_>>().join("\\");
    let named = spelled(input, from_root, from.iter().chain(&below));
    // Where the path leads, dots taken by their names.
    let (prefix, whole) = (resolve(from.iter().copied()), resolve(from.iter().chain(&below).copied()));
    let inside = whole.len() > prefix.len() && prefix.iter().zip(&whole).all(|(a, b)| same_name(a, b));
    let id = write_vhd(&root.join("elsewhere.vhd"), None, "");
    if inside {
        let place = whole[prefix.len()..].iter().fold(local.clone(), |path, name| path.join(name));
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        fs::rename(root.join("elsewhere.vhd"), &place).expect("a file");
    }
    fs::create_dir(root.join("child")).expect("a folder");
    write_vhd(&root.join("child/c.vhd"), Some(id), &named);
    let options = ChainOptions::new().policy(ParentPolicy::Deny);
    let options = options.map(&mapped, &local).unwrap_or_else(|error| panic!("{mapped:?} is absolute: {error}"));
    match Chain::open(root.join("child/c.vhd"), &options) {
        Ok(chain) => {
            assert!(inside, "{named:?} does not lie below {mapped:?}");
            let found = chain.layers()[1].path().expect("a path").to_path_buf();
            assert!(found.starts_with(&local), "{}", found.display());
        }
        Err(error) => assert!(!inside, "{named:?} lies below {mapped:?}, and: {error}"),
    }
}

/// The path of `names` below a root, in one of the spellings Windows takes for the same.
fn spelled<'a>(input: &mut Input<'_>, root: usize, names: impl Iterator<Item = &'a &'a str>) -> String {
    let roots: &[&str] = match root {
        0 | 4 => &["C:", "c:", "\\\\?\\C:", "\\??\\c:", "\\\\.\\C:"],
        1 => &["D:", "d:", "\\\\?\\d:"],
        2 | 5 => {
            &["\\\\srv\\share", "\\\\SRV\\Share", "\\\\?\\UNC\\srv\\share", "\\\\?\\unc\\Srv\\share", "//srv/share"]
        }
        _ => &["\\\\?\\Volume{1-2}", "\\\\?\\volume{1-2}"],
    };
    let mut path = input.pick(roots).to_owned();
    for name in names {
        path.push_str(input.pick(&["\\", "\\", "/", "\\\\", "\\.\\"]));
        let name = match input.byte() % 4 {
            0 => name.to_uppercase(),
            1 => name.to_lowercase(),
            _ => (*name).to_owned(),
        };
        path.push_str(&name);
    }
    path
}

/// Names without dots: `..` takes back the one before it, if there is one.
fn resolve<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut list = Vec::new();
    for name in names {
        match name {
            "." => {}
            ".." => drop(list.pop()),
            name => list.push(name),
        }
    }
    list
}

fn same_name(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

/// A small VHD at `path`, over the disk `parent` that `named` names.
fn write_vhd(path: &Path, parent: Option<ImageId>, named: &str) -> ImageId {
    let file = Arc::new(MemoryStorage::new());
    let mut create = VhdCreate::new(4096).block_size(4096);
    if let Some(id) = parent {
        let paths = ParentPaths { relative: None, absolute: Some(named.to_owned()) };
        create = create.parent(NewParent { id, paths, timestamp: 0 });
    }
    let image = Vhd::create(Arc::clone(&file) as Arc<dyn Storage>, &create).expect("an image");
    let id = image.id();
    image.close().expect("memory takes writes");
    scratch::write(path, &file);
    id
}
