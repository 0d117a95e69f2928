//! The bodies of the fuzz targets on a stable toolchain: over every committed input, and over mutations of them that are
//! the same on every run.
//!
//! Bugs this finds: what the fuzz targets found once, again; and a body that no longer fits its inputs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use vhdkit_fuzz::{MEMORY_LIMIT, TARGETS, memory};

/// Mutations of each input of each target. With `VHDKIT_FUZZ_MUTATIONS` in the environment so many.
const MUTATIONS: u64 = 3;

/// Numbers that look random and are the same every time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }
}

/// The committed inputs of `target`, by path.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = fs::read(&path).expect("a readable input");
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

fn mutate(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.splice(at..at, random.next().to_le_bytes()).for_each(drop),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            _ => bytes.extend(random.next().to_le_bytes()),
        }
    }
    bytes
}

/// What runs now is printed when it fails.
struct Running<'a>(&'a str, &'a Path, Vec<u8>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = std::env::temp_dir().join(format!("vhdkit-fuzz-{}", self.0));
            let told = fs::write(&kept, &self.2).is_ok();
            eprintln!("{}: a mutation of {} fails; kept at {} ({told})", self.0, self.1.display(), kept.display());
        }
    }
}

/// One input at a time: the memory limit is for one.
static TURN: Mutex<()> = Mutex::new(());

fn run(target: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, body) = *TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    let wanted = std::env::var("VHDKIT_FUZZ_MUTATIONS").ok().and_then(|count| count.parse().ok());
    let mutations = wanted.unwrap_or(MUTATIONS);
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for (path, input) in &seeds {
        let running = Running(target, path, input.clone());
        body(&running.2);
    }
    let mut random = Random(0x5eed);
    for _ in 0..mutations {
        for (path, input) in &seeds {
            let running = Running(target, path, mutate(input, &mut random));
            body(&running.2);
        }
    }
    assert!(memory() < MEMORY_LIMIT / 2, "{target} keeps {} bytes", memory());
    println!("{target}: {} inputs, {} mutations", seeds.len(), mutations * seeds.len() as u64);
}

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*
        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

targets!(
    open_vhd,
    open_vhdx,
    log_replay,
    locator,
    chain,
    map_vs_model,
    write_vs_model,
    merge_vs_model,
    crash_schedule,
    repair,
);

/// Bug this finds: a target that is not tested, not built, or has no entry.
#[test]
fn every_target_is_tested_and_has_an_entry() {
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known, TESTED);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("the manifest");
    for name in &known {
        let entry = fs::read_to_string(root.join("fuzz_targets").join(name).with_extension("rs")).expect("an entry");
        assert!(entry.contains(&format!("body(\"{name}\")")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), known.len());
    assert_eq!(fs::read_dir(root.join("fuzz_targets")).expect("entries").count(), known.len());
    assert_eq!(fs::read_dir(root.join("seeds")).expect("seeds").count(), known.len());
}
