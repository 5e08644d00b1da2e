//! Events as people read them: one line each.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

/// When, what, who, the state after it, why, and what to do.
pub(super) fn line(event: &Map<String, Value>) -> String {
    let mut parts = vec![time(event), format!("{:<22}", text(event, "type")), text(event, "hostname")];
    if let (Some(admission), Some(edge)) = (event.get("admission"), event.get("edge")) {
        parts.push(format!("{}/{}", word(admission), word(edge)));
    }
    if let Some(ms) = event.get("latency_ms").and_then(Value::as_f64) {
        parts.push(format!("in {ms:.1} ms"));
    }
    if let Some(account) = event.get("account").and_then(Value::as_object) {
        let count = |name: &str| account.get(name).and_then(Value::as_u64).unwrap_or_default();
        let [before, moved, left, taken] = ["before", "moved", "left", "taken"].map(count);
        parts.push(format!("{before} waiting: {moved} moved, {left} left, {taken} taken"));
    }
    if event.get("broker_blocked").and_then(Value::as_bool) == Some(true) {
        parts.push("broker_blocked: RabbitMQ takes no messages; what is left moves when it does".to_owned());
    }
    parts.extend(exposed(event));
    if let Some(reason) = event.get("reason").and_then(Value::as_object) {
        parts.push(format!("{}: {}", text(reason, "code"), text(reason, "detail")));
        let remedy = text(reason, "remedy");
        if !remedy.is_empty() {
            parts.push(format!("-> {remedy}"));
        }
    }
    if event.contains_key("audit_problem") {
        parts.push(format!("not in the audit log: {}", text(event, "audit_problem")));
    }
    parts.join("  ")
}

/// So many tasks stand in a line; all of them are in the event.
const NAMED: usize = 20;

fn exposed(event: &Map<String, Value>) -> Option<String> {
    let exposed = event.get("exposed")?;
    let tasks = exposed.get("tasks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let named = |task: &Value| task.as_object().map(|task| format!("{} {}", text(task, "name"), text(task, "id")));
    let mut said: Vec<_> = tasks.iter().filter_map(named).take(NAMED).collect();
    if tasks.len() > NAMED {
        said.push(format!("and {} more", tasks.len() - NAMED));
    }
    said.extend(exposed.get("unknown").map(|why| format!("unknown, {}", word(why))));
    if said.is_empty() { None } else { Some(format!("exposed: {}", said.join(", "))) }
}

pub(super) fn time(event: &Map<String, Value>) -> String {
    let seconds = event.get("timestamp").and_then(Value::as_f64).unwrap_or_default();
    let at = SignedDuration::try_from_secs_f64(seconds).ok().and_then(|since| Timestamp::from_duration(since).ok());
    at.map_or_else(|| "?".to_owned(), |at| format!("{at:.3}"))
}

/// A field's text, fit for a terminal.
pub(super) fn text(object: &Map<String, Value>, name: &str) -> String {
    object.get(name).map(word).unwrap_or_default()
}

/// A value as one word or sentence. Control characters are shown and not obeyed: what a check printed is in here, and
/// whoever can publish on the exchange can put anything in here.
pub(super) fn word(value: &Value) -> String {
    let text = match value {
        Value::Null => return "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    };
    let shown = |char: char| if char.is_control() { char.escape_default().to_string() } else { char.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(json: &str) -> String {
        line(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn a_quarantine_is_told_on_one_line() {
        let told = line_of(
            r#"{"type":"worker-quarantined","hostname":"codex-0@host-1","timestamp":1795341600.25,
            "admission":"quarantined","edge":"shut","latency_ms":3.14159,
            "reason":{"code":"profile_drifted","detail":"approval_policy is \"on-request\"","remedy":"worker-gate profile apply"},
            "account":{"before":12,"moved":10,"left":0,"taken":2},
            "exposed":{"tasks":[{"id":"7f","name":"app.build","active":true}]}}"#,
        );
        let expected = "2026-11-22T10:00:00.250Z  worker-quarantined      codex-0@host-1  quarantined/shut  in 3.1 ms  \
            12 waiting: 10 moved, 0 left, 2 taken  exposed: app.build 7f  profile_drifted: approval_policy is \
            \"on-request\"  -> worker-gate profile apply";
        assert_eq!(told, expected);
    }

    #[test]
    fn what_a_check_printed_cannot_move_the_terminals_cursor() {
        let told = line_of(r#"{"type":"x","reason":{"code":"check_failed","detail":"a\u001b[2Jb\nc\u009b"}}"#);
        assert!(told.ends_with("check_failed: a\\u{1b}[2Jb\\nc\\u{9b}"), "{told:?}");
    }

    #[test]
    fn a_foreign_object_is_still_one_line() {
        assert_eq!(line_of("{}"), "1970-01-01T00:00:00.000Z                          ");
        assert_eq!(line_of(r#"{"timestamp":1e300}"#).split_whitespace().next(), Some("?"));
    }
}
