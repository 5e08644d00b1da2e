//! A first settings file, from what the broker and the workers that run say of themselves.
//!
//! `crew` asks them, `place` looks at their processes and tools on this machine, `plan` decides on the way to each worker,
//! and `text` and `next` write down what came of it. Only the first two look at anything; the others are pure.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    doctor::{Finding, judging::habits, told::Workers},
    glob,
    identity::{GateUser, Identity},
    settings::{Broker, OnQuarantine, ShownValue},
};

mod crew;
mod next;
mod place;
mod plan;
mod text;

pub use crew::{ask, intakes};
pub use next::steps;
pub use plan::Edge;
pub use text::text;

use plan::Way;

/// What the broker and the workers said.
#[derive(Debug, Default)]
pub struct Crew {
    workers: Workers,
    /// How many consume each queue of theirs; empty where the broker does not tell.
    consumers: BTreeMap<String, u32>,
}

/// Everything that goes into the file.
#[derive(Debug)]
pub struct Draft {
    /// Where the broker is; each alternative, without its password.
    urls: Vec<String>,
    /// Whether there is a password in it.
    is_secret: bool,
    /// What flags say of `gate` and `broker`, as the keys and values of those tables.
    given: Vec<(String, String)>,
    tools: Vec<Tool>,
    profile: Profile,
    workers: Vec<Drafted>,
}

/// A tool that a check may be about.
#[derive(Debug, PartialEq, Eq)]
struct Tool {
    /// The check's name.
    check: &'static str,
    /// What it is called here, or would be.
    program: &'static str,
    /// Where it was found.
    found: Vec<PathBuf>,
    /// Users who do not find it.
    missing: Vec<String>,
}

/// What is known of the config that is to be managed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Profile {
    /// Where it was found.
    found: Vec<PathBuf>,
    /// What a missing one may be made from.
    template: Option<PathBuf>,
}

/// One worker.
#[derive(Debug)]
struct Drafted {
    name: String,
    owner: Owner,
    way: Way,
    /// What it consumes beside, which no gate has a hand in.
    beside: Vec<String>,
    /// Its pool, and how many processes and messages it has.
    about: String,
    /// What `doctor` would say of how it is set up.
    habits: Vec<Finding>,
}

/// Whose process a worker is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    /// One that runs here.
    Known {
        pid: u32,
        user: String,
        /// If it is not what the gate would take for the user's.
        home: Option<PathBuf>,
        path: Option<String>,
        /// Where Codex looks for its config, if not in the home.
        codex_home: Option<String>,
    },
    /// Why that is not known; a sentence's end.
    Unknown(String),
}

/// Why there is nothing to write.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// No worker has answered.
    #[error(
        "hear from a worker on {broker}: none answers over Celery's remote control; see whether one runs, whether it uses this \
         broker with this {place}, and whether its application has worker_enable_remote_control = False"
    )]
    Nobody {
        /// The broker, without its password.
        broker: String,
        /// What divides a broker of this kind.
        place: &'static str,
    },
    /// Workers have answered, and none of those that were meant.
    #[error("find a worker {meant}; of others there are {}; choose with --worker, such as --worker '{}'", others.join(", "), others[0])]
    Others {
        /// Who was meant.
        meant: String,
        /// Who has answered; never empty.
        others: Vec<String>,
    },
    /// What is known of a worker is not enough, or too much.
    #[error("find a way to the worker {worker}: {why}")]
    NoWay {
        /// Its node name.
        worker: String,
        /// What is in the way, and what to do.
        why: String,
    },
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Patterns of node names; empty for the workers of this host.
    pub workers: &'a [String],
    /// The edge that all are to have; `None` leaves it to what suits each.
    pub edge: Option<Edge>,
    /// This host's name.
    pub host: &'a str,
}

/// Puts the draft together.
///
/// # Errors
/// Nobody has answered, or none of those that are meant, or there is no way to one of them.
pub fn draft(
    crew: &Crew,
    broker: &Broker,
    values: &[ShownValue],
    wish: &Wish<'_>,
    gate: &GateUser,
) -> Result<Draft, InitError> {
    let is_redis = broker.urls.iter().any(|url| url.as_redis().is_some());
    let urls: Vec<String> = broker.urls.iter().map(ToString::to_string).collect();
    if crew.workers.is_empty() {
        let place = if is_redis { "database" } else { "virtual host" };
        return Err(InitError::Nobody { broker: urls.join(";"), place });
    }
    let is_meant = |node: &str| match wish.workers {
        [] => place::is_here(node, &crew.workers[node], wish.host),
        patterns => patterns.iter().any(|pattern| glob::matches(pattern, node)),
    };
    let meant: Vec<&String> =
        crew.workers.iter().filter(|(node, told)| told.answers() && is_meant(node)).map(|(node, _)| node).collect();
    if meant.is_empty() {
        let meant = match wish.workers {
            [] => format!("of this host ({})", wish.host),
            patterns => format!("named {}", patterns.join(" or ")),
        };
        return Err(InitError::Others { meant, others: crew.workers.keys().cloned().collect() });
    }
    let mut workers = Vec::new();
    for node in meant {
        let told = &crew.workers[node];
        let (way, beside) =
            plan::way(node, crew, is_redis, wish.edge).map_err(|why| InitError::NoWay { worker: node.clone(), why })?;
        workers.push(Drafted {
            name: node.clone(),
            owner: place::owner(node, told, wish.host, gate),
            way,
            beside,
            about: plan::about(told),
            habits: habits(OnQuarantine::Drain, node, told, false),
        });
    }
    let identities: Vec<Identity> = place::identities(&workers, gate);
    let tools = place::tools(&identities);
    let profile = place::profile(&identities);
    let is_secret = !is_redis || urls.iter().any(|url| url.contains("***"));
    Ok(Draft { urls, is_secret, given: text::given(values), tools, profile, workers })
}
