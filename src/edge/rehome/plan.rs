//! From whom to whom, as far as settings tell. Pure: nothing here asks a broker.

use crate::{
    edge::held,
    model::WorkerName,
    settings::{EdgeKind, FeedIntake, IntakeType, Settings, Worker},
};

/// Who is gone, and who gets what was held for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The worker that is gone. If settings do not name it any more, it is like `to`, but for name and lane.
    pub gone: Worker,
    /// Whether settings still name it.
    pub listed: bool,
    /// Who gets its messages.
    pub to: Worker,
}

/// Where messages go in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A queue that workers share.
    Queue(String),
    /// An exchange, with this key; `None` with the key that each message has.
    Exchange(String, Option<String>),
}

/// Why the command line makes no plan.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// Both are one.
    #[error("give the messages of {0} to itself: name another worker with --to")]
    Same(String),
    /// `--to` is none of the settings' workers.
    #[error("give messages to {to}: settings name no such worker, but {known}; see --config")]
    Unknown {
        /// Who was named.
        to: String,
        /// Those who are.
        known: String,
    },
    /// That cannot be the name of a worker.
    #[error("take {0:?} for a worker: write Celery's node name, such as codex-0@host-1")]
    Name(String),
    /// `--lane` says otherwise than settings.
    #[error("take {given} for the lane of {worker}: settings say that it is {lane}; leave --lane out")]
    Lane {
        /// Who is said to be gone.
        worker: String,
        /// What `--lane` says.
        given: String,
        /// What settings say.
        lane: String,
    },
    /// The lane, or what belongs to it, is somebody else's.
    #[error("take {lane} for the lane of {worker}: {queue} is {whose}; name the right one with --lane")]
    Taken {
        /// Who is said to be gone.
        worker: String,
        /// Where its lane was looked for.
        lane: String,
        /// Which queue it is about.
        queue: String,
        /// What that is.
        whose: String,
    },
}

impl Plan {
    /// Makes a plan, or says what is wrong with the question.
    ///
    /// # Errors
    /// See [`PlanError`]: all are wrong usage, and none needs a broker to be seen.
    pub fn new(settings: &Settings, worker: &str, to: &str, lane: Option<&str>) -> Result<Self, PlanError> {
        if worker.is_empty() || worker.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(PlanError::Name(worker.to_owned()));
        }
        if worker == to {
            return Err(PlanError::Same(to.to_owned()));
        }
        let named = |name: &str| settings.workers.iter().find(|worker| worker.name.as_str() == name);
        let Some(to) = named(to) else {
            let known: Vec<_> = settings.workers.iter().map(|worker| worker.name.as_str()).collect();
            return Err(PlanError::Unknown { to: to.to_owned(), known: known.join(", ") });
        };
        if let Some(gone) = named(worker) {
            if let Some(given) = lane.filter(|given| *given != gone.lane) {
                let (worker, given, lane) = (worker.to_owned(), given.to_owned(), gone.lane.clone());
                return Err(PlanError::Lane { worker, given, lane });
            }
            return Ok(Self { gone: gone.clone(), listed: true, to: to.clone() });
        }
        let lane = lane.map_or_else(|| lane_like(to, worker), ToOwned::to_owned);
        for queue in [lane.clone(), held(&lane)] {
            if let Some(whose) = whose(settings, &queue) {
                return Err(PlanError::Taken { worker: worker.to_owned(), lane, queue, whose });
            }
        }
        let gone = Worker { name: WorkerName::new(worker), lane, ..to.clone() };
        Ok(Self { gone, listed: false, to: to.clone() })
    }

    /// Where the messages go in.
    pub fn entry(&self) -> Entry {
        match &self.to.edge {
            EdgeKind::Route(intake) => {
                let key = super::entry_key(intake.kind, &intake.keys);
                Entry::Exchange(intake.exchange.clone(), key)
            }
            EdgeKind::Feed(feed) => match &feed.intake {
                FeedIntake::Queue(queue) => Entry::Queue(queue.clone()),
                FeedIntake::Exchange { exchange, kind, keys } => {
                    Entry::Exchange(exchange.clone(), super::entry_key(*kind, keys))
                }
            },
        }
    }

    /// The holding queue of the worker that is gone.
    pub fn held(&self) -> String {
        held(&self.gone.lane)
    }

    /// Whether messages may still come that are meant for the worker that is gone, and for it alone.
    fn has_keys(&self) -> bool {
        match &self.gone.edge {
            EdgeKind::Route(intake) => intake.kind != IntakeType::ConsistentHash,
            EdgeKind::Feed(feed) => matches!(feed.intake, FeedIntake::Exchange { .. }),
        }
    }

    /// What is left to do for people.
    pub fn advice(&self) -> String {
        let settings = if self.listed {
            format!("; take {} out of the settings, or its gate will have it again", self.gone.name)
        } else {
            String::new()
        };
        match self.entry() {
            Entry::Exchange(exchange, Some(key)) if self.has_keys() => format!(
                "what still comes with a key of {} goes on being held in {}: let its producers publish to {exchange} with the key \
                 {key} of {}, and then run this again{settings}",
                self.gone.name,
                self.held(),
                self.to.name
            ),
            Entry::Exchange(exchange, _) if self.has_keys() => format!(
                "what still comes with a key of {} goes on being held in {}: let its producers publish to {exchange}, and then run \
                 this again{settings}",
                self.gone.name,
                self.held()
            ),
            Entry::Queue(queue) if self.has_keys() => format!(
                "what still comes with a key of {} goes on being held in {}: let its producers publish to the queue {queue}, and \
                 then run this again{settings}",
                self.gone.name,
                self.held()
            ),
            Entry::Exchange(..) | Entry::Queue(_) => {
                format!("nothing more comes for {} alone: its intake is shared{settings}", self.gone.name)
            }
        }
    }
}

/// The lane that the worker would have if it was named as that of `like` is: by the node name up to its @, and what follows.
fn lane_like(like: &Worker, worker: &str) -> String {
    let short = |name: &str| name.split('@').next().unwrap_or_default().to_owned();
    let rest = like.lane.strip_prefix(&short(like.name.as_str()));
    let rest = rest.filter(|rest| !rest.starts_with(char::is_alphanumeric)).unwrap_or_default();
    format!("{}{rest}", short(worker))
}

/// What a queue is, if settings have it for something.
fn whose(settings: &Settings, queue: &str) -> Option<String> {
    settings.workers.iter().find_map(|worker| {
        let (name, lane) = (&worker.name, &worker.lane);
        if queue == lane {
            return Some(format!("the lane of {name}"));
        }
        if queue.strip_suffix(".held") == Some(lane) {
            return Some(format!("the holding queue of {name}"));
        }
        let intake = match &worker.edge {
            EdgeKind::Route(intake) => &intake.exchange,
            EdgeKind::Feed(feed) => match &feed.intake {
                FeedIntake::Queue(shared) if queue == shared => return Some(format!("the intake of {name}")),
                FeedIntake::Queue(_) => return None,
                FeedIntake::Exchange { exchange, .. } => exchange,
            },
        };
        let behind = queue.strip_prefix(intake.as_str())?;
        matches!(behind, ".held" | ".unrouted").then(|| format!("a queue of the intake {intake}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Source, load};

    fn settings(workers: &str) -> Settings {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        let text = format!("[broker]\nurl = \"amqp://localhost//\"\n[checks.codex_cli]\nrun = [[\"true\"]]\n{workers}");
        std::fs::write(&file, text).unwrap();
        load(&Source { file: Some(file), hostname: "h".into(), ..Source::default() }).unwrap().settings
    }

    fn routed() -> Settings {
        settings(
            r#"
[[workers]]
name = "codex-1@h"
lane = "codex-1"
intake = { exchange = "codex", type = "direct", keys = ["one", "codex-1"] }
[[workers]]
name = "codex-2@h"
lane = "codex-2"
intake = { exchange = "codex", type = "direct", keys = ["codex-2"] }
"#,
        )
    }

    fn fed() -> Settings {
        settings(
            r#"
[[workers]]
name = "codex-1@h"
edge = "feed"
lane = "codex-1.lane"
intake = { queue = "codex" }
"#,
        )
    }

    #[test]
    fn a_worker_that_settings_do_not_name_any_more_has_the_lane_that_the_other_would_have_by_its_name() {
        let plan = Plan::new(&routed(), "codex-0@gone", "codex-1@h", None).unwrap();
        assert_eq!((plan.listed, plan.gone.name.as_str(), plan.gone.lane.as_str()), (false, "codex-0@gone", "codex-0"));
        assert_eq!(plan.entry(), Entry::Exchange("codex".to_owned(), Some("one".to_owned())));
        assert!(plan.advice().contains("held in codex-0.held"), "{}", plan.advice());
        assert!(!plan.advice().contains("out of the settings"), "{}", plan.advice());
        let plan = Plan::new(&fed(), "codex-0@gone", "codex-1@h", None).unwrap();
        assert_eq!((plan.gone.lane.as_str(), plan.entry()), ("codex-0.lane", Entry::Queue("codex".to_owned())));
        assert!(plan.advice().starts_with("nothing more comes"), "{}", plan.advice());
        let plan = Plan::new(&fed(), "codex-0@gone", "codex-1@h", Some("old")).unwrap();
        assert_eq!(plan.gone.lane, "old");
    }

    #[test]
    fn a_worker_that_settings_name_has_the_lane_that_they_say() {
        let plan = Plan::new(&routed(), "codex-2@h", "codex-1@h", None).unwrap();
        let advice = plan.advice();
        assert!(plan.listed && advice.contains("take codex-2@h out of the settings"), "{advice}");
        assert_eq!(Plan::new(&routed(), "codex-2@h", "codex-1@h", Some("codex-2")).unwrap(), plan);
        let wrong = Plan::new(&routed(), "codex-2@h", "codex-1@h", Some("other")).unwrap_err();
        assert!(matches!(wrong, PlanError::Lane { .. }), "{wrong}");
    }

    #[test]
    fn what_is_somebody_elses_is_not_given_away() {
        for (settings, lane, whose) in [
            (routed(), "codex-2", "codex-2 is the lane of codex-2@h"),
            (routed(), "codex-1.held", "codex-1.held is the holding queue of codex-1@h"),
            (routed(), "codex", "codex.held is a queue of the intake codex"),
            (routed(), "codex.unrouted", "codex.unrouted is a queue of the intake codex"),
            (fed(), "codex", "codex is the intake of codex-1@h"),
        ] {
            let error = Plan::new(&settings, "gone@h", "codex-1@h", Some(lane)).unwrap_err().to_string();
            assert!(error.contains(whose), "{lane}: {error}");
        }
    }

    #[test]
    fn a_question_without_sense_is_answered_by_what_is_wrong_with_it() {
        let ask = |worker, to| Plan::new(&routed(), worker, to, None).unwrap_err().to_string();
        assert!(ask("codex-1@h", "codex-1@h").contains("to itself"));
        assert!(ask("codex-0@h", "codex-9@h").contains("no such worker, but codex-1@h, codex-2@h"));
        assert!(ask("codex 0", "codex-1@h").contains("node name"));
    }

    #[test]
    fn a_lane_that_is_named_otherwise_tells_nothing_of_another() {
        let mut like = fed().workers.remove(0);
        for (lane, expected) in [("codex-1.lane", "codex-0.lane"), ("codex-10", "codex-0"), ("work", "codex-0")] {
            lane.clone_into(&mut like.lane);
            assert_eq!(lane_like(&like, "codex-0@x"), expected, "{lane}");
        }
    }
}
