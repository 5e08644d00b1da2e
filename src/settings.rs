//! The settings, checked as a whole: what the rest of the program may rely on without asking again.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{model::WorkerName, secret::Secret};

pub mod broker_url;
pub(crate) mod duration;
mod layer;
pub mod load;
mod package;
mod path;
mod problem;
mod raw;
mod schema;
mod show;
mod sources;
#[cfg(test)]
mod tests;
mod validate;

pub use broker_url::BrokerUrl;
pub use load::{Loaded, Source, load, load_text, reach};
pub use package::Package;
pub use problem::{Place, Problem, Problems};
pub use show::ShownValue;

/// All settings of one gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// `[gate]`
    pub gate: Gate,
    /// `[broker]`
    pub broker: Broker,
    /// `[events]`
    pub events: Events,
    /// `[control]`
    pub control: Control,
    /// `[evidence]`
    pub evidence: Evidence,
    /// `[fleet]`
    pub fleet: Fleet,
    /// `[checks.NAME]`; never empty, and at least one is required.
    pub checks: BTreeMap<String, Check>,
    /// `[profile]`; `None` when `profile.path` is empty.
    pub profile: Option<Profile>,
    /// `[image]`
    pub image: Image,
    /// `[[workers]]`; never empty, and no two have one name, one lane, or one key on one intake.
    pub workers: Vec<Worker>,
}

/// What leads to the gates on a broker, and to what they tell: all that a command needs which has no worker of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Reach {
    /// `[broker]`
    pub broker: Broker,
    /// `[events]`
    pub events: Events,
    /// `[control]`
    pub control: Control,
}

/// The gate itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Default: the host's name.
    pub name: String,
    /// The audit log and its sequence, operators' holds, and when each profile was last mended.
    pub state_dir: PathBuf,
    /// Address of the HTTP listener; `None` turns it off.
    pub listen: Option<String>,
}

/// Where the broker is and how to speak with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// Alternatives, tried in turn; never empty, all of one transport.
    pub urls: Vec<BrokerUrl>,
    /// At least 1 s; AMQP counts in whole seconds.
    pub heartbeat: Duration,
    /// Redis: goes before every key.
    pub global_keyprefix: String,
    /// Redis: the priority lists, ascending, starting with 0.
    pub priority_steps: Vec<u8>,
    /// Redis behind sentinels: the name of the master.
    pub master_name: String,
    /// TLS for `amqps://` and `rediss://`.
    pub tls: Tls,
}

impl Broker {
    /// The number of the Redis database; 0 for RabbitMQ, which has none.
    pub fn database(&self) -> u32 {
        self.urls.first().and_then(BrokerUrl::as_redis).map_or(0, |url| url.db)
    }
}

/// Files for TLS; each may be absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tls {
    /// PEM with the authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM with the client's certificate chain; only together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM (PKCS#8) with the client's key.
    pub key_file: Option<PathBuf>,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    /// A durable fanout exchange.
    pub exchange: String,
    /// Also publish on Celery's own event exchange.
    pub mirror_celeryev: bool,
}

/// How long a proof holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Older than this is stale. Longer than [`Check::longest`] of every required check.
    pub max_age: Duration,
    /// The wait before the next admission, after the second quarantine in a row; zero turns it off.
    pub flap_wait: Duration,
    /// The longest such wait.
    pub flap_max: Duration,
}

/// What operators may ask of the gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// The file with the key that a request must be signed with; `None` if none is asked for.
    pub key_file: Option<PathBuf>,
}

/// What becomes of one worker because of the others that share its intake.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// How much of an intake's workers, in percent from 1 to 99, failing checks may quarantine within five minutes; `None`: all
    /// of them.
    pub max_quarantined: Option<u8>,
}

/// One check of tools.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Commands, run one after the other until one fails; none is empty, and none goes through a shell.
    pub run: Vec<Vec<String>>,
    /// Where a version is read, and which ones are allowed.
    pub version: Option<Version>,
    /// Whether admission depends on it.
    pub required: bool,
    /// From the start of one run to the start of the next.
    pub every: Duration,
    /// For each command.
    pub timeout: Duration,
    /// Consecutive failures before quarantine; at least 1.
    pub fail_after: u32,
    /// Consecutive passes before admission; at least 1.
    pub pass_after: u32,
}

impl Check {
    /// What may pass from one result to the next: `every`, and `timeout` for each command.
    pub fn longest(&self) -> Duration {
        let commands = u32::try_from(self.run.len()).unwrap_or(u32::MAX);
        self.every.saturating_add(self.timeout.saturating_mul(commands))
    }
}

/// A version rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    /// Index into `run`.
    pub command: usize,
    /// Comparators joined by commas, as in `>=0.1, <2`.
    pub require: semver::VersionReq,
}

/// The managed config.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// As written: `~/…`, where `~` is the worker user's home, or an absolute path below it.
    pub path: String,
    /// What a missing profile is made from.
    pub template: Option<PathBuf>,
    /// Dotted keys with the values they must have; never empty.
    pub enforce: Vec<Enforced>,
    /// What the gate does about drift.
    pub on_drift: OnDrift,
}

/// One enforced key.
#[derive(Debug, Clone, PartialEq)]
pub struct Enforced {
    /// The key's parts, outermost first.
    pub key: Vec<String>,
    /// A scalar or an array; tables have been taken apart into their keys.
    pub value: toml::Value,
}

/// What the gate does about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDrift {
    /// Say what to run.
    Report,
    /// Merge, check again, admit.
    Repair,
}

/// The image manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Where it is.
    pub manifest: PathBuf,
    /// Whether admission depends on it.
    pub required: bool,
    /// Tags of base images that may be built on; `*` and `?` stand for any letters.
    pub approved_base_images: Vec<String>,
    /// Where the versions of the check `codex_cli`'s tool are published.
    pub codex_cli_package: Package,
    /// The same for `spec_kit`.
    pub spec_kit_package: Package,
    /// Commands that an image must be able to run before it is verified; none is empty.
    pub smoke: Vec<Vec<String>>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Celery's node name.
    pub name: WorkerName,
    /// As whom its checks run.
    pub run_as: RunAs,
    /// The queue it consumes.
    pub lane: String,
    /// The way from the intake to the lane.
    pub edge: EdgeKind,
    /// For the lane, if the gate declares it first.
    pub queue_arguments: toml::Table,
    /// What happens to what the worker already has.
    pub on_quarantine: OnQuarantine,
    /// Whether its task events are kept for a while, so that tasks that have ended can be named.
    pub task_events: bool,
}

/// As whom checks run. Two workers with equal values share one identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunAs {
    /// `None`: the gate's own user.
    pub user: Option<String>,
    /// `None`: `$HOME` for the gate's own user, else the passwd entry.
    pub home: Option<PathBuf>,
    /// `None`: the gate's own PATH.
    pub path_env: Option<String>,
    /// More environment for the checks.
    pub env: BTreeMap<String, Secret>,
}

/// The way from the intake to the lane.
#[derive(Debug, Clone, PartialEq)]
pub enum EdgeKind {
    /// The broker routes; RabbitMQ only.
    Route(RouteIntake),
    /// The gate moves.
    Feed(Feed),
}

/// The intake of a route edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteIntake {
    /// Where producers publish.
    pub exchange: String,
    /// Its type.
    pub kind: IntakeType,
    /// Binding keys; for `x-consistent-hash` exactly one weight.
    pub keys: Vec<String>,
}

/// Exchange types that an intake may have. A fanout would give every worker a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntakeType {
    /// A message goes to the worker that has its key.
    Direct,
    /// A message goes to the worker whose pattern matches.
    Topic,
    /// A message goes to any fit worker, by weight.
    ConsistentHash,
}

impl IntakeType {
    /// The broker's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Topic => "topic",
            Self::ConsistentHash => "x-consistent-hash",
        }
    }
}

/// A feed edge.
#[derive(Debug, Clone, PartialEq)]
pub struct Feed {
    /// What producers publish to.
    pub intake: FeedIntake,
    /// How many messages may wait in the lane; at least 1.
    pub depth: u32,
    /// No consumer for so long: the lane goes back to the intake.
    pub offline_after: Duration,
}

/// The intake of a feed edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedIntake {
    /// A shared queue.
    Queue(String),
    /// Redis with producers that name an exchange.
    Exchange {
        /// Its name.
        exchange: String,
        /// Direct or topic.
        kind: IntakeType,
        /// The keys that producers use.
        keys: Vec<String>,
    },
}

/// What happens to what the worker already has when its edge is shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnQuarantine {
    /// It may finish it; the fact names it.
    Drain,
    /// It gets Celery's warm shutdown.
    Recycle,
}
