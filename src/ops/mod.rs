//! Operations over images and chains.
//!
//! Owns: the plans: what to read, where to put it, what to publish, in which order. Must not know: how a format stores
//! a block (the maps do), how bytes are moved (the copier does), how a person sees it (the program does).

mod change;
mod check;
mod children;
mod compact;
mod compare;
mod convert;
mod create;
mod forest;
mod hash;
#[cfg(feature = "registry")]
mod import;
mod info;
mod job;
mod map;
mod merge;
#[cfg(feature = "serde")]
mod paths;
#[cfg(feature = "registry")]
mod registry;
mod repair;
mod reparent;
#[cfg(feature = "registry")]
mod replica;
mod rescue;
mod resize;
#[cfg(feature = "registry")]
mod resync;
#[cfg(feature = "registry")]
mod session;
mod snapshot;
mod stream;
mod strips;
mod transfer;

pub use change::{SetChange, SetOptions, SetReport, metadata_item, metadata_items, set, set_image};
pub use check::{CheckOptions, CheckReport, CheckedFile, CheckedFinding, check};
pub use compact::{CompactFreed, CompactOptions, CompactReport, CompactSize, CompactVolume, compact, compact_chain};
pub use compare::{CompareOptions, CompareReport, DifferingRange, MAX_DIFFERING_RANGES, compare};
pub use convert::{ConvertOptions, ConvertReport, convert, convert_stream};
pub use create::{CreateOptions, create};
pub use forest::{
    BrokenFile, Duplicate, Forest, ForestImage, ForestParent, Help, LinkState, MAX_FOREST_IMAGES, forest,
};
pub use hash::{HashKind, HashOptions, HashReport, TREE_CHUNK, hash};
#[cfg(feature = "registry")]
pub use import::{
    CleanupReport, ExportOptions, FoundBy, ImportOptions, ImportOutcome, ImportReport, Imported, ImportedChain,
    Manifest, ManifestFile, MissingFile, NotImported, adopt, cleanup_import, export, import, imports,
};
pub use info::{ChainLink, Info, LogState, ParentInfo, info};
pub use job::{Cancel, Job, JobState, Wait};
pub use map::{ChangedRange, Changes, ExtentState, MapExtent, MapExtents, changes, map};
pub use merge::{
    CheckpointStore, MergeOptions, MergePlan, MergeReport, PlannedFile, Siblings, merge, merge_chain, plan_merge,
};
pub use repair::{RepairOptions, RepairReport, Repaired, UndoReport, repair, repair_storage, undo_file, undo_repair};
pub use reparent::{AbsolutePath, ReparentOptions, ReparentReport, reparent};
#[cfg(feature = "registry")]
pub use replica::{
    Capability, CopyState, Group, GroupReport, GroupRun, GroupView, Leads, ModifyOptions, ModifyReport, Operation,
    Pending, Relation, RelationView, Replicas, ReturnCode, SyncType, capabilities,
};
pub use rescue::{
    Doubt, LossCause, LostRange, MAX_FILL, MAX_LOST_RANGES, RescueOptions, RescueReport, RescuedFile, rescue,
    rescue_layers,
};
pub use resize::{GptState, ResizeOptions, ResizeReport, Truncated, resize, resize_chain};
#[cfg(feature = "registry")]
pub use resync::{
    ResyncIdentity, ResyncOptions, ResyncPair, ResyncReport, ResyncedPair, WhatDiffers, resync, resync_chain,
};
#[cfg(feature = "registry")]
pub use session::{
    AbortReport, Hooks, Moment, Participant, Phase, Recovered, Session, SessionInfo, SessionOptions, SessionReport,
    SessionState, SetInfo, SnapshotDisk, abort_session, new_leaf, recover_sessions, sessions,
};
pub use snapshot::{SnapshotOptions, SnapshotReport, snapshot};
pub use stream::{write_range, write_raw, write_raw_part};
pub use strips::{Cell, MAX_COLUMNS, MergeStrip, Strip, StripOptions, Strips, strips};
