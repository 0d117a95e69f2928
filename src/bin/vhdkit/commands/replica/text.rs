//! How relations, groups and capabilities read.
//!
//! Owns: their text. Must not know: where they come from.

use super::job::Started;
use crate::output::{self, Failure};
use crate::size;
use std::fmt::Write;
use vhdkit::ops::{CopyState, GroupView, Leads, ModifyReport, RelationView, ReturnCode, SyncType, capabilities};

pub(super) fn group_text(group: &GroupView, at_work: bool) -> String {
    let consistent = if group.group.consistent { ", consistent" } else { "" };
    let run = match &group.group.run {
        Some(run) if at_work => format!(", {} is at work", run.operation),
        Some(run) => format!(", {} was begun and has not ended", run.operation),
        None => String::new(),
    };
    let mut text = format!("{}: {}{consistent}{run}\n", group.group.id, group.state);
    for view in &group.relations {
        let _ = write!(text, "  {}", relation(view, at_work));
    }
    text
}

pub(super) fn relation(view: &RelationView, at_work: bool) -> String {
    let one = &view.relation;
    let (source, target) = (one.source.display().to_string(), one.target.display().to_string());
    let (source, target) = (output::shown(&source), output::shown(&target));
    let weak = if view.weak { " (by times of change)" } else { "" };
    let mut text = format!("{}: {} {}{weak}, {source} -> {target}", one.id, one.sync_type, view.observed);
    if let Some(live) = &one.live {
        let _ = write!(text, ", live in {}", output::shown(&live.display().to_string()));
    }
    if let Some(pending) = &one.pending {
        let _ = match (at_work, pending.process) {
            (true, Some(process)) => write!(text, ", {} is at work in process {process}", pending.operation),
            _ => write!(text, ", {} was begun and has not ended", pending.operation),
        };
    }
    if let Some(failed) = &one.failed {
        let _ = write!(text, ": {}", output::shown(failed));
    }
    text.push('\n');
    text
}

/// What somebody hears who did not wait for the end; nothing when there was one.
pub(super) fn goes_on(started: Option<&Started>, code: ReturnCode) -> String {
    let late = if code == ReturnCode::Timeout { "the time is up; " } else { "" };
    match started {
        Some(started) => format!("{late}{} goes on in process {}\n", started.operation, started.process),
        None => String::new(),
    }
}

pub(super) fn changed(report: &ModifyReport) -> String {
    let mut text = if report.gone {
        format!("{}: gone\n", report.relation.relation.id)
    } else {
        relation(&report.relation, false)
    };
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
