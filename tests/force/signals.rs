//! Merges asked to stop by the signals a person or a service manager sends.

use crate::lab::{BASE, FORMATS, LEAF, Lab, view_of};
use crate::program::{End, Running, ok, say, vhdkit};
use rustix::process::Signal;
use vhdkit::Format;

fn line(lab: &Lab) -> String {
    format!("merge {} --depth 2 --json --checkpoint-every 1M", lab.name(LEAF))
}

/// A merge that got `signals` while it ran, and how it ended.
fn stopped(format: Format, signals: &[Signal]) -> (Lab, End) {
    for _ in 0..50 {
        let lab = Lab::new(format);
        let mut merge = Running::start(vhdkit(lab.folder.path(), &format!("{} --progress json", line(&lab))));
        merge.works_until(|| lab.checkpoint(BASE).exists());
        for &signal in signals {
            merge.signal(signal);
        }
        let end = merge.end();
        if end.code != Some(0) {
            return (lab, end);
        }
    }
    panic!("the merge always ends before the signal comes");
}

/// The source shows what it showed, and the same merge finishes; answers where it went on.
fn finishes(lab: &Lab) -> Option<u64> {
    let view = view_of(lab.format, LEAF);
    lab.assert_shows(LEAF, view, "after the signal");
    let report: serde_json::Value = serde_json::from_slice(&ok(lab.folder.path(), &line(lab))).expect("a report");
    lab.assert_shows(LEAF, view, "after the rerun");
    lab.assert_shows(BASE, view, "after the rerun");
    lab.assert_well_formed(BASE);
    assert!(!lab.checkpoint(BASE).exists());
    report["resumed_at"].as_u64()
}

#[test]
fn a_signal_stops_a_merge_and_a_rerun_goes_on() {
    for format in FORMATS {
        for signal in [Signal::INT, Signal::TERM] {
            let (lab, end) = stopped(format, &[signal]);
            assert_eq!(end.code, Some(130), "{}", end.stderr);
            let said: Vec<&str> = end.stderr.lines().filter(|line| !line.starts_with('{')).collect();
            assert!(said[0].starts_with("vhdkit: ") && said[0].ends_with("cancelled"), "{said:?}");
            assert!(said[1].contains("run the same merge again to finish it"), "{said:?}");
            assert!(finishes(&lab).is_some(), "{format} {signal:?}: it starts from the beginning");
        }
    }
}

#[test]
fn a_second_signal_ends_a_merge_at_once_and_is_safe() {
    let mut at_once = 0;
    for format in FORMATS {
        for _ in 0..6 {
            // Two of one kind might be delivered as one.
            let (lab, end) = stopped(format, &[Signal::INT, Signal::TERM]);
            assert_eq!(end.code, Some(130), "{}", end.stderr);
            assert!(end.stderr.contains("run the same merge again to finish it"), "{}", end.stderr);
            at_once += usize::from(end.stderr.contains("ended at once"));
            finishes(&lab);
        }
    }
    say(format_args!("{at_once} merges of 12 were ended by the second signal"));
    assert!(at_once > 0, "none was quick enough");
}
