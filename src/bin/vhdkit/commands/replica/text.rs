//! How relations, groups and capabilities read.
//!
//! Owns: their text. Must not know: where they come from.

use crate::output::{self, Failure};
use crate::size;
use std::fmt::Write;
use vhdkit::ops::{CopyState, GroupView, Leads, ModifyReport, RelationView, SyncType, capabilities};

pub(super) fn group_text(group: &GroupView) -> String {
    let consistent = if group.group.consistent { ", consistent" } else { "" };
    let mut text = format!("{}: {}{consistent}\n", group.group.id, group.state);
    for view in &group.relations {
        let _ = write!(text, "  {}", relation(view));
    }
    text
}

pub(super) fn relation(view: &RelationView) -> String {
    let one = &view.relation;
    let (source, target) = (one.source.display().to_string(), one.target.display().to_string());
    let (source, target) = (output::shown(&source), output::shown(&target));
    let weak = if view.weak { " (by times of change)" } else { "" };
    let pending = match &one.pending {
        Some(pending) => format!(", {} was begun and has not ended", pending.operation),
        None => String::new(),
    };
    let live = match &one.live {
        Some(live) => format!(", live in {}", output::shown(&live.display().to_string())),
        None => String::new(),
    };
    format!("{}: {} {}{weak}, {source} -> {target}{live}{pending}\n", one.id, one.sync_type, view.observed)
}

pub(super) fn changed(report: &ModifyReport) -> String {
    let mut text =
        if report.gone { format!("{}: gone\n", report.relation.relation.id) } else { relation(&report.relation) };
    if report.moved > 0 {
        let _ = writeln!(text, "  {} moved", size::human(report.moved));
    }
    for note in &report.notes {
        let _ = writeln!(text, "  {}", output::shown(note));
    }
    text
}

pub(super) fn show_capabilities(kind: Option<SyncType>, json: bool) -> Result<(), Failure> {
    let kinds = kind.map_or(SyncType::ALL.to_vec(), |kind| vec![kind]);
    if json {
        let all: Vec<_> = kinds
            .into_iter()
            .map(|kind| serde_json::json!({ "type": kind, "number": kind.number(), "operations": capabilities(kind) }))
            .collect();
        return output::print_json(&all);
    }
    let mut text = String::new();
    let list = |states: &[CopyState]| states.iter().map(CopyState::to_string).collect::<Vec<_>>().join(" ");
    for kind in kinds {
        let _ = writeln!(text, "{kind} ({})", kind.number());
        for row in capabilities(kind) {
            let what = match (row.leads, row.groups_only) {
                (_, true) => "groups".to_owned(),
                (None, _) => "not supported".to_owned(),
                (Some(leads), _) => {
                    let to = match leads {
                        Leads::To(state) => state.to_string(),
                        Leads::Same => "the same".to_owned(),
                        Leads::Gone => "gone".to_owned(),
                    };
                    let force = list(&row.from_with_force);
                    let force = if force.is_empty() { force } else { format!(" [with force: {force}]") };
                    format!("{}{force} -> {to}", list(&row.from))
                }
            };
            let _ = writeln!(text, "  {:2} {}: {what}", row.number, row.operation);
        }
    }
    output::print(&text)
}
