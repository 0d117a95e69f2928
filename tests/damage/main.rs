//! The damage matrix: every field of every structure of a small image of each kind, set to each of a list of nasty
//! values, one at a time, with the checksums over it made right again and left wrong.
//!
//! Each file must read as the second reader says it does, or as it did before the damage, or be refused with an error
//! that names the structure; and a write to it must change what it was asked to change, or nothing.

mod blame;
// Nothing here edits by zeroing, or reads by the model.
#[allow(dead_code)]
#[path = "../support/chains.rs"]
mod chains;
mod fields;
mod images;
#[path = "../support/mod.rs"]
mod support;
mod trial;

use fields::{Field, Seal};
use images::Subject;
use trial::Trial;

/// What one kind of image came to.
#[derive(Debug, Default)]
struct Tally {
    cases: u64,
    refused: u64,
    failures: Vec<String>,
}

fn run(subject: &Subject) {
    let trial = Trial::new(subject);
    let mut tally = Tally::default();
    for field in &subject.fields {
        let structures = (subject.blame)(&field.name);
        for (value, bytes) in field.values(&subject.fresh()) {
            for sealed in [true, false] {
                let file = subject.fresh();
                field.put(&file, &bytes);
                let seals: &[Seal] = if sealed { &field.seals } else { &[] };
                seals.iter().for_each(|seal| seal.mend(&file));
                let name = format!("{} = {value}{}", field.name, if sealed { "" } else { ", checksum left wrong" });
                judge(&trial, &mut tally, (&name, structures), &file);
                if field.seals.is_empty() {
                    break;
                }
            }
        }
    }
    for len in subject.lengths() {
        let file = subject.fresh();
        vhdkit::storage::Storage::set_len(&file, len).unwrap();
        judge(&trial, &mut tally, (&format!("file length = {len}"), blame::ANY), &file);
    }
    let Tally { cases, refused, .. } = tally;
    println!("{}: {} fields, {cases} cases, {refused} of them refused", subject.name, subject.fields.len());
    let shown: Vec<&String> = tally.failures.iter().take(40).collect();
    assert!(tally.failures.is_empty(), "{}: {} failures, such as {shown:#?}", subject.name, tally.failures.len());
    assert!(tally.refused > 20 && tally.refused < tally.cases, "{}: {tally:?}", subject.name);
}

fn judge(
    trial: &Trial<'_>,
    tally: &mut Tally,
    (name, structures): (&str, &[vhdkit::Structure]),
    file: &vhdkit::storage::MemoryStorage,
) {
    tally.cases += 1;
    match trial.judge(file, structures) {
        Ok(opened) => tally.refused += u64::from(!opened),
        Err(why) => tally.failures.push(format!("{name}: {why}")),
    }
}

/// The most memory this process ever held, in bytes, where the system says.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// Bug this finds: a number from the file that sizes an allocation. A gibibyte is far more than all subjects together
/// take, and far less than any of the huge values ask for.
fn assert_small() {
    assert!(peak().is_none_or(|bytes| bytes < 1 << 30), "{:?} bytes of memory", peak());
}

macro_rules! matrix {
    ($($name:ident),*) => { $(
        #[test]
        fn $name() {
            run(&images::$name());
            assert_small();
        }
    )* };
}

matrix!(
    vhd_fixed,
    vhd_dynamic,
    vhd_differencing,
    vhdx_fixed,
    vhdx_dynamic,
    vhdx_differencing,
    vhdx_dirty_log,
    vhd_parent,
    vhdx_parent
);

/// Bug this finds: a matrix that would let wrong bytes pass.
#[test]
fn other_bytes_are_seen() {
    let subject = images::vhd_dynamic();
    let trial = Trial::new(&subject);
    let file = subject.fresh();
    let data = Field::plain("data", (subject.some_data(), 4));
    data.put(&file, &[9; 4]);
    // The second reader sees the changed data too; held against the first contents it must not pass.
    assert_eq!(trial.judge(&file, &[]), Ok(true));
    assert!(trial.read_as_before(&file).is_err());
    assert!(trial.read_as_before(&subject.fresh()).is_ok());
}
