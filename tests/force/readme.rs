//! README's tables of what to do after an interruption and of what a hostile image cannot do, held against the tests they
//! name.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The rows of the table under the heading `title`: their cells, without the head of the table.
fn rows(text: &str, title: &str) -> Vec<Vec<String>> {
    let section = text.split_once(&format!("{title}\n")).map_or("", |(_, rest)| rest);
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    lines.skip(2).map(cells).collect()
}

/// The words in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The names of the functions of `source` that stand right behind `#[test]`.
fn tests_in(source: &str) -> impl Iterator<Item = String> {
    let behind = source.split("#[test]\n").skip(1);
    behind.filter_map(|text| Some(text.trim_start().strip_prefix("fn ")?.split_once('(')?.0.to_owned()))
}

fn all_tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all_tests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(tests_in(&fs::read_to_string(&path).expect("a source file")));
        }
    }
}

/// What is wrong with a table of so many columns whose last one names tests.
fn mistakes(rows: &[Vec<String>], columns: usize, tests: &BTreeSet<String>) -> Vec<String> {
    let mut mistakes = Vec::new();
    for row in rows {
        let (Some((named, cells)), true) = (row.split_last(), row.len() == columns) else {
            mistakes.push(format!("{row:?}: not {columns} columns"));
            continue;
        };
        let after = &row[0];
        if cells.iter().any(String::is_empty) || quoted(named).is_empty() {
            mistakes.push(format!("{after:?}: an empty cell"));
        }
        let missing = quoted(named).into_iter().filter(|name| !tests.contains(*name));
        mistakes.extend(missing.map(|name| format!("{after:?}: there is no test {name}")));
    }
    mistakes
}

#[test]
fn every_row_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    all_tests(&root.join("src"), &mut tests);
    all_tests(&root.join("tests"), &mut tests);
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for (title, columns, at_least) in [("### What to do", 4, 15), ("## What a hostile image can and cannot do", 3, 10)]
    {
        let rows = rows(&readme, title);
        assert!(rows.len() >= at_least, "{title}: {} rows", rows.len());
        assert_eq!(mistakes(&rows, columns, &tests), Vec::<String>::new(), "{title}");
    }
}

#[test]
fn a_row_that_names_no_test_is_found() {
    let text = "### What to do\n\n| a | b | c | d |\n|---|---|---|---|\n| x | y | z | `good`, `bad` |\n| x | y | z | |\n| x |\n\n| no |\n";
    let tests = tests_in("#[test]\nfn good() {}\nfn bad() {}\n    #[test]\n    fn more() {}").collect();
    assert_eq!(tests, BTreeSet::from(["good".to_owned(), "more".to_owned()]));
    let rows = rows(text, "### What to do");
    let found = mistakes(&rows, 4, &tests);
    let wanted = ["\"x\": there is no test bad", "\"x\": an empty cell", "[\"x\"]: not 4 columns"];
    assert_eq!(found, wanted);
}
