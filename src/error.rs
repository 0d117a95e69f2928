//! The one error type.
//!
//! Owns: what went wrong (a kind), to which file, where, why, and what the reader can do next.
//! Must not know: any format; a damaged structure arrives here as a [`Problem`].

use crate::problem::Problem;
use crate::units::FileOffset;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is; new kinds may be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system failed a read, a write or a sync.
    Io,
    /// The file system is full.
    NoSpace,
    /// The file does not exist.
    NotFound,
    /// The file is held by another process, or by another handle of this one.
    InUse,
    /// A write through a handle that was opened for reading or that an earlier failure closed for writing, or to a file
    /// system that takes none.
    ReadOnly,
    /// An argument that cannot be meant: outside the disk, unaligned, contradictory.
    InvalidInput,
    /// Neither a VHD nor a VHDX file.
    UnknownFormat,
    /// The image breaks a rule of its format; [`Error::problem`] names it.
    Corrupt,
    /// A valid image that needs something this crate does not do.
    Unsupported,
    /// No file was found for a parent.
    ParentNotFound,
    /// The parent that was found is not the one the child was made over.
    ParentMismatch,
    /// The parent lies outside what the parent policy lets be opened.
    ParentDenied,
    /// A chain that leads back to itself.
    Cycle,
    /// The chain's shape does not fit the request: too short, wrong depth, layers that cannot be stacked.
    Chain,
    /// Refused because going on could lose data.
    Refused,
    /// Stopped because the caller asked for it.
    Cancelled,
}

impl ErrorKind {
    /// What helps against most failures of this kind.
    fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Io => "see whether you may use the file and whether its medium is sound, then try again",
            Self::NoSpace => "make room on the file system, then try again",
            Self::NotFound => "see whether the name is right and the file system mounted",
            Self::InUse => "stop the program that has the file open, then try again",
            Self::ReadOnly => "open the file again where it can be written",
            Self::InvalidInput => "`vhdkit help` and the name of a command show what can be asked for",
            Self::UnknownFormat => "if this is a raw disk image, say so with -f raw",
            Self::Corrupt => {
                "`vhdkit check` lists all that is wrong, `vhdkit repair` mends what is safe to mend, and `vhdkit rescue` \
                 saves what can still be read"
            }
            Self::ParentNotFound | Self::ParentMismatch | Self::ParentDenied | Self::Cycle | Self::Chain => {
                "`vhdkit chain` and a folder show which image stands on which, and how to mend it"
            }
            Self::Unsupported | Self::Refused | Self::Cancelled => return None,
        })
    }
}

/// Why an operation failed.
///
/// `Display` is one sentence: the file, what happened, and the name Windows gives the condition where there is one.
/// [`hint`](Self::hint) says what can be done about it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    path: Option<PathBuf>,
    offset: Option<FileOffset>,
    problem: Option<Problem>,
    windows: Option<&'static str>,
    source: Option<io::Error>,
}

impl Error {
    /// An error of `kind`, explained by `message` (lower case, no full stop).
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.to_string(),
            hint: None,
            path: None,
            offset: None,
            problem: None,
            windows: None,
            source: None,
        }))
    }

    /// A failure of the operating system while doing `operation` ("read the BAT").
    #[must_use]
    pub fn io(operation: impl fmt::Display, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                ErrorKind::NoSpace
            }
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => ErrorKind::InUse,
            _ => ErrorKind::Io,
        };
        let mut error = Self::new(kind, format_args!("cannot {operation}"));
        error.0.source = Some(source);
        error
    }

    /// The image breaks a rule of its format.
    #[must_use]
    pub fn corrupt(problem: Problem) -> Self {
        Self::from_problem(ErrorKind::Corrupt, problem)
    }

    /// An error of `kind` whose cause is `problem`.
    #[must_use]
    pub fn from_problem(kind: ErrorKind, problem: Problem) -> Self {
        let mut error = Self::new(kind, &problem);
        error.0.offset = problem.offset;
        error.0.windows = problem.windows_name();
        error.0.problem = Some(problem);
        error
    }

    /// The same error, about the file at `path`; a path that is already there stays.
    #[must_use]
    pub fn with_path(mut self, path: &Path) -> Self {
        self.0.path.get_or_insert_with(|| path.to_path_buf());
        self
    }

    /// The same error, at `offset` of the file.
    #[must_use]
    pub fn with_offset(mut self, offset: FileOffset) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// The same error with a sentence on what to do next; a hint that is already there stays.
    #[must_use]
    pub fn with_hint(mut self, hint: impl fmt::Display) -> Self {
        self.0.hint.get_or_insert_with(|| hint.to_string());
        self
    }

    /// The same error with the name Windows gives the condition.
    #[must_use]
    pub fn with_windows_name(mut self, name: &'static str) -> Self {
        self.0.windows = Some(name);
        self
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file it is about.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Where in that file.
    #[must_use]
    pub fn offset(&self) -> Option<FileOffset> {
        self.0.offset
    }

    /// What the reader can do next; about the kind of failure where nothing is known about this one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref().or(self.0.kind.hint())
    }

    /// The broken rule, for [`ErrorKind::Corrupt`] and its relatives.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        self.0.problem.as_ref()
    }

    /// The name Windows gives the condition (`ERROR_VHD_...`).
    #[must_use]
    pub fn windows_name(&self) -> Option<&'static str> {
        self.0.windows
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.0.path {
            write!(f, "{}: ", path.display())?;
        }
        f.write_str(&self.0.message)?;
        if self.0.problem.is_none()
            && let Some(offset) = self.0.offset
        {
            write!(f, " at file offset {offset}")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(name) = self.0.windows {
            write!(f, " ({name})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)?;
        self.0.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; hint: {hint}"))
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match (&self.0.source, &self.0.problem) {
            (Some(source), _) => Some(source),
            (None, Some(problem)) => Some(problem),
            (None, None) => None,
        }
    }
}

/// For the adapters that must speak `std::io`: the error travels inside and can be downcast again.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound | ErrorKind::ParentNotFound => io::ErrorKind::NotFound,
            ErrorKind::NoSpace => io::ErrorKind::StorageFull,
            ErrorKind::InUse => io::ErrorKind::ResourceBusy,
            ErrorKind::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::Corrupt | ErrorKind::UnknownFormat => io::ErrorKind::InvalidData,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
