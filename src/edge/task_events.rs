//! Tasks that had ended on a worker before anybody could ask it. Remote control names only what it has at the moment; Celery's task
//! events, where they are on (`celery worker -E`), tell of each task that it was started and that it ended.
//!
//! They are kept for a while and read only when somebody asks, by the broker where it can, because a worker sends two of them for each task.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::model::{Exposed, ExposedTask, Since};

/// Events are kept for so long. Evidence is younger, unless somebody has set `evidence.max_age` to more.
pub(super) const KEPT: Duration = Duration::from_secs(600);
/// So many messages of each worker are kept; the oldest go first. A busy worker puts up to 24 events into one
/// (celery/events/dispatcher.py, `buffer_limit`).
pub(super) const MESSAGES: usize = 2048;
/// And so many bytes.
pub(super) const BYTES: usize = 8 << 20;

/// Why nothing is told of tasks that had ended, where nobody has asked for it.
pub(super) const OFF: &str = "the setting workers.task_events is off";

/// What was kept of one worker's events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The messages' bodies: one event each, or a list of them.
    pub(super) messages: Vec<Vec<u8>>,
    /// From before then some may be missing, because nobody could hear them.
    pub(super) deaf_until: Option<Timestamp>,
}

impl Kept {
    /// Whether older ones may have gone, because more came than are kept.
    fn is_full(&self) -> bool {
        let bytes: usize = self.messages.iter().map(Vec::len).sum();
        // The oldest one goes when the next one does not fit, and no message is longer than that.
        self.messages.len() >= MESSAGES || bytes >= BYTES - (1 << 20)
    }
}

#[derive(Debug, Default)]
struct Told {
    name: String,
    started_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    /// The first time that anything was said of it.
    at: Option<Timestamp>,
}

/// Adds what the events of this node tell. `were_on` is the worker's own word on whether it has sent any.
pub(super) fn add(exposed: &mut Exposed, node: &str, kept: Result<&Kept, &str>, were_on: Option<bool>) {
    let kept = match kept {
        Ok(kept) => kept,
        Err(why) => {
            exposed.ended_unknown = Some(format!("the worker's task events were not kept: {why}"));
            return;
        }
    };
    let told = told(kept, node);
    let oldest = told.values().filter_map(|told| told.at).min();
    let has_answered = exposed.tasks.is_some();
    if told.is_empty() && !has_answered {
        exposed.ended_unknown = Some("no task event of the worker's has come".to_owned());
        return;
    }
    let tasks = exposed.tasks.get_or_insert_default();
    let named: BTreeSet<_> = tasks.iter().map(|task| task.id.clone()).collect();
    for (id, told) in told {
        let Some(started_at) = told.started_at.or(told.ended_at).filter(|_| !named.contains(&id)) else { continue };
        let Told { name, ended_at, .. } = told;
        // A worker that answers and does not name it does not have it any more.
        let active = ended_at.is_none() && !has_answered;
        tasks.push(ExposedTask { id, name, active, started_at: Some(started_at), ended_at, since: Since::Drift });
    }
    if were_on == Some(false) {
        exposed.ended_unknown =
            Some("the worker has sent no task events until now: start it with -E (celery worker -E)".to_owned());
    } else if let Some(deaf_until) = kept.deaf_until {
        exposed.ended_unknown =
            Some(format!("some task events from before {deaf_until} may be missing: the connection for them was lost"));
    } else if kept.is_full() {
        let oldest = oldest.map_or_else(String::new, |oldest| format!("; the oldest one kept is of {oldest}"));
        exposed.ended_unknown = Some(format!("more task events came than are kept{oldest}"));
    }
}

/// What is told of each task, by its id.
fn told(kept: &Kept, node: &str) -> BTreeMap<String, Told> {
    let mut tasks = BTreeMap::<String, Told>::new();
    for message in &kept.messages {
        let events = match serde_json::from_slice(message) {
            Ok(Value::Array(events)) => events,
            Ok(event) => vec![event],
            Err(_) => continue,
        };
        for event in events.iter().filter(|event| event["hostname"].as_str() == Some(node)) {
            let (Some(kind), Some(id)) = (event["type"].as_str(), event["uuid"].as_str()) else { continue };
            let at = event["timestamp"].as_f64().and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok());
            let Some(at) = at.and_then(|since| Timestamp::from_duration(since).ok()) else { continue };
            let task = tasks.entry(id.to_owned()).or_default();
            task.at = task.at.or(Some(at));
            if let Some(name) = event["name"].as_str() {
                name.clone_into(&mut task.name);
            }
            match kind {
                // Once more after a retry, or where the message came twice.
                "task-started" => (task.started_at, task.ended_at) = (task.started_at.or(Some(at)), None),
                "task-succeeded" | "task-failed" | "task-retried" | "task-rejected" => task.ended_at = Some(at),
                // One that was revoked before it was started has not run.
                "task-revoked" if task.started_at.is_some() => task.ended_at = Some(at),
                _ => {}
            }
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn event(kind: &str, id: &str, seconds: f64) -> Value {
        let mut event =
            json!({ "type": format!("task-{kind}"), "uuid": id, "hostname": "w@h", "timestamp": seconds, "pid": 7 });
        if kind == "received" {
            event["name"] = "app.build".into();
        }
        event
    }

    fn kept(messages: &[Value]) -> Kept {
        Kept { messages: messages.iter().map(|message| message.to_string().into_bytes()).collect(), deaf_until: None }
    }

    fn had(id: &str) -> ExposedTask {
        let (name, since) = ("app.build".to_owned(), Since::Drift);
        ExposedTask { id: id.to_owned(), name, active: true, started_at: Some(at(9)), ended_at: None, since }
    }

    #[test]
    fn what_has_ended_is_named_with_its_times_and_what_the_worker_has_said_stands() {
        let kept = kept(&[
            json!([event("received", "a", 1.0), event("started", "a", 2.0), event("received", "b", 2.0)]),
            event("succeeded", "a", 3.0),
            json!([event("started", "b", 4.0), event("received", "c", 4.0), event("revoked", "c", 5.0)]),
            json!("no event"),
        ]);
        let mut exposed = Exposed { tasks: Some(vec![had("b")]), ..Exposed::default() };
        add(&mut exposed, "w@h", Ok(&kept), Some(true));
        let ended = ExposedTask { active: false, started_at: Some(at(2)), ended_at: Some(at(3)), ..had("a") };
        assert_eq!(exposed, Exposed { tasks: Some(vec![had("b"), ended]), ..Exposed::default() });
    }

    #[test]
    fn of_a_worker_that_does_not_answer_events_tell_what_runs() {
        let kept = kept(&[event("received", "a", 1.0), event("started", "a", 9.0)]);
        let unknown = Some("silent".to_owned());
        let mut exposed = Exposed { unknown: unknown.clone(), ..Exposed::default() };
        add(&mut exposed, "w@h", Ok(&kept), None);
        assert_eq!(exposed, Exposed { tasks: Some(vec![had("a")]), unknown, ended_unknown: None });
    }

    #[test]
    fn another_workers_events_are_none_of_this_ones_business() {
        let kept = kept(&[event("received", "a", 1.0), event("started", "a", 9.0)]);
        let mut exposed = Exposed { tasks: Some(Vec::new()), ..Exposed::default() };
        add(&mut exposed, "v@h", Ok(&kept), Some(true));
        assert_eq!(exposed, Exposed { tasks: Some(Vec::new()), ..Exposed::default() });
    }

    #[test]
    fn what_cannot_be_named_is_said_with_its_cause() {
        let why = |kept: Result<&Kept, &str>, were_on, tasks| {
            let mut exposed = Exposed { tasks, ..Exposed::default() };
            add(&mut exposed, "w@h", kept, were_on);
            exposed.ended_unknown.unwrap_or_default()
        };
        assert!(why(Err("no leave"), None, None).ends_with("not kept: no leave"));
        assert!(why(Ok(&Kept::default()), None, None).contains("no task event"));
        assert!(why(Ok(&Kept::default()), Some(false), Some(Vec::new())).contains("-E"));
        assert_eq!(why(Ok(&Kept::default()), Some(true), Some(Vec::new())), "");
        let deaf = Kept { deaf_until: Some(at(9)), ..Kept::default() };
        assert!(
            why(Ok(&deaf), Some(true), Some(Vec::new())).contains("from before 1970-01-01T00:00:09Z may be missing")
        );
        let many = vec![event("started", "a", 9.0); MESSAGES];
        assert!(
            why(Ok(&kept(&many)), Some(true), Some(Vec::new()))
                .ends_with("the oldest one kept is of 1970-01-01T00:00:09Z")
        );
    }
}
