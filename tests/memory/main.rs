//! How much memory the program takes, alone in this binary: the peak of a child counts what its parent held when it was
//! started, so nothing else may run here.

use std::process::{Command, Stdio};
use wait4::Wait4;

const MIB: u64 = 1 << 20;
/// What the largest disk with the smallest blocks may take: its table alone is 513 MiB.
const LIMIT: u64 = 64 * MIB;

fn peak(folder: &std::path::Path, line: &str) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vhdkit"))
        .args(line.split(' '))
        .current_dir(folder)
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let used = child.wait4().expect("the program ends");
    assert!(used.status.success(), "vhdkit {line}");
    eprintln!("vhdkit {line}: {} MiB at most", used.rusage.maxrss / MIB);
    used.rusage.maxrss
}

#[test]
fn the_largest_vhdx_is_made_and_shown_in_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        "create --size 64T --block-size 1M huge.vhdx",
        "info huge.vhdx",
        "create --parent huge.vhdx child.vhdx",
        "info --chain child.vhdx",
        "read child.vhdx --offset 63T --length 64M",
        "merge child.vhdx --depth 1 --dry-run",
    ] {
        let peak = peak(folder.path(), line);
        assert!(peak < LIMIT, "vhdkit {line} took {} MiB", peak / MIB);
    }
}
