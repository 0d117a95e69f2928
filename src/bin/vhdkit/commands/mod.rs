//! The verbs, one file each.
//!
//! Owns: each verb's own arguments, help, and how its result reads. Must not know: how an operation is done.

pub(crate) mod chain;
pub(crate) mod changes;
pub(crate) mod check;
pub(crate) mod compact;
pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod create;
pub(crate) mod hash;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod map;
pub(crate) mod merge;
pub(crate) mod metadata;
pub(crate) mod read;
pub(crate) mod repair;
pub(crate) mod reparent;
pub(crate) mod replica;
pub(crate) mod rescue;
pub(crate) mod resize;
pub(crate) mod resync;
pub(crate) mod session;
pub(crate) mod set;
pub(crate) mod snapshot;
pub(crate) mod snapshot_set;
pub(crate) mod standalone;
pub(crate) mod write;
