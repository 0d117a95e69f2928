//! Programs by other people, asked what a disk holds.
//!
//! Owns: how each is called and what it may be asked. A program that is missing is said so on standard error and answers
//! `None`; with `VHDKIT_REQUIRE_TOOLS=1` that is a failure instead.
//!
//! What they cannot be asked: qemu-img reads a differencing VHD without its parent and refuses a differencing VHDX;
//! libvhdi misreads partial VHD bitmaps; 7-Zip fails on a VHD that is larger than its parent; none of them replays a VHDX log on a read-only open.

use crate::support::bytes::{Contents, Digesting};
use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// Says that a test did not run, and why; a failure when the tools were promised to be there.
pub fn skipped(why: &str) {
    assert!(std::env::var_os("VHDKIT_REQUIRE_TOOLS").is_none_or(|value| value != "1"), "required, but {why}");
    eprintln!("SKIPPED: {why}");
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    let quiet =
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

/// qemu-img.
pub struct QemuImg(());

impl QemuImg {
    /// The program, if it is here.
    pub fn find() -> Option<Self> {
        let found = runs("qemu-img", &["--version"]);
        if !found {
            skipped("qemu-img is not installed (package qemu-utils)");
        }
        found.then_some(Self(()))
    }

    /// Runs it with `arguments`.
    ///
    /// # Errors
    /// Both of its outputs, when it fails.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<String, String> {
        let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img starts");
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    /// What it reads from `image`; `format` is `vpc`, `vhdx` or `raw`. A VHD is read at its current size.
    ///
    /// # Panics
    /// When it refuses the file.
    pub fn contents(&self, image: &Path, format: &str) -> Contents {
        let folder = Scratch::new();
        let raw = folder.0.join("raw");
        let size = if format == "vpc" { ",force_size_calc=current_size" } else { "" };
        let source = format!("driver={format}{size},file.driver=file,file.filename={}", image.display());
        let arguments = ["convert", "--image-opts", &source, "-O", "raw", &raw.display().to_string()];
        self.run(arguments).unwrap_or_else(|text| panic!("qemu-img convert {}: {text}", image.display()));
        let mut digest = Digesting::default();
        pour(std::fs::File::open(&raw).expect("what qemu-img wrote"), &mut digest);
        digest.finish()
    }

    /// # Panics
    /// When `qemu-img check` finds anything wrong with the VHDX `image`.
    pub fn assert_checks(&self, image: &Path) {
        let image = image.display().to_string();
        let text =
            self.run(["check", "-f", "vhdx", &image]).unwrap_or_else(|text| panic!("qemu-img check {image}: {text}"));
        assert!(text.contains("No errors were found"), "qemu-img check {image}: {text}");
    }
}

/// 7-Zip. It finds the parents of a differencing image itself, beside it.
pub struct SevenZip(());

impl SevenZip {
    /// The program, if it is here.
    pub fn find() -> Option<Self> {
        let found = runs("7zz", &["i"]);
        if !found {
            skipped("7zz is not installed (package 7zip)");
        }
        found.then_some(Self(()))
    }

    /// What it reads from `image`; `format` is `VHD` or `VHDX`.
    ///
    /// # Errors
    /// Its standard error, when it refuses or fails.
    pub fn try_contents(&self, image: &Path, format: &str) -> Result<Contents, String> {
        let mut command = Command::new("7zz");
        // Naming the format keeps it from opening the file system inside as well.
        command.arg("e").arg(format!("-t{format}")).arg("-so").arg(image);
        digest_of(command)
    }

    /// What it reads from `image`; `format` is `VHD` or `VHDX`.
    ///
    /// # Panics
    /// When it refuses or fails.
    pub fn contents(&self, image: &Path, format: &str) -> Contents {
        self.try_contents(image, format).unwrap_or_else(|text| panic!("7zz {}: {text}", image.display()))
    }
}

/// libvhdi, through its Python binding.
pub struct Libvhdi {
    python: &'static str,
}

const READ_CHAIN: &str = r"
import sys, pyvhdi
above = None
files = []
for path in reversed(sys.argv[1:]):
    image = pyvhdi.file()
    image.open(path)
    if above is not None:
        image.set_parent(above)
    files.append(image)
    above = image
size, at = above.get_media_size(), 0
while at < size:
    data = above.read_buffer_at_offset(min(1 << 20, size - at), at)
    if not data:
        sys.exit('short read at %d of %d' % (at, size))
    sys.stdout.buffer.write(data)
    at += len(data)
";

const PARENT_IDENTIFIER: &str = r"
import sys, pyvhdi
image = pyvhdi.file()
image.open(sys.argv[1])
print(image.get_parent_identifier())
";

impl Libvhdi {
    /// The library, if a Python interpreter here knows it.
    pub fn find() -> Option<Self> {
        let python = ["/usr/bin/python3", "python3"].into_iter().find(|python| runs(python, &["-c", "import pyvhdi"]));
        if python.is_none() {
            skipped("no python3 imports pyvhdi (package python3-libvhdi)");
        }
        python.map(|python| Self { python })
    }

    /// What it reads from the chain `paths`, leaf first.
    ///
    /// # Panics
    /// When it refuses or fails.
    pub fn contents<P: AsRef<Path>>(&self, paths: &[P]) -> Contents {
        let mut command = Command::new(self.python);
        command.arg("-c").arg(READ_CHAIN).args(paths.iter().map(AsRef::as_ref));
        digest_of(command).unwrap_or_else(|text| panic!("libvhdi {}: {text}", paths[0].as_ref().display()))
    }

    /// The parent identifier it reads from `image`, as text.
    ///
    /// # Panics
    /// When it refuses the file.
    pub fn parent_identifier(&self, image: &Path) -> String {
        let output =
            Command::new(self.python).arg("-c").arg(PARENT_IDENTIFIER).arg(image).output().expect("python starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "libvhdi {}: {errors}", image.display());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

/// What `command` writes to its standard output.
fn digest_of(mut command: Command) -> Result<Contents, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("does not start: {error}"))?;
    let mut digest = Digesting::default();
    pour(child.stdout.take().expect("a pipe"), &mut digest);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(digest.finish())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn pour(mut from: impl Read, digest: &mut Digesting) {
    let mut buf = vec![0; 1 << 20];
    loop {
        match from.read(&mut buf).expect("a readable stream") {
            0 => return,
            len => digest.update(&buf[..len]),
        }
    }
}

/// A folder of its own, gone when dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vhdkit-oracle-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).expect("a folder for temporary files");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it; a folder that stays behind is only litter.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
