//! What the verbs answer: fields of `info`, bytes of `read` and `convert`, progress, and what reaches standard output.

use crate::tool::{KIB, MIB, Tool, pattern};
use serde_json::Value;
use std::fs;
use std::io::Read;

#[test]
fn info_answers_every_field_in_json() {
    let tool = Tool::new();
    tool.ok("create --size 10M --block-size 2M --logical-sector-size 4096 --physical-sector-size 4096 base.vhdx");
    tool.ok("create --parent base.vhdx leaf.vhdx");
    tool.write("base.vhdx", 3 * MIB, b"not seen by the leaf any more: the base has a new id");
    let base = tool.json("info --json base.vhdx");
    for (field, value) in [
        ("path", Value::from("base.vhdx")),
        ("format", "vhdx".into()),
        ("type", "dynamic".into()),
        ("virtual_size", (10 * MIB).into()),
        ("file_size", (tool.bytes("base.vhdx").len() as u64).into()),
        ("block_size", (2 * MIB).into()),
        ("logical_sector_size", 4096.into()),
        ("physical_sector_size", 4096.into()),
        ("allocated_blocks", 1.into()),
        ("log", "clean".into()),
        ("parent", Value::Null),
        ("findings", Value::Array(Vec::new())),
    ] {
        assert_eq!(base[field], value, "{field}");
    }
    for field in ["creator", "id", "data_write_guid"] {
        assert!(base[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {base}");
    }
    assert!(base.get("chain").is_none(), "only when asked for");

    let leaf = tool.json("info --json leaf.vhdx");
    assert_eq!(leaf["type"], "differencing");
    assert_eq!(leaf["parent"]["path"], ".\\base.vhdx");
    assert_eq!(leaf["parent"]["found"], Value::Null);
    assert!(leaf["parent"]["error"].as_str().unwrap().contains("ERROR_VHD_CHILD_PARENT_ID_MISMATCH"), "{leaf}");
    assert_ne!(leaf["parent"]["linkage"], base["data_write_guid"]);
    assert!(tool.text("info leaf.vhdx").contains("parent found"));
    tool.fails(5, "info --chain leaf.vhdx");
}

#[test]
fn info_lists_a_chain_leaf_first() {
    let tool = Tool::new();
    tool.ok("create --size 8M base.vhd");
    tool.ok("create --parent base.vhd middle.vhd");
    tool.ok("create --parent middle.vhd leaf.vhd");
    let info = tool.json("info --chain --json leaf.vhd");
    let chain = info["chain"].as_array().unwrap();
    let depths: Vec<u64> = chain.iter().map(|link| link["depth"].as_u64().unwrap()).collect();
    assert_eq!(depths, [1, 2, 3]);
    for (link, (name, kind)) in
        chain.iter().zip([("leaf", "differencing"), ("middle", "differencing"), ("base", "dynamic")])
    {
        assert!(link["path"].as_str().unwrap().ends_with(&format!("{name}.vhd")));
        assert_eq!(link["type"], kind);
        assert_eq!(link["logical_sector_size"], 512);
        assert_eq!(link["log"], Value::Null);
    }
    assert_eq!(chain[0]["parent"]["linkage"], chain[1]["id"]);
    assert!(chain[0]["parent"]["found"].as_str().unwrap().ends_with("middle.vhd"));

    let text = tool.text("info --chain leaf.vhd");
    let rows: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("depth")).collect();
    assert_eq!(rows.len(), 4, "{text}");
    assert!(rows[1].trim_start().starts_with('1') && rows[1].ends_with("leaf.vhd"), "{text}");
    assert!(rows[3].trim_start().starts_with('3') && rows[3].contains("dynamic"), "{text}");
    assert!(text.contains("8 MiB (8388608 bytes)"), "{text}");
}

#[test]
fn bytes_written_are_the_bytes_read() {
    let tool = Tool::new();
    for image in ["d.vhd", "d.vhdx", "f.vhd", "f.vhdx"] {
        let kind = if image.starts_with('f') { "fixed" } else { "dynamic" };
        tool.ok(&format!("create --size 20M --type {kind} {image}"));
        let mut model = vec![0; 20 << 20];
        for (offset, len, seed) in [(0, 1, 1), (511, 2, 2), (5 * MIB - 3, 3 * MIB + 7, 3), (20 * MIB - 700, 700, 4)] {
            let bytes = pattern(len, seed);
            tool.write(image, offset, &bytes);
            model[offset as usize..(offset + len) as usize].copy_from_slice(&bytes);
        }
        assert!(tool.disk(image) == model, "{image}");
        let part = tool.ok(&format!("read {image} --offset 4M --length 1.5M"));
        assert!(part == model[4 << 20..(4 << 20) + (3 << 19)], "{image}");
        assert_eq!(tool.ok(&format!("read {image} --offset 20M")), b"");
        assert_eq!(tool.ok(&format!("read {image} --length 0")), b"");
    }
}

#[test]
fn input_longer_than_the_disk_is_refused() {
    let tool = Tool::new();
    tool.ok("create --size 1M d.vhdx");
    let before = tool.snapshot();
    // A file says how long it is before anything is written; a pipe does not.
    fs::write(tool.path("input"), pattern(MIB + 1, 1)).unwrap();
    let outcome = tool.command("write d.vhdx").stdin(fs::File::open(tool.path("input")).unwrap()).output().unwrap();
    assert_eq!(outcome.status.code(), Some(2));
    fs::remove_file(tool.path("input")).unwrap();
    assert!(before == tool.snapshot());
    let message = tool.run_with("write d.vhdx --offset 1M", b"x").fails(2, "write");
    assert!(message.contains("past the end of the disk"), "{message}");
    assert_eq!(tool.run_with("write d.vhdx --offset 1M", b"").ok("write"), b"wrote 0 bytes at offset 1048576\n");
}

#[test]
fn convert_carries_a_disk_from_format_to_format() {
    let tool = Tool::new();
    let mut disk = vec![0; 9 << 20];
    disk[100_000..300_000].copy_from_slice(&pattern(200_000, 9));
    disk[(9 << 20) - 512..].copy_from_slice(&pattern(512, 3));
    fs::write(tool.path("flat.img"), &disk).unwrap();
    tool.fails(4, "convert flat.img a.vhdx");
    tool.ok("convert -f raw flat.img a.vhdx --block-size 1M");
    tool.ok("convert a.vhdx b.vhd");
    tool.ok("convert b.vhd c.vhdx --type fixed --jobs 1");
    tool.ok("convert -O vhd --type fixed c.vhdx d.any --no-zero-scan");
    tool.ok("convert d.any e.raw");
    for image in ["a.vhdx", "b.vhd", "c.vhdx", "d.any"] {
        assert!(tool.ok(&format!("convert {image} - -O raw")) == disk, "{image}");
        assert!(tool.disk(image) == disk, "{image}");
    }
    assert!(tool.bytes("e.raw") == disk);
    assert_eq!(tool.json("info --json a.vhdx")["block_size"], 1 << 20);
    assert_eq!(tool.json("info --json a.vhdx")["allocated_blocks"], 2);
    assert_eq!(tool.json("info --json -f raw flat.img")["format"], "raw");
    tool.fails(6, "convert a.vhdx e.raw");
    tool.ok("convert b.vhd e.raw --force");
    assert!(tool.bytes("e.raw") == disk);
    let names: Vec<_> = tool.snapshot().into_iter().map(|(path, _)| path).collect();
    assert_eq!(names.len(), 6, "nothing else is left behind: {names:?}");
}

#[test]
fn raw_disks_are_read_and_written_when_called_raw() {
    let tool = Tool::new();
    fs::write(tool.path("r"), vec![1; 4096]).unwrap();
    tool.run_with("write -f raw r --offset 1K", b"abc").ok("write");
    assert_eq!(tool.ok("read -f raw r --offset 1023 --length 5"), b"\x01abc\x01");
    assert_eq!(tool.bytes("r").len(), 4096);
}

#[test]
fn reading_changes_no_byte() {
    let tool = Tool::new();
    tool.ok("create --size 4M base.vhdx");
    tool.ok("create --parent base.vhdx leaf.vhdx");
    tool.write("leaf.vhdx", 0, &pattern(5000, 1));
    let before = tool.snapshot();
    tool.ok("info --chain leaf.vhdx --read-only");
    tool.ok("read leaf.vhdx --read-only");
    tool.ok("convert leaf.vhdx -");
    tool.ok("merge leaf.vhdx --depth 1 --dry-run");
    assert!(before == tool.snapshot());
}

#[test]
fn progress_comes_as_json_lines_when_asked_for() {
    let tool = Tool::new();
    tool.ok("create --size 8M a.vhdx");
    tool.write("a.vhdx", 0, &pattern(5 * MIB, 1));
    let outcome = tool.run("--progress json convert a.vhdx b.vhdx");
    assert_eq!(outcome.code, Some(0));
    let lines: Vec<Value> = outcome.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let last = lines.last().expect("the last state is always said");
    assert_eq!((&last["done"], &last["total"]), (&Value::from(8 * MIB), &Value::from(8 * MIB)));
    assert!(last["moved"].as_u64().unwrap() >= 5 * MIB);
    for (before, after) in lines.iter().zip(&lines[1..]) {
        assert!(before["done"].as_u64() <= after["done"].as_u64());
    }
    // No terminal, no bar.
    assert_eq!(tool.run("convert a.vhdx c.vhdx").stderr, "");
    assert_eq!(tool.run("--quiet convert a.vhdx d.vhdx").stdout, b"");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let tool = Tool::new();
    tool.ok("create --size 64M a.vhd");
    for line in ["read a.vhd", "convert a.vhd -"] {
        let mut child = tool.command(line).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 10]).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{line}");
    }
}

#[test]
fn sizes_take_units() {
    let tool = Tool::new();
    for (text, bytes) in
        [("4096", 4096), ("64K", 64 * KIB), ("1.5M", 3 * MIB / 2), ("2MiB", 2 * MIB), ("0.5g", 512 * MIB)]
    {
        tool.ok(&format!("create --force --size {text} a.vhdx"));
        assert_eq!(tool.json("info --json a.vhdx")["virtual_size"], bytes, "{text}");
    }
}

#[test]
fn a_path_that_is_not_unicode_is_no_reason_to_fail() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let tool = Tool::new();
    tool.ok("create --size 1M a.vhdx");
    let name = OsStr::from_bytes(b"\xff.vhdx");
    fs::rename(tool.path("a.vhdx"), tool.path("").join(name)).unwrap();
    let output = tool.command("info --json --chain").arg(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let info: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["path"], "\u{FFFD}.vhdx");
}

#[test]
fn a_full_device_behind_standard_output_is_an_error() {
    let tool = Tool::new();
    tool.ok("create --size 1M a.vhdx");
    for line in ["info a.vhdx", "info --json a.vhdx", "read a.vhdx", "convert a.vhdx -"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = tool.command(line).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn what_only_lies_beside_a_disk_is_told_from_one() {
    let tool = Tool::new();
    let said = [("a.VHDS", "name those"), ("a.vhdx.rct", "name the disk"), ("a.mrt", "name the disk"), ("a.vhdx", "")];
    for (name, said) in said {
        fs::write(tool.path(name), [7; 4096]).unwrap();
        let error = tool.fails(4, &format!("info {name}"));
        assert_eq!(error.contains("not published"), !said.is_empty(), "{name}: {error}");
        assert!(error.contains(said), "{name}: {error}");
    }
}
