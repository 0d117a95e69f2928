//! What is asked of a resync, and what it answers.
//!
//! Owns: options and reports. Must not know: how either comes about.

use crate::chain::ChainOptions;
use serde::Serialize;
use std::path::PathBuf;

/// A disk, and the one that is to show the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncPair {
    /// The leaf of the chain that is read.
    pub source: PathBuf,
    /// The image that is written: a leaf, or one that stands alone.
    pub target: PathBuf,
}

/// Who the target is afterwards: the virtual disk id of a VHDX (page 83 of its inquiry data), the Unique ID of a VHD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResyncIdentity {
    /// Who it was.
    #[default]
    KeepTarget,
    /// Who the source is, where the formats are the same.
    TakeSource,
    /// Nobody that was before.
    Fresh,
}

/// How disks are resynced.
#[derive(Clone, Debug)]
pub struct ResyncOptions {
    pub(super) identity: ResyncIdentity,
    pub(super) grow: bool,
    pub(super) require_offload: bool,
    pub(super) volume_check: bool,
    pub(super) allow_children: bool,
    pub(super) dry_run: bool,
    pub(super) jobs: usize,
    pub(super) chain: ChainOptions,
}

impl Default for ResyncOptions {
    fn default() -> Self {
        Self {
            identity: ResyncIdentity::KeepTarget,
            grow: false,
            require_offload: false,
            volume_check: true,
            allow_children: false,
            dry_run: false,
            jobs: 0,
            chain: ChainOptions::default(),
        }
    }
}

impl ResyncOptions {
    /// Targets stay who they are and do not grow, and every refusal is in force.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Who the targets are afterwards.
    #[must_use]
    pub fn identity(mut self, identity: ResyncIdentity) -> Self {
        self.identity = identity;
        self
    }

    /// Whether a target that is smaller than its source grows (default: it is refused). A larger one is always cut.
    #[must_use]
    pub fn grow(mut self, grow: bool) -> Self {
        self.grow = grow;
        self
    }

    /// Whether it is an error when data cannot be moved without passing through this process, by the file system alone
    /// (default false).
    #[must_use]
    pub fn require_offload(mut self, require: bool) -> Self {
        self.require_offload = require;
        self
    }

    /// Whether a target with a partition that its source has not is refused (default true).
    #[must_use]
    pub fn volume_check(mut self, check: bool) -> Self {
        self.volume_check = check;
        self
    }

    /// Whether images that stand on a target are given up (default: the target is refused).
    #[must_use]
    pub fn allow_children(mut self, allow: bool) -> Self {
        self.allow_children = allow;
        self
    }

    /// Finds out what would move, and writes nothing.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How many threads read and copy; 0 (the default) is one per processor.
    #[must_use]
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = jobs;
        self
    }

    /// How the chains are opened.
    #[must_use]
    pub fn chain(mut self, chain: ChainOptions) -> Self {
        self.chain = chain;
        self
    }
}

/// How it was known what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhatDiffers {
    /// By what both were when the last resync ended: only what was written since.
    Recorded,
    /// By looking: files that both share and maps first, bytes where those do not tell.
    Compared,
}

/// What became of a pair; sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResyncedPair {
    /// What was read.
    #[serde(serialize_with = "crate::ops::paths::path")]
    pub source: PathBuf,
    /// What was written.
    #[serde(serialize_with = "crate::ops::paths::path")]
    pub target: PathBuf,
    /// How it was known what differs.
    pub by: WhatDiffers,
    /// Whether an interrupted run was finished.
    pub resumed: bool,
    /// What was known to be the same without reading it.
    pub known_equal: u64,
    /// What was read from both and compared.
    pub compared: u64,
    /// What differed.
    pub differing: u64,
    /// Data moved.
    pub moved: u64,
    /// Of that, data that never passed through this process.
    pub offloaded: u64,
    /// Of that, data that was not copied at all: both files hold the same blocks of the file system (a reflink).
    pub shared: u64,
    /// Ranges made zero.
    pub zeroed: u64,
    /// The size the target had, when it has another one now.
    pub resized_from: Option<u64>,
}

/// What a resync did, or would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResyncReport {
    /// Whether nothing was written.
    pub dry_run: bool,
    /// The pairs, in order.
    pub pairs: Vec<ResyncedPair>,
}
