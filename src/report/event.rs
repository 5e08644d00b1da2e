//! Facts as events: one flat JSON object each, in the shape of a Celery event (DESIGN.md section 7).

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::model::{Fact, FactKind};

/// The version of the event's shape; goes up when a field changes its meaning or goes away, not when one is added.
pub const SCHEMA: u32 = 1;

/// One event, ready to be written and published.
///
/// Celery's receiver reads it as it is; for Celery's state see [`Event::for_celery`].
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    fields: Map<String, Value>,
}

impl Event {
    /// The fields, in the order of DESIGN.md section 7.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Adds a field at the end; the audit log's answer is the only thing that is known later than the rest.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }

    /// `type`, as in `worker-admitted`.
    pub fn kind(&self) -> &str {
        self.text("type")
    }

    /// Celery's node name of the worker, or `worker-gate@<gate>` for what concerns the gate alone.
    pub fn hostname(&self) -> &str {
        self.text("hostname")
    }

    /// Which gate's it is.
    pub fn gate(&self) -> &str {
        self.text("gate")
    }

    /// The JSON object as Celery's state can take it (celery/events/state.py, `Worker.event`), which sets every field on its
    /// `Worker` object: without `id`, which cannot be set there, and `pid`, which would pass for the worker's. `None` for health
    /// checks: the state counts each event as a sign of the worker's life, and they come again and again without it.
    pub fn for_celery(&self) -> Option<String> {
        if self.kind() == type_of(FactKind::WorkerHealthCheck) {
            return None;
        }
        let mut fields = self.fields.clone();
        fields.retain(|name, _| !matches!(name.as_str(), "id" | "pid"));
        Some(Value::from(fields).to_string())
    }

    /// Whether it is of those by which a gate says that it lives: it comes, it is here, it goes.
    pub fn is_about_gate(&self) -> bool {
        matches!(self.kind(), "gate-online" | "gate-heartbeat" | "gate-offline")
    }

    /// The event's place in the gate's sequence.
    pub fn seq(&self) -> u64 {
        self.fields.get("seq").and_then(Value::as_u64).unwrap_or_default()
    }

    /// The key that Celery's dispatcher would use: the type with dots (celery/events/dispatcher.py, `publish`).
    pub fn routing_key(&self) -> String {
        self.kind().replace('-', ".")
    }

    /// The JSON object on one line, without a line end.
    pub fn to_json(&self) -> String {
        Value::from(self.fields.clone()).to_string()
    }

    fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Turns facts into events and counts them.
#[derive(Debug)]
pub struct Stamper {
    gate: String,
    pid: u32,
    zone: TimeZone,
    last: u64,
}

impl Stamper {
    /// Stamps for the gate of this name, in this process and the system's time zone.
    pub fn new(gate: &str) -> Self {
        Self { gate: gate.to_owned(), pid: std::process::id(), zone: TimeZone::system(), last: 0 }
    }

    /// Goes on after `seq` if that is further than the count so far: the sequence has no holes over a restart.
    pub fn resume_after(&mut self, seq: u64) {
        self.last = self.last.max(seq);
    }

    /// Leaves a hole of `facts`, so that subscribers and the audit log show that this many were lost.
    pub fn skip(&mut self, facts: u64) {
        self.last = self.last.saturating_add(facts);
    }

    /// The event for a fact.
    ///
    /// `clock` is the Lamport clock that Celery's receiver adjusts its own by. A gate hears nothing from others that
    /// it would have to be later than, so its own count is a valid one, and it keeps rising over a restart.
    pub fn stamp(&mut self, fact: &Fact) -> Event {
        self.last = self.last.saturating_add(1);
        let hostname = match &fact.record {
            Some(record) => record.worker_name.to_string(),
            None => format!("worker-gate@{}", self.gate),
        };
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("type", plain(fact.kind));
        set("hostname", hostname.into());
        set("timestamp", fact.at.as_duration().as_secs_f64().into());
        set("utcoffset", hours_west(&self.zone, fact.at).into());
        set("pid", self.pid.into());
        set("clock", self.last.into());
        set("id", Uuid::now_v7().to_string().into());
        set("seq", self.last.into());
        set("schema", SCHEMA.into());
        set("gate", self.gate.as_str().into());
        if let Some(record) = &fact.record
            && let Value::Object(record) = plain(record)
        {
            fields.extend(record);
        }
        if let Some(digest) = &fact.digest {
            fields.insert("digest".to_owned(), plain(digest));
        }
        if let Some(reason) = &fact.reason {
            fields.insert("reason".to_owned(), plain(reason));
        }
        Event { fields }
    }
}

/// `utcoffset` as Celery means it: hours **west** of UTC, so Berlin in winter is -1 and India -5.5
/// (celery/utils/time.py, `utcoffset`, which divides `time.timezone`).
fn hours_west(zone: &TimeZone, at: Timestamp) -> f64 {
    let east = f64::from(zone.to_offset(at).seconds()) / 3600.0;
    // Zero as it is: `-0.0` would be written as such.
    if east == 0.0 { 0.0 } else { -east }
}

/// The names of the model's types as JSON. What is derived there (strings, numbers, maps with string keys) cannot fail
/// to be written; were it ever to, an empty field is better than a gate that stops.
fn plain(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// The `type` of a kind of fact, for logs.
pub(crate) fn type_of(kind: FactKind) -> String {
    plain(kind).as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Admission, CheckStatus, Code, Edge, Reason, Record, WorkerName};

    pub(crate) fn record(worker: &str) -> Record {
        Record {
            worker_name: WorkerName::new(worker),
            codex_cli_status: CheckStatus::Passed,
            spec_kit_status: CheckStatus::Skipped,
            config_hash: Some("c0".into()),
            policy_hash: None,
            last_checked_at: Some("2026-11-22T10:00:00Z".parse().unwrap()),
            failure_message: None,
            checks: BTreeMap::new(),
            admission: Some(Admission::Admitted),
            edge: Some(Edge::Open),
            reason: Some(Reason::new(Code::Fit, "every required check passed", "")),
            changed_at: None,
            hold: None,
            command: None,
            intake: None,
            account: None,
            exposed: None,
            broker_blocked: false,
            moving: None,
            seen_at: None,
            proven_at: None,
            latency_ms: None,
            readmission: None,
            version_change: None,
            changed_settings: None,
            profile: None,
            image: None,
        }
    }

    pub(crate) fn fact(kind: FactKind, worker: Option<&str>, audited: bool) -> Fact {
        Fact {
            kind,
            at: "2026-11-22T10:00:00.25Z".parse().unwrap(),
            record: worker.map(record),
            reason: None,
            digest: None,
            audited,
        }
    }

    #[test]
    fn celerys_state_is_told_what_it_can_take_and_no_health_checks() {
        let mut stamper = Stamper::new("host-1");
        let event = stamper.stamp(&fact(FactKind::WorkerQuarantined, Some("codex-0@host-1"), true));
        let told: Map<String, Value> = serde_json::from_str(&event.for_celery().unwrap()).unwrap();
        let kept = event.fields().iter().filter(|(name, _)| !matches!(name.as_str(), "id" | "pid"));
        assert_eq!(told.iter().collect::<Vec<_>>(), kept.collect::<Vec<_>>());
        assert_eq!(told.len(), event.fields().len() - 2);
        let check = stamper.stamp(&fact(FactKind::WorkerHealthCheck, Some("codex-0@host-1"), true));
        assert_eq!(check.for_celery(), None);
    }

    #[test]
    fn an_event_has_the_fields_of_the_contract_in_its_order() {
        let mut stamper = Stamper::new("host-1");
        let event = stamper.stamp(&fact(FactKind::WorkerAdmitted, Some("codex-0@host-1"), true));
        let names: Vec<_> = event.fields().keys().map(String::as_str).collect();
        assert_eq!(
            names[..13],
            [
                "type",
                "hostname",
                "timestamp",
                "utcoffset",
                "pid",
                "clock",
                "id",
                "seq",
                "schema",
                "gate",
                "worker_name",
                "codex_cli_status",
                "spec_kit_status"
            ]
        );
        assert_eq!(event.kind(), "worker-admitted");
        assert_eq!(event.routing_key(), "worker.admitted");
        assert_eq!(event.hostname(), "codex-0@host-1");
        assert_eq!(event.fields()["timestamp"], 1_795_341_600.25);
        assert_eq!(event.fields()["admission"], "admitted");
        assert_eq!(event.fields()["reason"]["code"], "fit");
    }

    #[test]
    fn what_concerns_the_gate_alone_comes_from_the_gates_own_node_name() {
        let event = Stamper::new("host-1").stamp(&fact(FactKind::GateOnline, None, true));
        assert_eq!(event.hostname(), "worker-gate@host-1");
        assert!(!event.fields().contains_key("worker_name"));
    }

    #[test]
    fn the_sequence_counts_every_event_and_shows_what_was_lost_as_a_hole() {
        let mut stamper = Stamper::new("g");
        stamper.resume_after(41);
        let mut next = || stamper.stamp(&fact(FactKind::GateHeartbeat, None, false)).seq();
        assert_eq!([next(), next()], [42, 43]);
        stamper.skip(3);
        assert_eq!(stamper.stamp(&fact(FactKind::GateHeartbeat, None, false)).seq(), 47);
        stamper.resume_after(5);
        assert_eq!(stamper.stamp(&fact(FactKind::GateHeartbeat, None, false)).seq(), 48);
    }

    #[test]
    fn the_offset_is_in_hours_west_of_utc_as_celery_has_it() {
        let at = "2026-01-15T00:00:00Z".parse().unwrap();
        let west = |zone: &str| hours_west(&TimeZone::posix(zone).unwrap(), at);
        assert_eq!(west("CET-1CEST,M3.5.0,M10.5.0/3").to_string(), "-1");
        assert_eq!(west("IST-5:30").to_string(), "-5.5");
        assert_eq!(west("EST5").to_string(), "5");
        assert_eq!(west("UTC0").to_string(), "0");
    }
}
