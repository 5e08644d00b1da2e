//! Looks for ways round the gate, and for what is set up weakly. It asks the broker, all gates and all of Celery's workers,
//! looks at the files that decide, and tries what workers and producers must be refused. It changes nothing: every attempt is
//! one that ends in an error also where it is allowed, or is undone at once.
//!
//! [`grants()`] says what rights everybody needs; [`examine`] finds what is wider than that.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Serialize;

use crate::{
    edge::held,
    identity::Identity,
    settings::{BrokerUrl, EdgeKind, FeedIntake, Settings},
};

mod files;
mod grants;
pub(crate) mod judging;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod told;
pub mod users;

pub use grants::grants;
use told::Workers;
use users::Users;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for programs.
    pub code: &'static str,
    /// Whether work can get round the gate by it.
    pub serious: bool,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    fn serious(code: &'static str, detail: String, remedy: String) -> Self {
        Self { code, serious: true, detail, remedy }
    }

    fn warning(code: &'static str, detail: String, remedy: String) -> Self {
        Self { code, serious: false, detail, remedy }
    }

    /// The users that checks run as are not known here, and so their tools are not.
    pub(crate) fn unseen(why: &str) -> Self {
        let detail = format!("the checked tools could not be looked at: {why}");
        Self::warning("tools-unseen", detail, "run worker-gate doctor as the user that the gate runs as".to_owned())
    }
}

/// Why the broker could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// No connection to RabbitMQ.
    #[error(transparent)]
    RabbitMq(#[from] crate::amqp::ConnectError),
    /// No connection to Redis.
    #[error(transparent)]
    Redis(#[from] crate::redis::ConnectError),
    /// A command was refused, or the connection broke on it.
    #[error(transparent)]
    Fault(#[from] crate::edge::fault::Fault),
    /// Gates cannot be asked.
    #[error(transparent)]
    Ask(#[from] crate::control::asker::AskError),
    /// The same for a user whose rights were to be tried.
    #[error("use {variable}")]
    User {
        /// Where its URL stands.
        variable: &'static str,
        /// What went wrong.
        source: Box<Self>,
    },
}

/// What is looked at beside the settings.
#[derive(Debug, Default)]
pub struct Scope<'a> {
    /// The settings file.
    pub file: Option<&'a Path>,
    /// As whom checks run; their tools are looked at.
    pub identities: &'a [Identity],
    /// Whose rights are tried.
    pub users: Users,
    /// Lanes that no settings name any more, and that may still hold something.
    pub lanes: &'a [String],
}

/// What the broker, the gates and the workers said.
#[derive(Debug, Default)]
struct Seen {
    /// What each Celery worker says of itself, by its node name.
    workers: Workers,
    /// Whether heartbeats could be listened to for longer than it takes until the next one.
    listened: bool,
    /// For each shared intake, how many consumers it has beyond those that are gates, and beyond those whom `workers` names.
    unknown: BTreeMap<String, String>,
    /// For each lane, how many consume it beyond gates; empty where the broker does not tell.
    lanes: BTreeMap<String, i64>,
    /// What was found to be wrong on the broker.
    found: Vec<Finding>,
}

/// Looks.
///
/// # Errors
/// The broker cannot be asked.
pub async fn examine(settings: &Settings, scope: &Scope<'_>) -> Result<Vec<Finding>, DoctorError> {
    let intakes = intakes(settings);
    let seen = match settings.broker.urls.first() {
        Some(BrokerUrl::Amqp(url)) => rabbitmq::look(settings, url, scope, &intakes).await?,
        Some(BrokerUrl::Redis(_)) | None => redis::look(settings, scope, &intakes).await?,
    };
    let mut found = judging::findings(settings, &intakes, &seen);
    found.extend(seen.found);
    found.extend(settings.broker.urls.iter().filter_map(users::weak));
    found.extend(files::look(settings, scope));
    Ok(found)
}

/// The queues that only gates may consume.
fn intakes(settings: &Settings) -> BTreeSet<String> {
    let shared = settings.workers.iter().filter_map(|worker| match &worker.edge {
        EdgeKind::Feed(feed) => match &feed.intake {
            FeedIntake::Queue(queue) => Some(queue.clone()),
            FeedIntake::Exchange { .. } => Some(held(&worker.lane)),
        },
        EdgeKind::Route(_) => None,
    });
    shared.collect()
}
