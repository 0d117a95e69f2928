//! Where the source waits for the medium.
//!
//! Owns: finding every sync of the write paths in the source, and telling by a backtrace which of them runs. Must not
//! know: which of them matter.

use std::backtrace::Backtrace;
use std::fmt;
use std::fs;
use std::path::Path;
use syn::visit::Visit;
use vhdkit::storage::sim::SimDisk;

/// The files whose functions write images.
const FILES: [&str; 15] = [
    "src/chain/io.rs",
    "src/ops/transfer.rs",
    "src/vhd/create.rs",
    "src/vhd/open.rs",
    "src/vhd/parent.rs",
    "src/vhd/resize.rs",
    "src/vhd/space.rs",
    "src/vhd/write.rs",
    "src/vhdx/create.rs",
    "src/vhdx/header.rs",
    "src/vhdx/image.rs",
    "src/vhdx/resize.rs",
    "src/vhdx/session.rs",
    "src/vhdx/txn.rs",
    "src/vhdx/write.rs",
];

/// What a sync is called there.
const CALLS: [&str; 3] = ["sync", "settle", "flush"];

/// Functions that only pass a sync on; those that call them wait.
const WRAPPERS: [(&str, &str); 5] = [
    ("src/chain/io.rs", "flush"),
    ("src/vhdx/create.rs", "sync"),
    ("src/vhdx/session.rs", "settle"),
    ("src/vhdx/txn.rs", "flush"),
    ("src/vhd/store.rs", "sync"),
];

/// Repairs are planned there and carried out elsewhere; src/vhdx/repair/tests/crash.rs crashes them. Compaction, and
/// a metadata region that moves, have workloads of their own, with a barrier taken away, in compact.rs and change.rs.
const OTHERS: [&str; 5] =
    ["src/vhdx/repair.rs", "src/vhd/store.rs", "src/vhd/pack.rs", "src/vhdx/pack.rs", "src/vhdx/edit.rs"];

/// One call that waits: the `nth` of its function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Site {
    pub(crate) file: &'static str,
    pub(crate) function: String,
    pub(crate) nth: usize,
    lines: (usize, usize),
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} #{}", self.file.trim_start_matches("src/"), self.function, self.nth)
    }
}

/// Takes the syncs of `sites` away on `disk`, as if they were not in the source.
pub(crate) fn take_away(sites: &[Site], disk: &SimDisk) {
    let place = |site: &Site| -> Vec<String> {
        (site.lines.0..=site.lines.1).map(|line| format!("{}:{line}:", site.file)).collect()
    };
    let places: Vec<String> = sites.iter().flat_map(place).collect();
    disk.drop_syncs_when(move |_| {
        let trace = Backtrace::force_capture().to_string();
        places.iter().any(|place| trace.contains(place))
    });
}

struct Finder {
    file: &'static str,
    functions: Vec<String>,
    sites: Vec<Site>,
}

impl Finder {
    fn within(&mut self, name: &syn::Ident, visit: impl FnOnce(&mut Self)) {
        self.functions.push(name.to_string());
        visit(self);
        self.functions.pop();
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.within(&function.sig.ident, |finder| syn::visit::visit_impl_item_fn(finder, function));
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.within(&function.sig.ident, |finder| syn::visit::visit_item_fn(finder, function));
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        syn::visit::visit_expr_method_call(self, call);
        let Some(function) = self.functions.last() else { return };
        if !CALLS.contains(&call.method.to_string().as_str()) {
            return;
        }
        let nth = self.sites.iter().filter(|site| site.function == *function).count() + 1;
        let start = syn::spanned::Spanned::span(&call.receiver).start().line;
        let end = call.method.span().start().line;
        self.sites.push(Site { file: self.file, function: function.clone(), nth, lines: (start, end) });
    }
}

/// Every place in the write paths that waits for the medium.
pub(crate) fn all() -> Vec<Site> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sites = Vec::new();
    for file in FILES {
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let mut finder = Finder { file, functions: Vec::new(), sites: Vec::new() };
        finder.visit_file(&syn::parse_file(&text).unwrap_or_else(|error| panic!("{file}: {error}")));
        sites.append(&mut finder.sites);
    }
    sites.retain(|site| !WRAPPERS.contains(&(site.file, &site.function)));
    sites
}

/// The site of that name.
pub(crate) fn find(file: &str, function: &str, nth: usize) -> Site {
    let found = all().into_iter().find(|site| site.file == file && site.function == function && site.nth == nth);
    found.unwrap_or_else(|| panic!("{file} has no {function} #{nth} that waits"))
}

/// Files of the write paths that wait and are not looked at.
pub(crate) fn files_with_syncs() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src/vhd", "src/vhdx", "src/vhdx/write", "src/vhdx/resize", "src/vhdx/log", "src/chain", "src/copy"]
    {
        for entry in fs::read_dir(root.join(folder)).expect("a folder of the source").flatten() {
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            let text = if name.ends_with(".rs") { fs::read_to_string(entry.path()).expect("a file") } else { continue };
            if !name.ends_with("tests.rs") && (text.contains(".sync()") || text.contains(".settle()")) {
                found.push(name);
            }
        }
    }
    found.retain(|name| !FILES.contains(&name.as_str()) && !OTHERS.contains(&name.as_str()));
    found
}
