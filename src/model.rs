//! The words of worker-gate as types: what is known of a worker, and what is said about it.
//!
//! Nothing here reads a clock, a file or a socket. `verdict` imports only this module; what is serialized here is the
//! health record that subscribers, the audit log and `--json` output share, so a change of a name is a change of the
//! interface.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub mod order;
mod record;

pub use order::{Ask, By, Command, Hold, Order};
pub use record::{
    Brief, CheckRecord, Digest, Exposed, ExposedTask, Fact, FactKind, Image, ImageState, Readmission, Record, Since,
    Tool, VersionChange,
};

/// A Celery node name such as `codex-0@host-1`. Never empty; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct WorkerName(#[serde(serialize_with = "as_str")] Arc<str>);

impl<'de> Deserialize<'de> for WorkerName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self::new(&String::deserialize(from)?))
    }
}

fn as_str<S: Serializer>(name: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name)
}

impl WorkerName {
    /// The name as settings gave it; they have already refused an empty one.
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name as Celery writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Which set of checks is meant: workers with the same user, home, PATH and environment share one identity, and its
/// checks run once for all of them. The number is the index in the gate's list of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId(pub usize);

/// A point in time that no clock change moves: the time since the machine started, suspended time included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mono(pub Duration);

impl Mono {
    /// The time from `earlier` to this point; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Mono {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// Both clocks at one instant: `mono` decides, `wall` is only written down.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The clock that ages evidence.
    pub mono: Mono,
    /// The clock that people read.
    pub wall: Timestamp,
}

impl Now {
    /// What the clock on the wall showed at this earlier moment, if nobody has set it since.
    pub fn wall_of(self, earlier: Mono) -> Timestamp {
        let age = jiff::SignedDuration::try_from(self.mono.since(earlier)).unwrap_or_default();
        self.wall.checked_sub(age).unwrap_or(self.wall)
    }
}

/// What one check said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// The check ran and everything it asked for was so.
    Passed,
    /// The check ran, or could not run, and the worker cannot be vouched for.
    Failed,
    /// The check is not configured, or has not run yet.
    Skipped,
}

/// The way from the intake to the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Edge {
    /// Messages reach the lane.
    Open,
    /// Messages wait.
    Shut,
}

/// Whether a worker may have work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Not yet proven.
    Held,
    /// Proven, with fresh evidence, by the gate that owns the worker.
    Admitted,
    /// The proof failed, aged or changed, or an operator holds the worker.
    Quarantined,
}

/// Why admission or edge is what it is, what was seen, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable, for programs.
    pub code: Code,
    /// What was seen, for people; secrets removed.
    pub detail: String,
    /// What to do, for people; empty when nothing needs doing.
    pub remedy: String,
}

impl Reason {
    /// A reason from its three parts.
    pub fn new(code: Code, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), remedy: remedy.into() }
    }
}

/// The stable names of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The gate has just started, or just got this worker: nothing has been proven yet.
    Starting,
    /// Every required check passed, and the evidence is fresh.
    Fit,
    /// A required check failed as often as `fail_after` allows.
    CheckFailed,
    /// The managed config is not as the policy wants it.
    ProfileDrifted,
    /// The managed config does not exist.
    ProfileMissing,
    /// A file that a required check's tool is made of has changed, and the check has not passed since.
    ToolChanged,
    /// Settings were loaded again, and what they ask for now has not been proven yet.
    SettingsChanged,
    /// The image manifest is missing, cannot be read, or is not `verified`.
    ImageUnverified,
    /// The image manifest names other versions than the tools have.
    ImageMismatch,
    /// There is another image manifest than before, and nothing has been proven under it yet.
    ImageChanged,
    /// Proven again, but quarantined so often of late that it waits a while.
    Flapping,
    /// The evidence is older than `evidence.max_age`.
    EvidenceStale,
    /// Another gate owns this worker.
    OwnedElsewhere,
    /// The broker cannot be reached; it keeps the edge shut by itself.
    BrokerUnreachable,
    /// The broker refuses something that trying again will not mend.
    BrokerRefused,
    /// Messages came to the lane past the shut edge.
    Bypass,
    /// A quarantined worker was asked to start anew, and did.
    Recycled,
    /// A quarantined worker was asked to start anew, and did not, or not yet.
    NotRecycled,
    /// An operator holds the worker.
    OperatorHold,
    /// A required check fails on so much of the fleet that the check itself is in doubt; the worker stays admitted.
    FleetSuspect,
    /// An operator's command could not be believed or understood.
    CommandRefused,
    /// The gate is stopping.
    Stopping,
}

/// What a shut or an open did with the messages that were waiting. `before = moved + left + taken`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Account {
    /// Waiting when the move began: in the lane for a shut, in the holding queue for an open.
    pub before: u64,
    /// Moved by the gate and confirmed by the broker.
    pub moved: u64,
    /// Still waiting where they were.
    pub left: u64,
    /// Gone another way: taken by the worker (shut) or by another consumer (open).
    pub taken: u64,
}

/// What the edge is asked to be. The newest one counts; an edge that is already so says so again under the new number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Open or shut.
    pub edge: Edge,
    /// Whether a shut is a quarantine, which has consequences for what the worker already has.
    pub quarantine: bool,
    /// Counts the changes of one worker's admission, so that an answer can be told from an answer to an earlier one.
    pub change: u64,
    /// The ownership that the proof behind a wish to open was made in, as the edge told it; `None` while there was none.
    pub owned: Option<Mono>,
}

impl Wanted {
    /// What every edge is asked first.
    pub fn shut() -> Self {
        Self { edge: Edge::Shut, quarantine: false, change: 0, owned: None }
    }
}

/// What the edge tells: facts about the broker, and the only way back from an edge to the verdict.
#[derive(Debug, Clone, PartialEq)]
pub enum EdgeReport {
    /// The gate does not own this worker at the broker, which therefore keeps the edge shut; why.
    Down(Reason),
    /// The gate owns the worker since this moment, and the edge is shut.
    Owned(Mono),
    /// The broker confirmed the edge that was wanted, at this moment.
    Is(Wanted, Mono),
    /// What waited has been moved, or the time for that was up.
    Settled {
        /// The answer is to this.
        change: u64,
        /// What was moved.
        account: Account,
        /// For a shut: what the worker already had.
        exposed: Option<Exposed>,
        /// The broker takes no messages for now, so what is left cannot be moved.
        blocked: bool,
    },
    /// What waits is still being moved; `None` when it no longer is.
    Moving(Option<Account>),
    /// Messages reached the lane past the shut edge and were taken back; how, each way once.
    Bypass(Vec<Way>),
    /// A worker that was quarantined was asked to start anew, and this became of it.
    Recycled(Recycled),
}

/// A way past the shut edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// By which exchange and key, for people.
    pub by: String,
    /// What to change so that nothing comes by it any more.
    pub remedy: String,
    /// How many messages came by it since the last report; 0 if it was undone before one did.
    pub messages: u64,
}

/// What became of a worker that was asked to start anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recycled {
    /// It has stopped, and consumes its lane again.
    Back {
        /// How it was asked.
        by: String,
        /// From the request until it stopped consuming.
        stopped: Duration,
        /// From then on until it consumed again.
        away: Duration,
    },
    /// It has stopped, and not come back yet.
    Away {
        /// How it was asked.
        by: String,
        /// For how long.
        away: Duration,
    },
    /// It still consumes, or nobody could ask it; why.
    Stays(String),
}

/// How a check's last command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It exited with this code.
    ExitCode(i32),
    /// A signal ended it; the signal's name.
    Signal(String),
    /// It ran longer than `timeout` and was killed, with its process group.
    Timeout,
    /// No such program on the user's PATH.
    NotFound,
    /// It exists and could not be started.
    NotStarted,
    /// It exited and left processes behind, which were killed.
    LeftChildren,
}

/// One check's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckResult {
    /// Passed or failed.
    pub status: CheckStatus,
    /// How the command that decided the status ended; `None` if none was run.
    pub outcome: Option<Outcome>,
    /// From the first spawn to the last reaped process.
    pub duration: Duration,
    /// As read from the output of the command that `version.command` names.
    pub version: Option<String>,
    /// What the tool was made of when it ran: sha256, in hex, over the files that decide what its commands run.
    pub fingerprint: Option<String>,
    /// What went wrong and what to do; secrets removed. `None` when passed.
    pub message: Option<Failure>,
}

/// A failure in two parts, so that a reason can be made of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What was seen.
    pub detail: String,
    /// The command or the change that mends it.
    pub remedy: String,
}

/// What the managed config is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProfileState {
    /// There, readable, the owner's, and every enforced key has its value.
    Managed,
    /// There, and something about it is not as the policy wants it.
    Drifted,
    /// Not there.
    Missing,
}

/// What was seen of one profile (DATA_MODEL.md, `CodexConfigProfile`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProfileReport {
    /// The file after every symlink, or where it should be.
    pub path: String,
    /// Owner of the file; `None` if it is missing or cannot be looked at.
    pub owner_uid: Option<u32>,
    /// Group of the file.
    pub owner_gid: Option<u32>,
    /// The verdict on the file.
    pub state: ProfileState,
    /// Every enforced key (dotted) with its effective value; null where the key is not set.
    pub enforced: BTreeMap<String, serde_json::Value>,
    /// All other keys: the dotted name of each, and a sha256 of its value in hex. The values themselves are never kept, and
    /// only the names are told. Of what no config has, long names are cut off and the 1,001st and all later keys share one.
    #[serde(serialize_with = "names")]
    pub extra_settings: BTreeMap<String, String>,
    /// When the merge last enforced the policy on this file.
    pub managed_on: Option<Timestamp>,
    /// sha256 over the file's bytes, in hex; `None` if it could not be read.
    #[serde(skip)]
    pub config_hash: Option<String>,
    /// sha256 over the enforced keys' effective values, in hex; `None` if the file could not be parsed.
    #[serde(skip)]
    pub policy_hash: Option<String>,
    /// What is wrong and the command that mends it; `None` when managed.
    #[serde(skip)]
    pub problem: Option<Failure>,
    /// The enforced keys whose effective value is wrong; all of them where the file cannot be read or parsed.
    #[serde(skip)]
    pub wrong: Vec<String>,
    /// Who may write the file and when somebody last did; `None` if it cannot be looked at.
    #[serde(skip)]
    pub written: Option<Written>,
}

/// What stat says of a file's last writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Permission bits.
    pub mode: u32,
    /// When the content was last changed.
    pub at: Timestamp,
}

fn names<S: Serializer>(keys: &BTreeMap<String, String>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(keys.keys())
}

/// What was found of the image manifest, which is one for the whole gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReport {
    /// `None` if it is missing or cannot be read.
    pub image: Option<Image>,
    /// Why it cannot be read; `None` if it is simply not there.
    pub problem: Option<Failure>,
    /// When the look began.
    pub started: Mono,
    /// When the gate first noticed that there was something to be found.
    pub seen: Mono,
}

/// One finding with the times that evidence needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Whose checks these are.
    pub identity: IdentityId,
    /// When the look began: evidence says nothing about what happened after this.
    pub started: Mono,
    /// When the result was there.
    pub finished: Mono,
    /// When the gate first noticed that there was something to be found: the event that led to this look, or else
    /// `finished`. Latencies count from here.
    pub seen: Mono,
    /// `finished`, as people write it.
    pub at: Timestamp,
    /// What was found.
    pub finding: Finding,
}

/// What an observation is about.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// A tool's commands were run.
    Check {
        /// The check's name in the settings.
        name: String,
        /// Its result.
        result: CheckResult,
    },
    /// A check's tool is made of other files than before: what it was proven to be no longer counts.
    Tool {
        /// The check's name in the settings.
        name: String,
        /// The first file that was found changed.
        path: String,
    },
    /// The managed config was looked at.
    Profile(ProfileReport),
    /// The gate has merged the enforced keys into the managed config, as it was asked; why not, if it could not.
    Repair(Result<(), Failure>),
}
