//! Events as people tell each other, for the incoming webhooks of Slack, Mattermost and Google Chat, which all take
//! `{"text": "..."}` and understand backquotes.

use serde_json::json;

use super::{Event, headline};
use crate::cli::events::{field, reason};

/// A sentence or two; `None` for what would only fill the room.
pub(super) fn body(event: &Event) -> Option<String> {
    if matches!(field(event, "type"), "worker-health-check" | "gate-heartbeat") {
        return None;
    }
    let mut said = capital(&headline(event));
    let (code, detail, remedy) = (reason(event, "code"), reason(event, "detail"), reason(event, "remedy"));
    if !detail.is_empty() {
        said = format!("{said}: {detail}");
    }
    let (gate, worker) = (field(event, "gate"), field(event, "worker_name"));
    let from = if worker.is_empty() || gate.is_empty() { String::new() } else { format!("gate {gate}") };
    let more: Vec<&str> = [code, &from].into_iter().filter(|part| !part.is_empty()).collect();
    if !more.is_empty() {
        said = format!("{said} ({})", more.join(", "));
    }
    said = format!("{}.", harmless(&said));
    if !remedy.is_empty() {
        said = format!("{said} What to do: `{}`", harmless(remedy).replace('`', "'"));
    }
    Some(json!({"text": said}).to_string())
}

fn capital(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Text in which nothing calls anybody and nothing is a link: in a detail is what a check printed. All three take a name between
/// `<` and `>` for a call, and Mattermost one behind an `@`, if no name ends before it, as that of a worker does.
fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    let mut in_name = false;
    for char in text.chars() {
        match char {
            '<' => harmless.push('‹'),
            '>' => harmless.push('›'),
            '@' if !in_name => harmless.push_str("@\u{200b}"),
            _ if char.is_control() => harmless.push(' '),
            _ => harmless.push(char),
        }
        in_name = char.is_alphanumeric();
    }
    harmless
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn text(event: &Value) -> Option<String> {
        let body: Value = serde_json::from_str(&body(event.as_object().unwrap())?).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 1);
        Some(body["text"].as_str().unwrap().to_owned())
    }

    #[test]
    fn a_quarantine_is_told_with_its_cause_and_what_to_do() {
        let event = json!({
            "type": "worker-quarantined", "worker_name": "codex-0@host-1", "gate": "host-1",
            "reason": {"code": "profile_drifted", "detail": "approval_policy is \"on-request\"", "remedy": "worker-gate profile apply"},
        });
        let expected = "Worker codex-0@host-1 is quarantined: approval_policy is \"on-request\" (profile_drifted, gate host-1). \
                        What to do: `worker-gate profile apply`";
        assert_eq!(text(&event).unwrap(), expected);
    }

    #[test]
    fn what_has_no_reason_is_one_sentence() {
        assert_eq!(text(&json!({"type": "gate-offline", "gate": "g"})).unwrap(), "Gate g has stopped.");
        assert_eq!(text(&json!({"type": "x-y", "hostname": "h"})).unwrap(), "X-y of h.");
        for routine in ["worker-health-check", "gate-heartbeat"] {
            assert_eq!(text(&json!({"type": routine})), None);
        }
    }

    #[test]
    fn what_a_check_printed_calls_nobody() {
        let event = json!({
            "type": "worker-held", "worker_name": "a@b", "gate": "g",
            "reason": {"code": "x", "detail": "<!channel> @all,\n@here", "remedy": "`rm` <https://x|here>"},
        });
        let expected = "Worker a@b is held: ‹!channel› @\u{200b}all, @\u{200b}here (x, gate g). \
                        What to do: `'rm' ‹https://x|here›`";
        assert_eq!(text(&event).unwrap(), expected);
    }
}
