//! The health record of DESIGN.md section 7 (DATA_MODEL.md, `WorkerToolingHealthCheck`) and the facts that carry it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Account, Admission, CheckStatus, Code, Command, Edge, Hold, Outcome, ProfileReport, Reason, WorkerName};

/// What happened; the event's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FactKind {
    /// Checks have run; nothing changed by that.
    WorkerHealthCheck,
    /// Not proven: the gate has just got the worker, or has just lost its link.
    WorkerHeld,
    /// Proven, and the edge is open.
    WorkerAdmitted,
    /// The proof failed, aged or changed, or an operator holds the worker, and the edge is shut.
    WorkerQuarantined,
    /// The profile is managed, for the first time or again, or its other keys changed.
    WorkerConfigManaged,
    /// The profile is drifted or missing.
    WorkerConfigDrifted,
    /// A tool's version is another than before.
    WorkerVersionChanged,
    /// Messages reached the lane past the shut edge and were taken back.
    WorkerBypass,
    /// A quarantined worker was asked to start anew (`on_quarantine = "recycle"`); what became of it.
    WorkerRecycled,
    /// An operator asked for something, or a hold has ended by itself; the record's `command` says what became of it.
    WorkerCommand,
    /// A required check fails and the worker stays admitted, because it fails on too much of the fleet.
    FleetSuspect,
    /// The gate has started.
    GateOnline,
    /// The gate is alive.
    GateHeartbeat,
    /// The gate stops in good order.
    GateOffline,
    /// Settings were read again, and hold from now on.
    GateSettingsLoaded,
    /// Settings were read again and cannot hold; those from before do.
    GateSettingsRefused,
    /// A command came that the gate does not act on, because of who sent it or what it says.
    GateCommandRefused,
}

/// One thing that happened. `record` is absent for what concerns the gate alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// The event's `type`.
    pub kind: FactKind,
    /// When it happened.
    pub at: Timestamp,
    /// The worker's state after it.
    pub record: Option<Record>,
    /// Why, for what concerns the gate alone; a worker's record has its own.
    pub reason: Option<Reason>,
    /// How all workers of the gate are, for what says that it lives.
    pub digest: Option<Digest>,
    /// For the audit log: `false` for what only repeats what is already written there.
    pub audited: bool,
}

/// All workers of a gate in short, as its heartbeats tell them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Digest {
    /// How many are admitted.
    pub admitted: usize,
    /// How many are held.
    pub held: usize,
    /// How many are quarantined.
    pub quarantined: usize,
    /// Each of them.
    pub workers: Vec<Brief>,
}

/// One worker in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Brief {
    /// Celery's node name.
    pub worker_name: WorkerName,
    /// Whether it may have work.
    pub admission: Admission,
    /// As the broker last confirmed it.
    pub edge: Edge,
    /// Why, in one word for programs.
    pub code: Code,
}

/// One worker, as subscribers, the audit log, `/workers` and `--json` see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Celery's node name.
    pub worker_name: WorkerName,
    /// The status of the check named `codex_cli`; `skipped` if there is none.
    pub codex_cli_status: CheckStatus,
    /// The status of the check named `spec_kit`; `skipped` if there is none.
    pub spec_kit_status: CheckStatus,
    /// sha256 of the resolved profile file, hex.
    pub config_hash: Option<String>,
    /// sha256 over the enforced keys' effective values, hex.
    pub policy_hash: Option<String>,
    /// When the newest result came in; null only before the first one.
    pub last_checked_at: Option<Timestamp>,
    /// Every failing check and the profile's problem, one sentence each; null when nothing failed.
    pub failure_message: Option<String>,
    /// Every configured check by its name.
    pub checks: BTreeMap<String, CheckRecord>,
    /// Absent in the one-shot `check`, which owns no worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admission: Option<Admission>,
    /// As the broker last confirmed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge: Option<Edge>,
    /// Why admission and edge are so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Since when admission is what it is, as far as this run of the gate knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
    /// An operator's hold. Its end admits nobody for whom something else is wrong, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// For an operator's order: what was asked, and what became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// Where its messages come from, for people: `exchange NAME` or `queue NAME`. Workers with the same text share an intake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intake: Option<String>,
    /// For an open or a shut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// For an open or a shut: the broker took no messages at that time, as in a memory or disk alarm, so that what is left
    /// was moved after it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub broker_blocked: bool,
    /// While much is still being moved: how far that has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moving: Option<Account>,
    /// For a quarantine: what the worker already had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed: Option<Exposed>,
    /// For a quarantine: when its cause was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Timestamp>,
    /// For a quarantine: until when everything was proven; what ran since then may have run on what was not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven_at: Option<Timestamp>,
    /// From the moment the change was seen to the broker's confirmation of the edge, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// For a quarantined worker that has been quarantined repeatedly: when it may be admitted again at the earliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readmission: Option<Readmission>,
    /// For a changed version: of which check, from what to what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_change: Option<VersionChange>,
    /// For a managed config of which other keys than the enforced ones have changed: their dotted names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_settings: Option<Vec<String>>,
    /// The managed config; null when none is configured or it was not looked at yet.
    pub profile: Option<ProfileReport>,
    /// The image manifest; null when none is there.
    pub image: Option<Image>,
}

/// One check inside a record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckRecord {
    /// Passed, failed, or skipped if it has not run yet.
    pub status: CheckStatus,
    /// Whether admission depends on it.
    pub required: bool,
    /// How its deciding command ended.
    pub outcome: Option<Outcome>,
    /// How long it took, in milliseconds.
    pub duration_ms: Option<f64>,
    /// The version that was read from its output.
    pub version: Option<String>,
    /// sha256, in hex, over the files that decide what its commands run.
    pub fingerprint: Option<String>,
    /// What went wrong; secrets removed.
    pub message: Option<String>,
    /// When it ran.
    pub checked_at: Option<Timestamp>,
}

/// What a worker had already prefetched or started when its edge was shut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Exposed {
    /// What the worker has said that it has, and what its task events say; `None` if neither says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Vec<ExposedTask>>,
    /// Why the worker itself has not said what it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// Why tasks that had ended by then are not named, or not all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_unknown: Option<String>,
}

/// One task that a drifted worker has, or had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExposedTask {
    /// Celery's task id.
    pub id: String,
    /// The task's name.
    pub name: String,
    /// Whether it was already running (`active`). If not, it was only prefetched (`reserved`), or has ended.
    pub active: bool,
    /// When it was started, by the worker's clock; null for one that was only prefetched.
    pub started_at: Option<Timestamp>,
    /// When it had ended, by the worker's clock; null for one that has not, as far as is known.
    pub ended_at: Option<Timestamp>,
    /// Since when it is in doubt.
    pub since: Since,
}

impl ExposedTask {
    /// The last moment of which it is known that the task ran; `None` for one that runs, or waits to.
    pub fn over_at(&self) -> Option<Timestamp> {
        self.ended_at.or(self.started_at).filter(|_| !self.active)
    }
}

/// When a task was started, as far as that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Since {
    /// After the cause of the quarantine was seen, or not yet.
    Drift,
    /// Before that, but after the last moment for which everything was proven.
    Evidence,
    /// Before even that; it was still running when the cause was seen.
    Before,
}

/// How long a worker that was quarantined repeatedly waits, however fit it is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Readmission {
    /// Quarantines in a row, each soon after an admission.
    pub quarantines: u32,
    /// The wait that follows from their number, in milliseconds.
    pub wait_ms: f64,
    /// When it ends.
    pub at: Timestamp,
}

/// A tool as it was before a change and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VersionChange {
    /// The check's name in the settings.
    pub check: String,
    /// What the last result was about.
    pub old: Tool,
    /// What this one is about.
    pub new: Tool,
}

/// What a check has found a tool to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tool {
    /// As read from its output; null if it said none.
    pub version: Option<String>,
    /// sha256, in hex, over the files that decide what its commands run.
    pub fingerprint: Option<String>,
}

/// The image manifest's part in a record (DATA_MODEL.md, `RuntimeImageToolchain`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// sha256 of the manifest, hex.
    pub manifest_hash: String,
    /// `built` or `verified`.
    pub state: ImageState,
    /// The tag of the image below.
    pub base_image: Option<String>,
    /// Node.js.
    pub node_version: Option<String>,
    /// What the check named `codex_cli` must find.
    pub codex_cli_version: Option<String>,
    /// What the check named `spec_kit` must find.
    pub spec_kit_version: Option<String>,
}

/// How far an image has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageState {
    /// Its manifest was recorded.
    Built,
    /// Its manifest was verified.
    Verified,
}
