//! Events as alerts, for Alertmanager's API (POST /api/v2/alerts, api/v2/openapi.yaml in its repository).
//!
//! An alert is known by its labels, all of them, so those that fire and those that resolve it must have the same: they are made
//! of names alone, and what varies is in the annotations. Alertmanager resolves an alert by itself after its `resolve_timeout`,
//! five minutes, unless it is told when the alert ends; Prometheus repeats its alerts all the time, and events come once.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{Event, headline};
use crate::cli::events::{field, reason, time_of};

/// For what is resolved by another event. Much longer than anybody leaves an alert alone, and still an end, for workers that are
/// never heard of again.
const UNTIL_TOLD: Duration = Duration::from_secs(30 * 24 * 3600);

/// For what is told again each minute for as long as it goes on.
const REPEATED: Duration = Duration::from_secs(15 * 60);

/// For what somebody should look at, and no event says that it is over.
const A_WHILE: Duration = Duration::from_secs(3600);

/// What an event does to an alert.
enum Says {
    Fires(Duration),
    Resolves,
}

/// The alert that an event is about, how bad it is, and what becomes of it. The alert and its severity are labels.
fn says(event: &Event) -> Option<(&'static str, &'static str, Says)> {
    let (kind, code) = (field(event, "type"), reason(event, "code"));
    Some(match kind {
        "worker-quarantined" => ("WorkerQuarantined", "warning", Says::Fires(UNTIL_TOLD)),
        "worker-admitted" => ("WorkerQuarantined", "warning", Says::Resolves),
        // The settings have it no longer, or want it otherwise, so that it is proven anew.
        "worker-held" if code == "settings_changed" => ("WorkerQuarantined", "warning", Says::Resolves),
        "worker-bypass" => ("WorkerBypass", "warning", Says::Fires(REPEATED)),
        "worker-recycled" if code == "not_recycled" => ("WorkerNotRecycled", "warning", Says::Fires(A_WHILE)),
        "worker-recycled" => ("WorkerNotRecycled", "warning", Says::Resolves),
        "fleet-suspect" => ("FleetSuspect", "critical", Says::Fires(A_WHILE)),
        "gate-offline" => ("GateOffline", "warning", Says::Fires(UNTIL_TOLD)),
        "gate-online" => ("GateOffline", "warning", Says::Resolves),
        "gate-settings-refused" => ("GateSettingsRefused", "warning", Says::Fires(UNTIL_TOLD)),
        "gate-settings-loaded" => ("GateSettingsRefused", "warning", Says::Resolves),
        "gate-command-refused" => ("GateCommandRefused", "warning", Says::Fires(A_WHILE)),
        _ => return None,
    })
}

/// The alert, if the event makes one.
pub(super) fn body(event: &Event) -> Option<String> {
    let (alert, severity, says) = says(event)?;
    let at = time_of(event).unwrap_or_else(Timestamp::now);
    let ends = match says {
        Says::Fires(lasts) => {
            SignedDuration::try_from(lasts).ok().and_then(|lasts| at.checked_add(lasts).ok()).unwrap_or(at)
        }
        Says::Resolves => at,
    };
    let labels = filled([
        ("alertname", alert),
        ("worker", field(event, "worker_name")),
        ("gate", field(event, "gate")),
        ("severity", severity),
    ]);
    let summary = headline(event);
    let annotations = filled([
        ("summary", summary.as_str()),
        ("description", reason(event, "detail")),
        ("remedy", reason(event, "remedy")),
        ("reason", reason(event, "code")),
    ]);
    let (starts, ends) = (at.to_string(), ends.to_string());
    let alert = json!({"labels": labels, "annotations": annotations, "startsAt": starts, "endsAt": ends});
    Some(Value::from(vec![alert]).to_string())
}

/// Those that say something: an empty label is none for Alertmanager.
fn filled<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Map<String, Value> {
    let said = fields.into_iter().filter(|(_, value)| !value.is_empty());
    said.map(|(name, value)| (name.to_owned(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(event: &Value) -> Option<Value> {
        let alerts: Value = serde_json::from_str(&body(event.as_object().unwrap())?).unwrap();
        assert_eq!(alerts.as_array().unwrap().len(), 1);
        Some(alerts[0].clone())
    }

    fn of_worker(kind: &str, code: &str, timestamp: f64) -> Value {
        json!({
            "type": kind, "hostname": "codex-0@h", "worker_name": "codex-0@h", "gate": "g", "seq": 7, "timestamp": timestamp,
            "reason": {"code": code, "detail": "not logged in", "remedy": "codex login"},
        })
    }

    #[test]
    fn an_admission_resolves_what_the_quarantine_fired() {
        let fired = alert(&of_worker("worker-quarantined", "check_failed", 1_795_341_600.25)).unwrap();
        let resolved = alert(&of_worker("worker-admitted", "fit", 1_795_341_660.5)).unwrap();
        let labels =
            json!({"alertname": "WorkerQuarantined", "worker": "codex-0@h", "gate": "g", "severity": "warning"});
        assert_eq!((&fired["labels"], &resolved["labels"]), (&labels, &labels));
        let annotations = json!({
            "summary": "worker codex-0@h is quarantined", "description": "not logged in", "remedy": "codex login",
            "reason": "check_failed",
        });
        assert_eq!(fired["annotations"], annotations);
        assert_eq!(fired["startsAt"], "2026-11-22T10:00:00.25Z");
        assert_eq!(fired["endsAt"], "2026-12-22T10:00:00.25Z", "not by resolve_timeout");
        assert_eq!(
            (&resolved["startsAt"], &resolved["endsAt"]),
            (&json!("2026-11-22T10:01:00.5Z"), &resolved["startsAt"])
        );
    }

    #[test]
    fn each_alert_that_stays_has_events_that_resolve_it() {
        for (fires, resolves) in [
            (("worker-quarantined", "profile_drifted"), ("worker-held", "settings_changed")),
            (("worker-recycled", "not_recycled"), ("worker-recycled", "recycled")),
            (("gate-offline", ""), ("gate-online", "")),
            (("gate-settings-refused", "settings_changed"), ("gate-settings-loaded", "")),
        ] {
            let [fired, resolved] = [fires, resolves].map(|(kind, code)| alert(&of_worker(kind, code, 1.0)).unwrap());
            assert_eq!(fired["labels"], resolved["labels"]);
            assert_ne!(fired["startsAt"], fired["endsAt"], "{fires:?}");
            assert_eq!(resolved["startsAt"], resolved["endsAt"], "{resolves:?}");
        }
    }

    #[test]
    fn what_no_event_ends_ends_by_itself() {
        for (kind, ends) in [
            ("worker-bypass", "1970-01-01T00:15:01Z"),
            ("fleet-suspect", "1970-01-01T01:00:01Z"),
            ("gate-command-refused", "1970-01-01T01:00:01Z"),
        ] {
            assert_eq!(alert(&of_worker(kind, "x", 1.0)).unwrap()["endsAt"], ends);
        }
    }

    #[test]
    fn what_is_about_a_gate_has_no_label_for_a_worker() {
        let offline = json!({"type": "gate-offline", "gate": "g", "timestamp": 1.0});
        let alert = alert(&offline).unwrap();
        assert_eq!(alert["labels"], json!({"alertname": "GateOffline", "gate": "g", "severity": "warning"}));
        assert_eq!(alert["annotations"], json!({"summary": "gate g has stopped"}));
    }

    #[test]
    fn what_needs_nobody_makes_no_alert() {
        for kind in [
            "worker-health-check",
            "gate-heartbeat",
            "worker-config-managed",
            "worker-version-changed",
            "worker-held",
            "x",
        ] {
            assert_eq!(alert(&of_worker(kind, "starting", 1.0)), None, "{kind}");
        }
    }
}
