//! Several files in a folder, each a disk over another or something else, opened as a chain.
//!
//! Owns: which files there are, and which of them the parent policy lets be opened.

use crate::input::Input;
use crate::scratch;
use crate::support::{SpecDisk, spec};
use crate::views::first_difference;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vhdkit::chain::{Chain, ChainOptions, ParentPolicy};
use vhdkit::storage::{Access, MemoryStorage, Storage};
use vhdkit::vhd::{Vhd, VhdCreate};
use vhdkit::vhdx::{Vhdx, VhdxCreate};
use vhdkit::{ErrorKind, Format, Image, ImageId, NewParent, ParentPaths};

/// Where files may lie, below the folder of one input. The child is always the first.
const PLACES: [&str; 7] = ["vm/0", "vm/A.vhd", "vm/a.vhd", "vm/sub/b", "other/c", "vm/c", "d"];
/// What a child may call its parent. `*` is the folder itself.
const PATHS: [&str; 16] = [
    ".\\A.vhd",
    ".\\a.vhd",
    ".\\c",
    "..\\d",
    "..\\other\\c",
    ".\\sub\\b",
    ".\\sub\\..\\A.VHD",
    "0",
    "",
    "C:\\VMs\\A.vhd",
    "\\\\?\\C:\\VMs\\sub\\B",
    "\\\\server\\share\\c",
    "/etc/passwd",
    "*/vm/c",
    "..\\..\\..\\..\\..\\..\\..\\dev\\zero",
    ".\\..\\vm\\.\\c",
];
const MIB: u64 = 1 << 20;

/// A folder of files.
pub(super) fn body(data: &[u8]) {
    let mut input = Input::new(data);
    let folder = scratch::folder();
    let root = fs::canonicalize(folder.path()).expect("a folder");
    for below in ["vm/sub", "other"] {
        fs::create_dir_all(root.join(below)).expect("a folder");
    }
    let mut ids: Vec<ImageId> = Vec::new();
    // Bases first, so that children can name them; the leaf is made last.
    for place in PLACES.iter().rev() {
        make(&mut input, &root, (place, *place == PLACES[0]), &mut ids);
    }
    let leaf = root.join(PLACES[0]);
    let (options, open) = options(&mut input, &root);
    match Chain::open(&leaf, &options) {
        Ok(chain) => judge(&chain, &root, &open),
        Err(error) => {
            let about_files = matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace | ErrorKind::Cancelled);
            assert!(!about_files, "{error:?}");
            assert!(!(open.named_first && plainly_whole(&root)), "a plain chain does not open: {error:?}");
        }
    }
}

/// Puts something at `place`; identities of new images are added to `ids`.
fn make(input: &mut Input<'_>, root: &Path, (place, is_leaf): (&str, bool), ids: &mut Vec<ImageId>) {
    let path = root.join(place);
    let kind = if is_leaf { input.byte() % 4 } else { input.byte() % 12 };
    match kind {
        0..=5 => {
            let parent = if is_leaf || input.flag() { parent(input, root, ids) } else { None };
            let format = if input.one_in(4) { Format::Vhdx } else { Format::Vhd };
            if let Some((id, file)) = create(input, format, parent) {
                ids.push(id);
                scratch::write(&path, &file);
            }
        }
        6 => {
            symlink(input.pick(&["A.vhd", "c", "../d", "../other/c", "0", "/etc/passwd", "."]), &path).expect("a link")
        }
        7 => fs::create_dir(&path).expect("a folder"),
        // Opening one as a file must not wait, or be done at all.
        8 => drop(UnixListener::bind(&path).expect("a socket")),
        9 => fs::write(&path, input.bytes(64)).expect("a file"),
        _ => {}
    }
}

fn parent(input: &mut Input<'_>, root: &Path, ids: &[ImageId]) -> Option<NewParent> {
    let id = *ids.get(input.below(ids.len() + 1))?;
    let path = |input: &mut Input<'_>| -> Option<String> {
        match input.byte() % 8 {
            0 => None,
            1 => {
                let units: Vec<u16> = (0..input.below(12)).map(|_| input.short()).collect();
                Some(String::from_utf16_lossy(&units))
            }
            _ => Some(input.pick(&PATHS).replace('*', &root.display().to_string())),
        }
    };
    let paths = ParentPaths { relative: path(input), absolute: path(input) };
    Some(NewParent { id, paths, timestamp: 0 })
}

/// An image of `format`, over `parent` if there is one; a parent of the other format is refused.
fn create(input: &mut Input<'_>, format: Format, parent: Option<NewParent>) -> Option<(ImageId, MemoryStorage)> {
    let file = Arc::new(MemoryStorage::new());
    let storage = Arc::clone(&file) as Arc<dyn Storage>;
    let (seed, few) = (input.byte() | 1, input.byte());
    let mut image = if format == Format::Vhd {
        let mut create = VhdCreate::new(16 << 10).block_size(4096).timestamp(0);
        if few % 4 == 0 {
            create = create.unique_id([1 + few / 128; 16]);
        }
        if let Some(parent) = parent {
            create = create.parent(parent);
        }
        Image::Vhd(Box::new(Vhd::create(storage, &create).ok()?))
    } else {
        let mut create = VhdxCreate::new(MIB).block_size(MIB as u32);
        if let Some(parent) = parent {
            create = create.parent(parent);
        }
        Image::Vhdx(Box::new(Vhdx::create(storage, &create).ok()?))
    };
    let at = u64::from(few % 4) * 4096;
    let want = vhdkit::Want { range: at..at + 4096, content: vhdkit::Content::Data };
    let reservation = image.sink().reserve(vec![want]).expect("memory takes writes");
    for place in reservation.places() {
        let fill = if place.content == vhdkit::Content::Data { seed } else { 0 };
        let bytes = vec![fill; place.len as usize];
        image.sink().storage().write_all_at(&bytes, place.at.get()).expect("memory takes writes");
    }
    image.sink().publish(reservation).expect("memory takes writes");
    image.sink().flush().expect("memory takes writes");
    let id = image.id()?;
    image.close().expect("memory takes writes");
    Some((id, MemoryStorage::clone(&file)))
}

/// How the chain is opened, and the folders that lets be opened; besides, with `SameDirectory`, the child's own.
fn options(input: &mut Input<'_>, root: &Path) -> (ChainOptions, Open) {
    let vm = root.join("vm");
    let (policy, beside, mut open) = match input.byte() % 4 {
        0 => (ParentPolicy::Deny, false, vec![]),
        1 => (ParentPolicy::Under(vm.clone()), false, vec![vm.clone()]),
        2 => (ParentPolicy::Anywhere, false, vec![PathBuf::from("/")]),
        _ => (ParentPolicy::SameDirectory, true, vec![]),
    };
    let (more, denies) = (input.byte() % 4, policy == ParentPolicy::Deny);
    let mut options = ChainOptions::new().access(Access::Read).policy(policy);
    match more {
        0 => {
            options = options.map("C:\\VMs", &vm).expect("a Windows path");
            open.push(vm);
        }
        1 => {
            options = options.search(root);
            open.push(root.to_path_buf());
        }
        _ => {}
    }
    (options, Open { beside, below: open, named_first: more > 0 && !denies })
}

/// What a parent policy lets be opened.
struct Open {
    /// What lies beside the child.
    beside: bool,
    /// What lies below one of these.
    below: Vec<PathBuf>,
    /// What the relative path leads to in the leaf's folder is tried first.
    named_first: bool,
}

impl Open {
    fn lets(&self, child: &Path, path: &Path) -> bool {
        (self.beside && child.parent() == path.parent()) || self.below.iter().any(|open| path.starts_with(open))
    }
}

/// An open chain is made of regular files the policy lets be opened, each once, and reads as the second reader says.
fn judge(chain: &Chain, root: &Path, open: &Open) {
    let paths: Vec<PathBuf> = chain.layers().iter().map(|layer| layer.path().expect("a path").to_path_buf()).collect();
    let real: Vec<PathBuf> = paths.iter().map(|path| fs::canonicalize(path).expect("a file")).collect();
    for (index, path) in real.iter().enumerate() {
        assert!(fs::metadata(path).expect("a file").is_file(), "{}", path.display());
        assert!(!real[..index].contains(path), "{} twice", path.display());
        let allowed = index == 0 || open.lets(&real[index - 1], path);
        assert!(allowed, "{} was opened below {}", path.display(), root.display());
    }
    let disk = SpecDisk::open(&paths).unwrap_or_else(|why| panic!("the second reader finds: {why}"));
    let size = chain.virtual_size();
    assert_eq!(size, disk.size(), "the size of the disk");
    let mut bytes = vec![0xEE; size as usize];
    chain.read_at(&mut bytes, 0).unwrap_or_else(|error| panic!("does not read: {error}"));
    let other = disk.read(0, size as usize).unwrap_or_else(|why| panic!("the second reader finds: {why}"));
    assert!(bytes == other, "{}", first_difference(&bytes, &other));
}

/// Whether the leaf has no parent, or one that lies in its own folder under the relative path it names, and has none.
fn plainly_whole(root: &Path) -> bool {
    let opened = |path: &Path| -> Option<spec::vhd::Vhd<'static>> {
        match spec::Layer::open(Box::new(fs::File::open(path).ok()?)).ok()? {
            spec::Layer::Vhd(image) => Some(image),
            _ => None,
        }
    };
    let leaf_path = root.join(PLACES[0]);
    let Some(leaf) = opened(&leaf_path) else { return false };
    if !leaf.is_differencing() {
        return true;
    }
    let Some(name) = leaf.locator(b"W2ru").and_then(|path| path.strip_prefix(".\\")) else { return false };
    let parent_path = leaf_path.with_file_name(name);
    let is_plain = !name.contains(['\\', '/']) && fs::symlink_metadata(&parent_path).is_ok_and(|entry| entry.is_file());
    let Some(parent) = opened(&parent_path).filter(|_| is_plain) else { return false };
    !parent.is_differencing() && parent.id == leaf.parent_id
}
