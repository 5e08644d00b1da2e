//! The merged settings as they are written, before values are checked against each other.
//!
//! Everything that the strict reading can leave out is optional here, so that one missing key does not hide the
//! problems of all others.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use super::duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) gate: Gate,
    pub(super) broker: Broker,
    pub(super) events: Events,
    pub(super) control: Control,
    pub(super) evidence: Evidence,
    pub(super) fleet: Fleet,
    #[serde(default)]
    pub(super) checks: BTreeMap<String, Check>,
    pub(super) profile: Profile,
    pub(super) image: Image,
    #[serde(default)]
    pub(super) workers: Vec<Worker>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gate {
    pub(super) name: String,
    pub(super) state_dir: String,
    pub(super) listen: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Broker {
    pub(super) url: String,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) heartbeat: Duration,
    pub(super) global_keyprefix: String,
    pub(super) priority_steps: Vec<u8>,
    pub(super) master_name: String,
    pub(super) ca_file: String,
    pub(super) cert_file: String,
    pub(super) key_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Events {
    pub(super) exchange: String,
    pub(super) mirror_celeryev: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Evidence {
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) max_age: Duration,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) flap_wait: Duration,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) flap_max: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Control {
    pub(super) key_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fleet {
    pub(super) max_quarantined: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    #[serde(default)]
    pub(super) run: Vec<Vec<String>>,
    pub(super) version: Option<Version>,
    pub(super) required: bool,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) every: Duration,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) timeout: Duration,
    pub(super) fail_after: u32,
    pub(super) pass_after: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    pub(super) command: usize,
    pub(super) require: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    pub(super) path: String,
    pub(super) template: String,
    #[serde(default)]
    pub(super) enforce: toml::Table,
    pub(super) on_drift: OnDrift,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnDrift {
    Report,
    Repair,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    pub(super) manifest: String,
    pub(super) required: bool,
    pub(super) approved_base_images: Vec<String>,
    pub(super) codex_cli_package: String,
    pub(super) spec_kit_package: String,
    pub(super) smoke: Vec<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Worker {
    pub(super) name: Option<String>,
    pub(super) run_as: String,
    pub(super) home: String,
    pub(super) path_env: String,
    pub(super) env: BTreeMap<String, String>,
    pub(super) edge: Edge,
    pub(super) lane: Option<String>,
    pub(super) intake: Option<Intake>,
    pub(super) depth: u32,
    #[serde(deserialize_with = "duration::deserialize")]
    pub(super) offline_after: Duration,
    pub(super) queue_arguments: toml::Table,
    pub(super) on_quarantine: OnQuarantine,
    pub(super) task_events: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Edge {
    Route,
    Feed,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnQuarantine {
    Drain,
    Recycle,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intake {
    pub(super) exchange: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<ExchangeType>,
    #[serde(default)]
    pub(super) keys: Vec<String>,
    pub(super) queue: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExchangeType {
    Direct,
    Topic,
    #[serde(rename = "x-consistent-hash")]
    ConsistentHash,
    Fanout,
}
