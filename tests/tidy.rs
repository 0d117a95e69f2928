//! The shape of the sources, held by a test: the direction of the layers, lengths, file headers, leftovers, `unsafe`.
//!
//! Every check is a function from sources to violations and has a test beside it that plants a violation and sees it
//! found; the last tests of the file run them over the tree.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, FnArg, Item, Meta};

/// The layers of `src/`, lowest first. Modules of one row do not import each other, except in row 0, where they may as
/// long as no circle closes.
const LAYERS: [&[&str]; 8] = [
    &["error", "problem", "units", "guid", "bitmap", "zeros"],
    &["finding", "watch"],
    &["storage"],
    &["map", "link", "mend", "pack"],
    &["vhd", "vhdx", "raw", "copy", "guest"],
    &["image"],
    &["chain"],
    &["ops"],
];

/// The longest a file may be, tests not counted.
const MAX_FILE_LINES: usize = 400;
/// The longest a function may be, from `fn` to its closing brace.
const MAX_FN_LINES: usize = 70;
/// The most arguments a function may take besides `self`.
const MAX_ARGUMENTS: usize = 4;
/// The second readers: they must not know the crate they judge.
const SUPPORT: &str = "tests/support/";
/// The one file beside the second readers that builds images with the crate.
const SUPPORT_WITH_VHDKIT: &str = "tests/support/chains.rs";
/// The files that may say `unsafe`: a memory map, and system calls that take numbers only.
const UNSAFE_FILES: [&str; 2] = ["src/storage/mmap.rs", "src/storage/kernel.rs"];

/// One source file: its path from the project's root, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Whether the whole file is test code.
    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.split('/').any(|part| part == "tests")
    }

    /// The file's syntax tree without `#[cfg(test)]` items.
    fn parse(&self) -> syn::File {
        let mut file = syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path));
        drop_tests(&mut file.items);
        file
    }

    /// The path of modules the file's contents live in: `src/vhdx/log/ring.rs` is `[vhdx, log, ring]`.
    fn module(&self) -> Vec<&str> {
        let path = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let mut parts: Vec<&str> = path.strip_suffix(".rs").unwrap_or(path).split('/').collect();
        if matches!(parts.last(), Some(&("mod" | "lib"))) {
            parts.pop();
        }
        parts
    }
}

fn drop_tests(items: &mut Vec<Item>) {
    items.retain(|item| !attributes(item).iter().any(is_cfg_test));
    for item in items {
        if let Item::Mod(module) = item
            && let Some((_, inner)) = &mut module.content
        {
            drop_tests(inner);
        }
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(i) => &i.attrs,
        Item::Enum(i) => &i.attrs,
        Item::Fn(i) => &i.attrs,
        Item::Impl(i) => &i.attrs,
        Item::Macro(i) => &i.attrs,
        Item::Mod(i) => &i.attrs,
        Item::Static(i) => &i.attrs,
        Item::Struct(i) => &i.attrs,
        Item::Trait(i) => &i.attrs,
        Item::Type(i) => &i.attrs,
        Item::Union(i) => &i.attrs,
        Item::Use(i) => &i.attrs,
        _ => &[],
    }
}

/// `#[cfg(test)]` or `#[cfg(all(test, ..))]`. `any(test, ..)` is compiled outside of tests too and does not count.
fn is_cfg_test(attribute: &Attribute) -> bool {
    let Meta::List(list) = &attribute.meta else { return false };
    let condition = list.tokens.to_string().replace(' ', "");
    list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all(test,"))
}

/// The sources below `root`, sorted by path.
fn sources(root: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(root)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("readable folder").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("readable source");
                let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("below the root");
                found.push(Source { path: path.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

// ---------------------------------------------------------------------------------------------------------------------
// Layers

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// The names `crate::` can be followed by in `tokens`, and the names `super::` reaches the crate's root with when the
/// tokens stand `depth` modules below it.
fn crate_names(tokens: TokenStream, depth: usize, names: &mut BTreeSet<String>) {
    let flat: Vec<TokenTree> = tokens.into_iter().collect();
    let is_ident = |at: usize, word: &str| matches!(flat.get(at), Some(TokenTree::Ident(i)) if i == word);
    let is_colons =
        |at: usize| (at..at + 2).all(|at| matches!(flat.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':'));
    let mut at = 0;
    while at < flat.len() {
        let mut next = at;
        let mut climbed = 0;
        if is_ident(at, "crate") && is_colons(at + 1) {
            next = at + 3;
            climbed = depth;
        } else {
            while is_ident(next, "super") && is_colons(next + 1) {
                next += 3;
                climbed += 1;
            }
        }
        if next > at && climbed >= depth {
            match flat.get(next) {
                Some(TokenTree::Ident(name)) => drop(names.insert(name.to_string())),
                Some(TokenTree::Group(list)) => first_idents(list.stream(), names),
                _ => drop(names.insert("*".to_owned())),
            }
        }
        if let Some(TokenTree::Group(group)) = flat.get(at) {
            crate_names(group.stream(), depth, names);
        }
        at = next.max(at + 1);
    }
}

/// The first name of each comma-separated part of a `use` list.
fn first_idents(list: TokenStream, names: &mut BTreeSet<String>) {
    let mut fresh = true;
    for token in list {
        match token {
            TokenTree::Punct(p) if p.as_char() == ',' => fresh = true,
            other if fresh => {
                names.insert(other.to_string());
                fresh = false;
            }
            _ => {}
        }
    }
}

/// Every crate-root name the items of a file mention, outside of tests.
fn mentioned(items: &[Item], depth: usize, names: &mut BTreeSet<String>) {
    for item in items {
        match item {
            Item::Mod(module) => {
                if let Some((_, inner)) = &module.content {
                    mentioned(inner, depth + 1, names);
                }
            }
            other => crate_names(other.to_token_stream(), depth, names),
        }
    }
}

/// What `pub use module::{A, B}` in the crate's root makes reachable as `crate::A`: name to module.
fn reexports(lib: &syn::File) -> BTreeMap<String, String> {
    fn leaves(tree: &syn::UseTree, module: &str, found: &mut BTreeMap<String, String>) {
        match tree {
            syn::UseTree::Path(path) => leaves(&path.tree, module, found),
            syn::UseTree::Name(name) => drop(found.insert(name.ident.to_string(), module.to_owned())),
            syn::UseTree::Rename(name) => drop(found.insert(name.rename.to_string(), module.to_owned())),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, module, found)),
            syn::UseTree::Glob(_) => drop(found.insert("*".to_owned(), module.to_owned())),
        }
    }
    let mut found = BTreeMap::new();
    for item in &lib.items {
        if let Item::Use(item) = item
            && let syn::UseTree::Path(path) = &item.tree
        {
            leaves(&path.tree, &path.ident.to_string(), &mut found);
        }
    }
    found
}

fn layer_violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let lib = sources.iter().find(|source| source.path == "src/lib.rs").expect("src/lib.rs").parse();
    let reexported = reexports(&lib);
    let mut within_row: BTreeSet<(String, String)> = BTreeSet::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let module = source.module();
        let Some(&top) = module.first() else { continue };
        if top == "bin" {
            continue;
        }
        let Some(own) = layer_of(top) else {
            found.push(format!("{}: the module `{top}` is in no layer of tests/tidy.rs", source.path));
            continue;
        };
        let mut names = BTreeSet::new();
        mentioned(&source.parse().items, module.len(), &mut names);
        for name in names {
            let target = reexported.get(&name).unwrap_or(&name);
            match layer_of(target) {
                _ if target == top => {}
                None => found.push(format!("{}: `crate::{name}` leads to no layer", source.path)),
                Some(layer) if layer < own => {}
                Some(layer) if layer == own && own == 0 => {
                    within_row.insert((top.to_owned(), target.clone()));
                }
                Some(layer) => {
                    let way = if layer == own { "sideways" } else { "up" };
                    found.push(format!("{}: `crate::{name}` points {way}, from layer {own} to {layer}", source.path));
                }
            }
        }
    }
    if let Some(circle) = circle(&within_row) {
        found.push(format!("layer 0 imports in a circle through `{circle}`"));
    }
    found
}

/// A module that reaches itself over `edges`.
fn circle(edges: &BTreeSet<(String, String)>) -> Option<&str> {
    edges.iter().map(|(from, _)| from.as_str()).find(|&start| {
        let mut reached: BTreeSet<&str> = BTreeSet::new();
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            for (_, to) in edges.iter().filter(|(from, _)| from == at) {
                if reached.insert(to) {
                    open.push(to);
                }
            }
        }
        reached.contains(start)
    })
}

/// The table above and the one in the crate's documentation must name the same modules in the same rows.
fn table_violations(lib: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (layer, row) in LAYERS.iter().enumerate() {
        let prefix = format!("//! {layer}  ");
        let Some(line) = lib.lines().find_map(|line| line.strip_prefix(&prefix)) else {
            found.push(format!("src/lib.rs: the documentation has no row for layer {layer}"));
            continue;
        };
        let words: Vec<&str> = line.split_whitespace().filter(|&word| word != "|").take(row.len()).collect();
        if words.iter().collect::<BTreeSet<_>>() != row.iter().collect::<BTreeSet<_>>() {
            found.push(format!("src/lib.rs: layer {layer} is documented as {words:?}, tests/tidy.rs says {row:?}"));
        }
    }
    found
}

#[test]
fn an_import_that_points_up_or_sideways_is_found() {
    let lib = "pub use error::{Error, Result};";
    let judge = |path: &str, text: &str| layer_violations(&[Source::new("src/lib.rs", lib), Source::new(path, text)]);
    for (path, bad) in [
        ("src/map.rs", "use crate::vhd::Vhd;"),
        ("src/map.rs", "use crate::{error::Error, chain::Chain};"),
        ("src/map.rs", "use crate::link::DiskKind;"),
        ("src/map.rs", "fn f() { println!(\"{}\", crate::chain::NAME); }"),
        ("src/map.rs", "use super::image::Image;"),
        ("src/vhdx/log/ring.rs", "fn f(x: crate::vhd::Vhd) {}"),
        ("src/vhdx/log/ring.rs", "use super::super::super::raw::Raw;"),
        ("src/vhdx/mod.rs", "mod inner { use super::super::ops; }"),
        ("src/error.rs", "#[cfg(any(test, feature = \"sim\"))] mod m { use crate::ops::merge; }"),
        ("src/vhd/mod.rs", "use crate::*;"),
        ("src/novel.rs", "fn f() {}"),
        ("src/map.rs", "use crate::novel::Thing;"),
    ] {
        assert_eq!(judge(path, bad).len(), 1, "{path}: {bad}: {:?}", judge(path, bad));
    }
    for (path, good) in [
        ("src/map.rs", "use crate::storage::Storage; use crate::Error;"),
        ("src/vhdx/log/ring.rs", "use super::entry::Entry; use super::super::raw::X; use crate::vhdx::header;"),
        ("src/vhdx/mod.rs", "mod inner { use super::header; }"),
        ("src/error.rs", "use crate::problem::Problem; #[cfg(test)] mod tests { use crate::ops::merge; }"),
        ("src/storage/tests.rs", "use crate::vhd::Vhd;"),
    ] {
        assert_eq!(judge(path, good), Vec::<String>::new(), "{path}: {good}");
    }
    let circle = layer_violations(&[
        Source::new("src/lib.rs", ""),
        Source::new("src/error.rs", "use crate::units::KIB;"),
        Source::new("src/units.rs", "use crate::error::Error;"),
    ]);
    assert_eq!(circle, ["layer 0 imports in a circle through `error`"]);
}

#[test]
fn a_row_that_the_documentation_lacks_is_found() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    assert_eq!(table_violations(&lib), Vec::<String>::new());
    assert_eq!(table_violations(&lib.replace("3  map  link", "3  map")).len(), 1);
    assert_eq!(table_violations(&lib.replace("//! 6  ", "//! ")).len(), 1);
}

/// What the second readers know of the crate: its name, or any module of whoever includes them but their own.
fn support_violations(sources: &[Source]) -> Vec<String> {
    fn says_vhdkit(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => ident == "vhdkit",
            TokenTree::Group(group) => says_vhdkit(group.stream()),
            _ => false,
        })
    }
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| s.path.starts_with(SUPPORT) && s.path != SUPPORT_WITH_VHDKIT) {
        let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.path));
        let depth = source.module().len() - 1;
        let mut names = BTreeSet::new();
        mentioned(&file.items, depth, &mut names);
        for name in names.iter().filter(|name| *name != "support") {
            found.push(format!("{}: `crate::{name}` is not of the second readers", source.path));
        }
        if says_vhdkit(file.into_token_stream()) {
            found.push(format!("{}: names vhdkit", source.path));
        }
    }
    found
}

#[test]
fn a_second_reader_that_knows_the_crate_is_found() {
    let judge = |path: &str, text: &str| support_violations(&[Source::new(path, text)]).len();
    assert_eq!(judge("tests/support/real.rs", "use vhdkit::vhd::Vhd;"), 1);
    assert_eq!(judge("tests/support/real.rs", "fn f() -> vhdkit::Guid { g!(1) }"), 1);
    assert_eq!(judge("tests/support/spec/vhd.rs", "use crate::vhd::Vhd;"), 1);
    assert_eq!(judge("tests/support/spec/vhd.rs", "use super::super::super::vhd::Vhd;"), 1);
    assert_eq!(judge("tests/support/spec/vhd.rs", "use super::super::bytes::Bytes; use crate::support::check;"), 0);
    assert_eq!(judge("tests/support/mod.rs", "//! vhdkit\nmod bytes; pub use bytes::Bytes;"), 0);
    assert_eq!(judge(SUPPORT_WITH_VHDKIT, "use vhdkit::vhd::Vhd;"), 0);
}

// ---------------------------------------------------------------------------------------------------------------------
// Lengths and arguments

/// The lines of a file that are not test code.
fn code_lines(source: &Source) -> usize {
    fn test_lines(items: &[Item]) -> usize {
        items
            .iter()
            .map(|item| match item {
                item if attributes(item).iter().any(is_cfg_test) => lines_of(item),
                Item::Mod(module) => module.content.as_ref().map_or(0, |(_, inner)| test_lines(inner)),
                _ => 0,
            })
            .sum()
    }
    let file = syn::parse_file(&source.text).unwrap_or_else(|error| panic!("{}: {error}", source.path));
    source.text.lines().count() - test_lines(&file.items)
}

fn lines_of(node: &impl Spanned) -> usize {
    let span = node.span();
    span.end().line - span.start().line + 1
}

fn file_length_violations(sources: &[Source]) -> Vec<String> {
    let code = sources.iter().filter(|source| !source.is_test());
    code.map(|source| (source, code_lines(source)))
        .filter(|(_, lines)| *lines >= MAX_FILE_LINES)
        .map(|(source, lines)| {
            format!("{}: {lines} lines without tests, fewer than {MAX_FILE_LINES} allowed", source.path)
        })
        .collect()
}

/// Walks every function of a file, nested ones included.
struct Functions<'a> {
    path: &'a str,
    found: Vec<String>,
}

impl Functions<'_> {
    fn judge(&mut self, signature: &syn::Signature, end: usize) {
        let start = signature.span().start().line;
        let name = &signature.ident;
        let lines = end - start + 1;
        if lines >= MAX_FN_LINES {
            let path = self.path;
            self.found.push(format!("{path}:{start}: `{name}` has {lines} lines, fewer than {MAX_FN_LINES} allowed"));
        }
        let arguments = signature.inputs.iter().filter(|input| matches!(input, FnArg::Typed(_))).count();
        if arguments > MAX_ARGUMENTS {
            let path = self.path;
            self.found.push(format!("{path}:{start}: `{name}` takes {arguments} arguments, {MAX_ARGUMENTS} allowed"));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, node: &'ast syn::ItemFn) {
        self.judge(&node.sig, node.block.span().end().line);
        visit::visit_item_fn(self, node);
    }

    fn visit_impl_item_fn(&mut self, node: &'ast syn::ImplItemFn) {
        self.judge(&node.sig, node.block.span().end().line);
        visit::visit_impl_item_fn(self, node);
    }

    fn visit_trait_item_fn(&mut self, node: &'ast syn::TraitItemFn) {
        self.judge(&node.sig, node.span().end().line);
        visit::visit_trait_item_fn(self, node);
    }
}

fn function_violations(sources: &[Source]) -> Vec<String> {
    sources
        .iter()
        .filter(|source| !source.is_test())
        .flat_map(|source| {
            let mut functions = Functions { path: &source.path, found: Vec::new() };
            functions.visit_file(&source.parse());
            functions.found
        })
        .collect()
}

#[test]
fn a_long_file_is_found_and_its_tests_do_not_count() {
    let function = "fn f() {}\n".repeat(MAX_FILE_LINES - 1);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "fn t() {}\n".repeat(MAX_FILE_LINES));
    let judge = |path: &str, text: String| file_length_violations(&[Source { path: path.to_owned(), text }]).len();
    assert_eq!(judge("src/a.rs", format!("{function}{tests}")), 0);
    assert_eq!(judge("src/a.rs", format!("{function}// one more\n{tests}")), 1);
    assert_eq!(judge("src/a/tests.rs", format!("{function}{function}")), 0);
}

#[test]
fn a_long_function_or_argument_list_is_found() {
    let body = |lines: usize| "let _ = 1;\n".repeat(lines);
    let judge = |text: &str| function_violations(&[Source::new("src/a.rs", text)]).len();
    let fits = MAX_FN_LINES - 3;
    assert_eq!(judge(&format!("fn f() {{\n{}}}", body(fits))), 0);
    assert_eq!(judge(&format!("fn f() {{\n{}}}", body(fits + 1))), 1);
    assert_eq!(judge(&format!("impl A {{ fn f() {{\n{}}} }}", body(fits + 1))), 1);
    assert_eq!(judge(&format!("trait A {{ fn f() {{\n{}}} }}", body(fits + 1))), 1);
    assert_eq!(judge(&format!("#[cfg(test)] mod tests {{ fn f() {{\n{}}} }}", body(fits + 1))), 0);
    assert_eq!(judge("fn f(a: u8, b: u8, c: u8, d: u8) {}"), 0);
    assert_eq!(judge("fn f(a: u8, b: u8, c: u8, d: u8, e: u8) {}"), 1);
    assert_eq!(judge("impl A { fn f(&self, a: u8, b: u8, c: u8, d: u8) {} }"), 0);
    assert_eq!(judge("trait A { fn f(&self, a: u8, b: u8, c: u8, d: u8, e: u8); }"), 1);
}

// ---------------------------------------------------------------------------------------------------------------------
// Headers, leftovers, unsafe

/// Every file opens with `//!`, and what is not a test says what it owns.
fn header_violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let header: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        if header.is_empty() {
            found.push(format!("{}: does not open with `//!`", source.path));
        } else if !source.is_test() && !header.to_lowercase().split(|c: char| !c.is_alphabetic()).any(|w| w == "owns") {
            found.push(format!("{}: its header does not say what it owns", source.path));
        }
    }
    found
}

/// Things that must not be left in sources. Put together here so that this file does not hold them itself.
fn leftovers() -> Vec<String> {
    [
        ("to", "do!"),
        ("unimple", "mented!"),
        ("FIX", "ME"),
        ("X", "XX"),
        ("TO", "DO"),
        ("#[ign", "ore"),
        ("thread::sl", "eep"),
    ]
    .iter()
    .map(|(a, b)| format!("{a}{b}"))
    .collect()
}

fn leftover_violations(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in source.text.lines().enumerate() {
            for needle in leftovers().iter().filter(|needle| has_word(line, needle)) {
                found.push(format!("{}:{}: {needle}", source.path, number + 1));
            }
        }
    }
    found
}

/// Whether `line` holds `needle` with no letter, digit or underscore continuing it on either side.
fn has_word(line: &str, needle: &str) -> bool {
    let continues = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(needle).any(|(at, _)| {
        let open_left =
            needle.starts_with(|c: char| !c.is_alphanumeric()) || !continues(line[..at].chars().next_back());
        let open_right = needle.ends_with('!') || !continues(line[at + needle.len()..].chars().next());
        open_left && open_right
    })
}

fn unsafe_violations(sources: &[Source]) -> Vec<String> {
    fn says_unsafe(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => ident == "unsafe",
            TokenTree::Group(group) => says_unsafe(group.stream()),
            _ => false,
        })
    }
    let others = sources.iter().filter(|source| !UNSAFE_FILES.contains(&source.path.as_str()));
    others
        .filter(|source| says_unsafe(source.text.parse().unwrap_or_else(|error| panic!("{}: {error}", source.path))))
        .map(|source| format!("{}: `unsafe` outside of {}", source.path, UNSAFE_FILES.join(" and ")))
        .collect()
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }
}

#[test]
fn a_missing_header_is_found() {
    let judge = |path: &str, text: &str| header_violations(&[Source::new(path, text)]).len();
    assert_eq!(judge("src/a.rs", "//! A.\n//!\n//! Owns: everything.\nfn f() {}"), 0);
    assert_eq!(judge("src/a.rs", "//! A.\nfn owns() {}"), 1);
    assert_eq!(judge("src/a.rs", "// Owns.\nfn f() {}"), 1);
    assert_eq!(judge("src/a/tests.rs", "//! Tests of a.\n"), 0);
    assert_eq!(judge("src/a/tests.rs", "use super::*;\n"), 1);
}

#[test]
fn a_leftover_is_found() {
    for needle in leftovers() {
        let judge = |line: String| leftover_violations(&[Source::new("src/a.rs", &line)]).len();
        assert_eq!(judge(format!("fn f() {{\n {needle} }}")), 1, "{needle}");
        assert_eq!(judge(format!("fn f() {{\n a{needle} }}")), usize::from(needle.starts_with('#')), "a{needle}");
    }
}

#[test]
fn unsafe_code_is_found() {
    let judge = |path: &str, text: &str| unsafe_violations(&[Source::new(path, text)]).len();
    assert_eq!(judge("src/a.rs", "fn f() { unsafe { g() } }"), 1);
    assert_eq!(judge("src/a.rs", "m!({ unsafe fn f() {} });"), 1);
    assert_eq!(judge("src/a.rs", "// unsafe\nfn f() { \"unsafe\"; }"), 0);
    for file in UNSAFE_FILES {
        assert_eq!(judge(file, "fn f() { unsafe { g() } }"), 0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The tree itself

/// Everything below `src`.
fn tree() -> Vec<Source> {
    let src = sources("src");
    assert!(src.len() > 10, "src was not found");
    src
}

/// `src` and everything else that is Rust.
fn whole_tree() -> Vec<Source> {
    let others = ["tests", "benches", "examples", "fuzz"].into_iter().flat_map(sources);
    tree().into_iter().chain(others).collect()
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
}

#[test]
fn imports_point_down() {
    assert_none(&layer_violations(&tree()));
}

#[test]
fn the_second_readers_do_not_know_the_crate() {
    assert_none(&support_violations(&whole_tree()));
}

/// `src` and the fuzz targets, which keep the same rules.
fn tree_and_fuzz() -> Vec<Source> {
    let fuzz = sources("fuzz");
    assert!(fuzz.len() > 10, "fuzz was not found");
    tree().into_iter().chain(fuzz).collect()
}

#[test]
fn files_functions_and_argument_lists_are_short() {
    assert_none(&file_length_violations(&tree_and_fuzz()));
    assert_none(&function_violations(&tree_and_fuzz()));
}

#[test]
fn every_file_says_what_it_owns() {
    assert_none(&header_violations(&tree_and_fuzz()));
}

#[test]
fn nothing_is_left_over() {
    assert_none(&leftover_violations(&whole_tree()));
}

#[test]
fn unsafe_code_stays_in_its_files() {
    assert_none(&unsafe_violations(&whole_tree()));
}
