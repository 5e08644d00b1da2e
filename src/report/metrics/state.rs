//! What is, as gauges: made from the newest snapshot for one answer.

use std::{collections::BTreeMap, fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue},
    metrics::MetricType,
    registry::Unit,
};

use super::label::{Labels, Value};
use crate::{
    model::{Admission, Code, Edge, Mono, WorkerName},
    report::http::{Snapshot, WorkerView},
};

const ADMISSIONS: [Admission; 3] = [Admission::Held, Admission::Admitted, Admission::Quarantined];

/// The state of the gate and of its workers at one instant.
#[derive(Debug)]
pub(super) struct State {
    gate: Value,
    healthy: bool,
    workers: Vec<Worker>,
    /// By intake.
    suspects: BTreeMap<String, i64>,
}

#[derive(Debug)]
struct Worker {
    name: Value,
    admission: Option<Admission>,
    open: bool,
    code: Option<Code>,
    /// Since when everything is proven; `None` if it is not.
    evidence_age: Option<Duration>,
    /// `None` if it has not been counted lately.
    waiting: Option<u64>,
}

impl State {
    pub(super) fn new(
        gate: &Value,
        snapshot: &Snapshot,
        max_age: Duration,
        waiting: Option<&BTreeMap<WorkerName, u64>>,
        now: Mono,
    ) -> Self {
        let worker = |view: &WorkerView| {
            let record = &view.record;
            Worker {
                name: (&record.worker_name).into(),
                admission: record.admission,
                open: record.edge == Some(Edge::Open),
                code: record.reason.as_ref().map(|reason| reason.code),
                evidence_age: view.fresh_until.map(|until| now.since(Mono(until.0.saturating_sub(max_age)))),
                waiting: waiting.and_then(|waiting| waiting.get(&record.worker_name).copied()),
            }
        };
        Self {
            gate: gate.clone(),
            healthy: snapshot.problems(now).is_empty(),
            workers: snapshot.workers.iter().map(worker).collect(),
            suspects: suspects(&snapshot.workers),
        }
    }

    /// One gauge for each worker that has this value.
    fn each<V: EncodeGaugeValue>(
        &self,
        to: &mut DescriptorEncoder<'_>,
        (name, help, unit): (&str, &str, Option<&Unit>),
        value: impl Fn(&Worker) -> Option<V>,
    ) -> fmt::Result {
        let mut gauge = to.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for worker in &self.workers {
            if let Some(value) = value(worker) {
                gauge.encode_family(&worker.labels())?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

/// How many workers of each intake a check would have taken out, had it not failed on too many others.
fn suspects(workers: &[WorkerView]) -> BTreeMap<String, i64> {
    let mut suspects = BTreeMap::new();
    for record in workers.iter().map(|view| &view.record) {
        let Some(intake) = &record.intake else { continue };
        let is_suspect = record.reason.as_ref().is_some_and(|reason| reason.code == Code::FleetSuspect);
        *suspects.entry(intake.clone()).or_default() += i64::from(is_suspect);
    }
    suspects
}

impl Worker {
    fn labels(&self) -> Labels<1> {
        [("worker", self.name.clone())]
    }

    fn labels_with(&self, name: &'static str, value: Value) -> Labels<2> {
        [("worker", self.name.clone()), (name, value)]
    }
}

impl Collector for State {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let about = "Which gate this is, and its version; always 1.";
        let mut info = to.encode_descriptor("build_info", about, None, MetricType::Gauge)?;
        let labels: Labels<2> = [("gate", self.gate.clone()), ("version", env!("CARGO_PKG_VERSION").into())];
        info.encode_family(&labels)?.encode_gauge(&1i64)?;

        let about = "Whether /healthz would answer 200: link, check loop and audit log work.";
        let mut healthy = to.encode_descriptor("healthy", about, None, MetricType::Gauge)?;
        healthy.encode_gauge(&i64::from(self.healthy))?;

        let about = "1 for the admission that the worker has, 0 for the others.";
        let mut admission = to.encode_descriptor("worker_admission", about, None, MetricType::Gauge)?;
        for worker in &self.workers {
            for one in ADMISSIONS {
                let labels = worker.labels_with("admission", Value::word(one));
                admission.encode_family(&labels)?.encode_gauge(&i64::from(worker.admission == Some(one)))?;
            }
        }

        let about = "The code of the reason for the worker's admission; always 1.";
        let mut reason = to.encode_descriptor("worker_reason", about, None, MetricType::Gauge)?;
        for worker in &self.workers {
            if let Some(code) = worker.code {
                reason.encode_family(&worker.labels_with("code", Value::word(code)))?.encode_gauge(&1i64)?;
            }
        }

        let about = "Workers that stay admitted although a check fails on them, because it fails on too many of the intake's \
                     (fleet.max_quarantined).";
        let mut suspect = to.encode_descriptor("fleet_suspect", about, None, MetricType::Gauge)?;
        for (intake, workers) in &self.suspects {
            let labels: Labels<1> = [("intake", intake.as_str().into())];
            suspect.encode_family(&labels)?.encode_gauge(workers)?;
        }

        let about = "Whether the broker has confirmed that the worker's edge is open.";
        self.each(&mut to, ("worker_edge_open", about, None), |worker| Some(i64::from(worker.open)))?;
        let about = "Seconds since all that the admission rests on was last proven; absent while it is not.";
        self.each(&mut to, ("evidence_age", about, Some(&Unit::Seconds)), |worker| {
            worker.evidence_age.map(|age| age.as_secs_f64())
        })?;
        let about = "Messages that wait for the worker where it does not get them; workers with a shared queue show the same \
                     ones. As counted after the scrape before this one; absent where that is not known.";
        self.each(&mut to, ("messages_waiting", about, None), |worker| {
            worker.waiting.map(|waiting| i64::try_from(waiting).unwrap_or(i64::MAX))
        })
    }
}
