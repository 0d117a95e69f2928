//! Merging chains of three, in both formats, against plain arrays of bytes.

use crate::tool::{KIB, MIB, Tool, pattern};
use std::fs;

const SIZE: u64 = 8 * MIB;

/// base, middle and leaf of one format, each with writes of its own over parts of the others.
struct Three {
    tool: Tool,
    format: &'static str,
    /// What base, middle and leaf show.
    views: [Vec<u8>; 3],
}

impl Three {
    fn new(format: &'static str) -> Self {
        let tool = Tool::new();
        let mut disk = vec![0; SIZE as usize];
        let block = if format == "vhd" { "512K" } else { "1M" };
        tool.ok(&format!("create --size 8M --block-size {block} base.{format}"));
        tool.ok(&format!("create --size 8M --block-size 2M unrelated.{format}"));
        let mut views = [const { Vec::new() }; 3];
        let writes: [(&str, &[(u64, u64)]); 3] = [
            ("base", &[(0, 3 * MIB), (5 * MIB + 100, 40 * KIB)]),
            ("middle", &[(MIB - 700, 1400), (4 * MIB, MIB + 300), (6 * MIB + 512, 512)]),
            ("leaf", &[(200, 300), (MIB, 64 * KIB), (4 * MIB + 1000, 9000), (SIZE - 1, 1)]),
        ];
        for (index, (name, ranges)) in writes.into_iter().enumerate() {
            if index > 0 {
                tool.ok(&format!("create --parent {}.{format} {name}.{format}", writes[index - 1].0));
            }
            for (number, &(offset, len)) in ranges.iter().enumerate() {
                let bytes = pattern(len, (index * 16 + number) as u8);
                tool.write(&format!("{name}.{format}"), offset, &bytes);
                disk[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
            }
            // A hole of zeros in every layer, over data of the ones below.
            let hole =
                (2 * MIB + index as u64 * 128 * KIB) as usize..(2 * MIB + index as u64 * 128 * KIB + 70_000) as usize;
            tool.write(&format!("{name}.{format}"), hole.start as u64, &vec![0; hole.len()]);
            disk[hole].fill(0);
            views[index] = disk.clone();
        }
        let three = Self { tool, format, views };
        for (name, view) in ["base", "middle", "leaf"].into_iter().zip(&three.views) {
            three.shows(name, view);
        }
        three
    }

    fn run(&self, line: &str) -> String {
        self.tool.text(&self.named(line))
    }

    /// `line` with `leaf`, `middle` and `base` made file names.
    fn named(&self, line: &str) -> String {
        let name = |word: &str| match word {
            "leaf" | "middle" | "base" | "sibling" | "cousin" => format!("{word}.{}", self.format),
            word => word.to_owned(),
        };
        line.split(' ').map(name).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn shows(&self, name: &str, view: &[u8]) {
        assert!(self.tool.disk(&self.named(name)) == view, "{name} of {}", self.format);
    }

    fn exists(&self, name: &str) -> bool {
        self.tool.path(&self.named(name)).exists()
    }
}

fn both(check: impl Fn(Three)) {
    for format in ["vhd", "vhdx"] {
        check(Three::new(format));
    }
}

#[test]
fn depth_1_puts_the_leaf_into_its_parent() {
    both(|three| {
        let text = three.run("merge leaf --depth 1");
        assert!(text.contains("merged into") && text.contains("middle."), "{text}");
        three.shows("middle", &three.views[2]);
        three.shows("leaf", &three.views[2]);
        three.shows("base", &three.views[0]);
    });
}

#[test]
fn depth_2_puts_leaf_and_middle_into_the_base() {
    both(|three| {
        three.run("merge leaf --depth 2 --jobs 2");
        three.shows("base", &three.views[2]);
        three.shows("leaf", &three.views[2]);
    });
}

#[test]
fn into_names_the_same_merge_by_file_and_delete_leaves_the_target_alone() {
    both(|three| {
        let text = three.run("merge leaf --into base --delete --no-zero-scan");
        assert_eq!(text.matches("deleted").count(), 2, "{text}");
        assert!(!three.exists("leaf") && !three.exists("middle"));
        three.shows("base", &three.views[2]);
    });
}

#[test]
fn the_middle_is_merged_and_the_leaf_relinked() {
    both(|three| {
        let line = three.named("merge leaf --from 2 --to 3 --delete");
        assert!(three.tool.fails(6, &line).contains("--relink"), "deleting alone would orphan the leaf");
        let text = three.run("merge leaf --from 2 --to 3 --relink --delete");
        assert!(text.contains("relinked"), "{text}");
        assert!(!three.exists("middle"));
        three.shows("base", &three.views[1]);
        three.shows("leaf", &three.views[2]);
        let info = three.tool.json(&three.named("info --json --chain leaf"));
        assert_eq!(info["chain"].as_array().unwrap().len(), 2);
        assert_eq!(info["parent"]["path"], format!(".\\base.{}", three.format));
    });
}

#[test]
fn a_merge_of_the_middle_without_relink_leaves_the_leaf_readable() {
    both(|three| {
        three.run("merge leaf --from 2 --to 3");
        three.shows("base", &three.views[1]);
        three.shows("middle", &three.views[1]);
        three.shows("leaf", &three.views[2]);
    });
}

#[test]
fn merging_again_changes_nothing_that_shows() {
    both(|three| {
        three.run("merge leaf --depth 2");
        three.run("merge leaf --depth 2");
        three.shows("base", &three.views[2]);
        three.shows("leaf", &three.views[2]);
    });
}

#[test]
fn siblings_stop_a_merge_until_they_are_given_up() {
    both(|three| {
        three.run("create --parent base sibling");
        let before = three.tool.snapshot();
        for line in ["merge leaf --depth 2", "merge leaf --depth 2 --dry-run", "merge leaf --from 2 --to 3"] {
            let message = three.tool.fails(6, &three.named(line));
            assert!(message.contains("sibling.") && message.contains("--siblings invalidate"), "{message}");
        }
        assert!(before == three.tool.snapshot(), "a refused merge writes nothing");
        // The sibling stands on the base, which a merge into the middle does not touch.
        three.run("merge leaf --depth 1");
        let text = three.run("merge leaf --depth 2 --siblings invalidate");
        assert!(text.contains("sibling."), "{text}");
        three.shows("base", &three.views[2]);
        if three.format == "vhdx" {
            three.tool.fails(5, &three.named("read sibling"));
        }
    });
}

#[test]
fn siblings_elsewhere_are_found_when_told_where() {
    both(|three| {
        fs::create_dir(three.tool.path("far")).unwrap();
        three.run(&format!("create --parent base far/cousin.{}", three.format));
        let line = three.named("merge leaf --depth 2 --search far");
        assert!(three.tool.fails(6, &line).contains("cousin."));
        three.run("merge leaf --depth 2");
    });
}

#[test]
fn a_dry_run_tells_the_plan_and_writes_nothing() {
    both(|three| {
        let before = three.tool.snapshot();
        let text = three.run("merge leaf --depth 2 --delete --dry-run");
        for word in ["leaf.", "middle.", "base.", "data to copy", "space needed", "then delete"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let plan: serde_json::Value =
            serde_json::from_str(&three.run("merge leaf --from 2 --to 3 --relink --dry-run --json")).unwrap();
        assert_eq!(plan["merged"].as_array().unwrap().len(), 1);
        assert_eq!(plan["merged"][0]["depth"], 2);
        assert_eq!(plan["target"]["depth"], 3);
        assert_eq!(plan["target_kind"], "dynamic");
        assert_eq!(plan["relinked"]["depth"], 1);
        assert_eq!(plan["format"], three.format);
        assert!(plan["data_bytes"].as_u64().unwrap() >= MIB, "{plan}");
        assert!(plan["space_available"].is_u64());
        assert_eq!(plan["siblings"].as_array().unwrap().len(), 0);
        assert!(before == three.tool.snapshot());
    });
}

#[test]
fn the_report_comes_in_json_too() {
    both(|three| {
        let report: serde_json::Value =
            serde_json::from_str(&three.run("merge leaf --depth 2 --delete --json")).unwrap();
        assert!(report["target"].as_str().unwrap().ends_with(&three.named("base")));
        assert!(report["moved"].as_u64().unwrap() >= MIB, "{report}");
        assert_eq!(report["deleted"].as_array().unwrap().len(), 2);
        assert_eq!(report["relinked"], serde_json::Value::Null);
    });
}

#[test]
fn a_read_only_file_in_the_chain_is_found_out_before_anything_is_written() {
    use std::os::unix::fs::PermissionsExt;
    both(|three| {
        let middle = three.tool.path(&three.named("middle"));
        fs::set_permissions(&middle, fs::Permissions::from_mode(0o444)).unwrap();
        if fs::File::options().write(true).open(&middle).is_ok() {
            eprintln!("SKIPPED: this user may write to read-only files");
            return;
        }
        let before = three.tool.snapshot();
        assert!(three.tool.fails(3, &three.named("merge leaf --depth 2")).contains("middle."));
        assert!(before == three.tool.snapshot());
    });
}
