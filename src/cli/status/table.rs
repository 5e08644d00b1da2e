//! The table of workers, for people.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::cli::{
    fleet::{Fleet, age},
    line::{text, word},
};

const HEADINGS: [&str; 11] =
    ["WORKER", "ADMISSION", "EDGE", "SINCE", "EVIDENCE", "WAITING", "SEEN", "PROFILE", "VERSIONS", "GATE", "REASON"];
/// The column that is coloured.
const ADMISSION: usize = 1;

/// One row for each record, and what is to be done below it.
pub(super) fn table(records: &[Map<String, Value>], now: Timestamp, colour: bool) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(records.iter().map(|record| row(record, now)));
    // The last column is as wide as it is.
    let width = |column: usize| match column {
        10 => 0,
        _ => rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default(),
    };
    let widths: [usize; 11] = std::array::from_fn(width);
    let mut table = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cell = |(column, (cell, width)): (usize, (&String, usize))| {
            let padded = format!("{cell:<width$}");
            if colour && column == ADMISSION { coloured(cell, &padded) } else { padded }
        };
        let cells: Vec<_> = row.iter().zip(widths).enumerate().map(cell).collect();
        // To a string nothing fails.
        let _ = writeln!(table, "{}", cells.join("  ").trim_end());
        let Some(record) = at.checked_sub(1).and_then(|at| records.get(at)) else { continue };
        for line in below(record) {
            let _ = writeln!(table, "    {line}");
        }
    }
    table
}

/// What is to be said of gates.
pub(super) fn notes(fleet: &Fleet, now: Timestamp) -> String {
    let mut notes = String::new();
    for (gate, beat) in &fleet.silent {
        let gate = word(&gate.as_str().into());
        let _ = match beat {
            Some(beat) => writeln!(
                notes,
                "gate {gate} is silent: last heard {} ago, with {} workers",
                span(age(now, beat).as_secs()),
                beat.workers.len()
            ),
            None => writeln!(notes, "gate {gate} is silent, and the broker does not know what it said last"),
        };
    }
    for (gate, beat) in &fleet.stopped {
        let gate = word(&gate.as_str().into());
        let _ = writeln!(notes, "gate {gate} was stopped {} ago", span(age(now, beat).as_secs()));
    }
    notes
}

fn row(record: &Map<String, Value>, now: Timestamp) -> [String; 11] {
    let state = |name: &str| record.get(name).map_or_else(|| "-".to_owned(), word);
    let [worker, admission, edge, waiting, gate] = ["worker_name", "admission", "edge", "waiting", "gate"].map(state);
    let seen = match record.get("worker_seen") {
        Some(Value::Bool(true)) => "yes",
        Some(Value::Bool(false)) => "no",
        Some(_) | None => "-",
    };
    let profile = record.get("profile").and_then(|profile| profile.get("state")).map_or_else(|| "-".to_owned(), word);
    let (since, evidence) = (ago(record, "changed_at", now), ago(record, "last_checked_at", now));
    let (versions, reason) = (versions(record), reason(record));
    [worker, admission, edge, since, evidence, waiting, seen.to_owned(), profile, versions, gate, reason]
}

fn below(record: &Map<String, Value>) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(moving) = record.get("moving").and_then(Value::as_object) {
        let [moved, before] = ["moved", "before"].map(|name| text(moving, name));
        lines.push(format!("moving messages: {moved} of {before}"));
    }
    let code = record.get("reason").and_then(|reason| reason.get("code")).map(word);
    if let Some(hold) = record.get("hold").and_then(Value::as_object)
        && code.as_deref() != Some("operator_hold")
    {
        let until = hold.get("until").map_or_else(String::new, |until| format!(" until {}", word(until)));
        lines.push(format!("held as well{until}: {}", text(hold, "reason")));
    }
    let remedy = record.get("reason").and_then(|reason| reason.get("remedy")).map(word).unwrap_or_default();
    if !remedy.is_empty() {
        lines.push(format!("-> {remedy}"));
    }
    lines
}

fn coloured(admission: &str, padded: &str) -> String {
    let colour = match admission {
        "admitted" => 32,
        "quarantined" => 31,
        "held" => 33,
        _ => return padded.to_owned(),
    };
    format!("\u{1b}[{colour}m{padded}\u{1b}[0m")
}

/// How long ago this time was.
fn ago(record: &Map<String, Value>, name: &str, now: Timestamp) -> String {
    let at = record.get(name).and_then(Value::as_str).and_then(|at| at.parse::<Timestamp>().ok());
    at.map_or_else(|| "-".to_owned(), |at| span(u64::try_from(now.duration_since(at).as_secs()).unwrap_or_default()))
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn versions(record: &Map<String, Value>) -> String {
    let Some(checks) = record.get("checks").and_then(Value::as_object) else { return "-".to_owned() };
    let version = |(name, check): (&String, &Value)| {
        let version = check.get("version").filter(|version| !version.is_null())?;
        Some(format!("{} {}", word(&name.as_str().into()), word(version)))
    };
    let versions: Vec<_> = checks.iter().filter_map(version).collect();
    if versions.is_empty() { "-".to_owned() } else { versions.join(", ") }
}

fn reason(record: &Map<String, Value>) -> String {
    let reason = record.get("reason").and_then(Value::as_object);
    reason.map_or_else(|| "-".to_owned(), |reason| format!("{}: {}", text(reason, "code"), text(reason, "detail")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{control::roll::Beat, model::WorkerName};

    fn records() -> Vec<Map<String, Value>> {
        let fit = json!({
            "worker_name": "codex-0@host-1", "admission": "admitted", "edge": "open", "gate": "host-1",
            "changed_at": "2026-11-22T09:00:00Z", "last_checked_at": "2026-11-22T10:00:00Z", "waiting": 0,
            "worker_seen": true, "profile": {"state": "managed"},
            "checks": {"codex_cli": {"version": "0.169.0"}, "spec_kit": {"version": null}},
            "reason": {"code": "fit", "detail": "every required check passed", "remedy": ""},
        });
        let unfit = json!({
            "worker_name": "codex-1", "admission": "quarantined", "edge": "shut", "gate": "host-1", "waiting": null,
            "moving": {"before": 900, "moved": 20, "left": 880, "taken": 0}, "worker_seen": false,
            "hold": {"by": {"user": null, "claims": "eve@x"}, "reason": "maintenance", "since": "x"},
            "reason": {"code": "profile_drifted", "detail": "approval_policy is \"on-request\"",
                       "remedy": "worker-gate profile apply"},
        });
        [fit, unfit].into_iter().map(|record| record.as_object().unwrap().clone()).collect()
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:42Z".parse().unwrap()
    }

    #[test]
    fn the_table_shows_state_evidence_versions_reason_and_remedy() {
        insta::assert_snapshot!(table(&records(), now(), false), @r#"
        WORKER          ADMISSION    EDGE  SINCE   EVIDENCE  WAITING  SEEN  PROFILE  VERSIONS           GATE    REASON
        codex-0@host-1  admitted     open  60 min  42 s      0        yes   managed  codex_cli 0.169.0  host-1  fit: every required check passed
        codex-1         quarantined  shut  -       -         -        no    -        -                  host-1  profile_drifted: approval_policy is "on-request"
            moving messages: 20 of 900
            held as well: maintenance
            -> worker-gate profile apply
        "#);
    }

    #[test]
    fn only_the_admission_is_coloured_and_columns_stay_where_they_are() {
        let (plain, coloured) = (table(&records(), now(), false), table(&records(), now(), true));
        assert!(coloured.contains("\u{1b}[32madmitted   \u{1b}[0m") && coloured.contains("\u{1b}[31mquarantined"));
        let bare = regex::Regex::new("\u{1b}\\[[0-9]+m").unwrap().replace_all(&coloured, "").into_owned();
        assert_eq!(bare, plain);
    }

    #[test]
    fn gates_that_are_silent_or_stopped_are_named_with_their_age() {
        let beat = |at: &str, goodbye| Beat { at: at.parse().unwrap(), goodbye, workers: vec![WorkerName::new("a")] };
        let fleet = Fleet {
            silent: [
                ("host-2".to_owned(), Some(beat("2026-11-22T10:00:00Z", false))),
                ("host-3\u{1b}".to_owned(), None),
            ]
            .into(),
            stopped: [("host-4".to_owned(), beat("2026-11-22T09:50:42Z", true))].into(),
            ..Fleet::default()
        };
        let notes = notes(&fleet, now());
        let expected = "gate host-2 is silent: last heard 42 s ago, with 1 workers\n\
                        gate host-3\\u{1b} is silent, and the broker does not know what it said last\n\
                        gate host-4 was stopped 10 min ago\n";
        assert_eq!(notes, expected);
    }
}
