//! An XFS of a version that kernels no longer mount, filled and read by the tools of XFS.
//!
//! Owns: what those tools are asked and how their answers are read. Must not know: images.

use crate::files;
use crate::program::run;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// At most so much of a free extent gets the bytes of deleted files.
const FILLED: u64 = 12 << 20;

/// Makes the file system in `file` by `make` with the files that stay in it, and leaves what deleted ones would in its
/// free space.
pub(crate) fn fill(file: &Path, make: &str) {
    let folder = file.parent().expect("a folder");
    let source = folder.join("source");
    fs::create_dir(&source).expect("a folder");
    let mut prototype = String::from("/none\n0 0\nd--755 0 0\n");
    for number in (0..files::FILES).filter(|number| files::stays(*number)) {
        let (name, path) = (files::name(number), source.join(files::name(number)));
        fs::write(&path, files::contents(number)).expect("room for a file");
        prototype += &format!("{name} ---644 0 0 {}\n", path.display());
    }
    prototype += "$\n";
    let list = folder.join("prototype");
    fs::write(&list, prototype).expect("room for a list");
    run(folder, &format!("{make} -p {}", list.display()));
    fs::remove_dir_all(&source).expect("a folder");

    let layout = Layout::of(file);
    let disk = File::options().write(true).open(file).expect("the file system");
    for line in ask(file, &["freesp -d"]).lines() {
        let numbers: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // Single blocks are those that the allocator keeps for itself. The histogram after the list has five columns.
        let [group, block, blocks] = numbers[..] else { continue };
        if blocks == 1 {
            continue;
        }
        let len = (blocks * layout.block).min(FILLED);
        disk.write_all_at(&files::left_behind(len as usize), layout.at(group, block)).expect("room");
    }
}

/// # Panics
/// When a file that stays is not what it was.
#[track_caller]
pub(crate) fn assert_all(file: &Path, when: &str) {
    let layout = Layout::of(file);
    let disk = File::open(file).expect("the file system");
    for number in (0..files::FILES).filter(|number| files::stays(*number)) {
        let name = files::name(number);
        let said = ask(file, &[&format!("path /{name}"), "print core.size", "bmap"]);
        let size = said.lines().find_map(|line| line.strip_prefix("core.size = ")).expect("a size");
        let mut bytes = vec![0; size.parse::<usize>().expect("a size").next_multiple_of(layout.block as usize)];
        for line in said.lines().filter(|line| line.starts_with("data offset ")) {
            let words: Vec<&str> = line.split(&[' ', '(', '/', ')'][..]).filter(|word| !word.is_empty()).collect();
            let number = |at: usize| words[at].parse::<u64>().unwrap_or_else(|_| panic!("{when}: {line}"));
            // data offset O startblock S G B count C flag F
            let (offset, group, block, count) = (number(2), number(5), number(6), number(8));
            let part = &mut bytes[(offset * layout.block) as usize..][..(count * layout.block) as usize];
            disk.read_exact_at(part, layout.at(group, block)).expect("the file system");
        }
        bytes.truncate(size.parse().expect("a size"));
        assert!(bytes == files::contents(number), "{when}: {name} differs");
    }
}

struct Layout {
    block: u64,
    group_blocks: u64,
}

impl Layout {
    fn of(file: &Path) -> Self {
        let said = ask(file, &["sb 0", "print blocksize agblocks"]);
        let field = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            line.trim_start_matches(" = ").parse().expect("a number")
        };
        Self { block: field("blocksize"), group_blocks: field("agblocks") }
    }

    fn at(&self, group: u64, block: u64) -> u64 {
        (group * self.group_blocks + block) * self.block
    }
}

/// What xfs_db says to `questions`.
#[track_caller]
fn ask(file: &Path, questions: &[&str]) -> String {
    let folder = file.parent().expect("a folder");
    let script = folder.join("questions");
    fs::write(&script, questions.join("\n") + "\nquit\n").expect("room for a list");
    crate::program::sh(folder, &format!("PATH=$PATH:/usr/sbin:/sbin xfs_db -r {} < questions", file.display()))
        .replace("xfs_db> ", "")
}
