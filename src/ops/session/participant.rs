//! Those who have to hold still while a set of snapshots is taken.
//!
//! Owns: what a participant is told, and programs as participants. Must not know: disks, journals, who is told in which
//! order.

use crate::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use wait_timeout::ChildExt;

/// How long a hook other than freeze may take; a guest that is frozen meanwhile has its own, shorter limit.
const HOOK_LIMIT: Duration = Duration::from_secs(300);

/// What a set is, as its participants see it.
#[derive(Clone, Debug)]
pub struct SetInfo {
    /// The session's id.
    pub id: String,
    /// The leaves that get a new leaf above them.
    pub disks: Vec<PathBuf>,
    /// The new leaves, one for each disk.
    pub children: Vec<PathBuf>,
}

/// What a participant is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// A set is coming.
    Prepare,
    /// Hold still, everything written out, until told otherwise.
    Freeze,
    /// Go on.
    Thaw,
    /// The set is there.
    Post,
    /// There will be no set: return to the normal state. May be said more than once, and at any time after `Prepare`.
    Abort,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Post => "post",
            Self::Abort => "abort",
        })
    }
}

/// Somebody who is told of a snapshot set: a guest agent, a database, a hypervisor.
///
/// A failed `freeze` or `thaw` aborts the set. A failed `prepare` ends the attempt: the caller aborts. A failed `post`
/// is only reported. `thaw` comes before `abort` for those who were frozen, and neither may fail in a participant that
/// is in its normal state already.
pub trait Participant: Send {
    /// What it is called in reports; unique in a session.
    fn name(&self) -> &str;

    /// A set of snapshots is about to be taken.
    ///
    /// # Errors
    /// Its own.
    fn prepare(&mut self, set: &SetInfo) -> Result<()> {
        let _ = set;
        Ok(())
    }

    /// Write everything out and hold still, within `limit`.
    ///
    /// # Errors
    /// Its own; the set is then aborted.
    fn freeze(&mut self, set: &SetInfo, limit: Duration) -> Result<()>;

    /// Go on.
    ///
    /// # Errors
    /// Its own; the set is then aborted.
    fn thaw(&mut self, set: &SetInfo) -> Result<()>;

    /// The set is there.
    ///
    /// # Errors
    /// Its own; reported, no more.
    fn post(&mut self, set: &SetInfo) -> Result<()> {
        let _ = set;
        Ok(())
    }

    /// There will be no set; return to the normal state.
    ///
    /// # Errors
    /// Its own; the others are told all the same.
    fn abort(&mut self, set: &SetInfo) -> Result<()> {
        let _ = set;
        Ok(())
    }

    /// The programs that can stand in for it when this process dies; what it says here is in the journal.
    fn hooks(&self) -> Option<&Hooks> {
        None
    }
}

/// Programs as a participant: each is run by `sh -c`, with the session's id in `VHDKIT_SESSION`, the moment in
/// `VHDKIT_MOMENT`, and the disks and their new leaves, one to a line, in `VHDKIT_DISKS` and `VHDKIT_CHILDREN`. An exit
/// code other than 0 is a failure. Where one is missing nothing is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    name: String,
    prepare: Option<String>,
    freeze: Option<String>,
    thaw: Option<String>,
    post: Option<String>,
    abort: Option<String>,
}

impl Hooks {
    /// No programs yet.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Runs `command` at `moment`.
    #[must_use]
    pub fn on(mut self, moment: Moment, command: impl Into<String>) -> Self {
        *self.slot(moment) = Some(command.into());
        self
    }

    /// Whether nothing is ever run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        [&self.prepare, &self.freeze, &self.thaw, &self.post, &self.abort].iter().all(|command| command.is_none())
    }

    /// These, and those of `recorded` for the moments that nothing is run at.
    pub(super) fn or(&self, recorded: &Self) -> Self {
        let first = |one: &Option<String>, other: &Option<String>| one.clone().or_else(|| other.clone());
        Self {
            name: self.name.clone(),
            prepare: first(&self.prepare, &recorded.prepare),
            freeze: first(&self.freeze, &recorded.freeze),
            thaw: first(&self.thaw, &recorded.thaw),
            post: first(&self.post, &recorded.post),
            abort: first(&self.abort, &recorded.abort),
        }
    }

    fn slot(&mut self, moment: Moment) -> &mut Option<String> {
        match moment {
            Moment::Prepare => &mut self.prepare,
            Moment::Freeze => &mut self.freeze,
            Moment::Thaw => &mut self.thaw,
            Moment::Post => &mut self.post,
            Moment::Abort => &mut self.abort,
        }
    }

    fn run(&mut self, moment: Moment, set: &SetInfo, limit: Duration) -> Result<()> {
        let Some(command) = self.slot(moment).clone() else { return Ok(()) };
        let failed = |error| Error::io(format_args!("run the {moment} hook {command:?}"), error);
        let lines = |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy()).collect::<Vec<_>>().join("\n");
        let child = Command::new("sh")
            .arg("-c")
            .arg(&command)
            .env("VHDKIT_SESSION", &set.id)
            .env("VHDKIT_MOMENT", moment.to_string())
            .env("VHDKIT_DISKS", lines(&set.disks))
            .env("VHDKIT_CHILDREN", lines(&set.children))
            .stdin(Stdio::null())
            // What a program says is for people; standard output is for the answer.
            .stdout(io::stderr())
            // A group of its own: what it started goes with it when it takes too long.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        match wait(child, limit).map_err(failed)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                let message = format_args!("the {moment} hook {command:?} failed: {status}").to_string();
                Err(Error::new(ErrorKind::Refused, message).with_hint("what it said is on standard error"))
            }
            None => {
                let limit = limit.as_secs_f32();
                let message = format_args!("the {moment} hook {command:?} took longer than {limit} s").to_string();
                Err(Error::new(ErrorKind::Refused, message).with_hint("it was killed; allow more time if it needs it"))
            }
        }
    }
}

/// How `child` ended, or `None` when it had to be killed after `limit`.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.wait_timeout(limit)? {
        return Ok(Some(status));
    }
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
    child.wait()?;
    Ok(None)
}

impl Participant for Hooks {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, set: &SetInfo) -> Result<()> {
        self.run(Moment::Prepare, set, HOOK_LIMIT)
    }

    fn freeze(&mut self, set: &SetInfo, limit: Duration) -> Result<()> {
        self.run(Moment::Freeze, set, limit)
    }

    fn thaw(&mut self, set: &SetInfo) -> Result<()> {
        self.run(Moment::Thaw, set, HOOK_LIMIT)
    }

    fn post(&mut self, set: &SetInfo) -> Result<()> {
        self.run(Moment::Post, set, HOOK_LIMIT)
    }

    fn abort(&mut self, set: &SetInfo) -> Result<()> {
        self.run(Moment::Abort, set, HOOK_LIMIT)
    }

    fn hooks(&self) -> Option<&Hooks> {
        Some(self)
    }
}
