//! What stops an edge, whether trying again can help, and how it is told.

use std::time::Duration;

use crate::{
    amqp::{self, ConnectError, Retry},
    model::{Code, Reason},
    redis,
};

/// How long a command may take before the connection counts as broken. Commands take a millisecond; a broker under load
/// takes a few hundred.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an edge cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no connection to Redis.
    #[error(transparent)]
    ConnectRedis(#[from] redis::ConnectError),
    /// Redis refused a command, or the connection broke on it.
    #[error("{doing}: {}", redis::text(error))]
    Redis {
        /// What was being done, as a fragment that can follow "failed to".
        doing: String,
        /// Redis' error.
        error: Box<::redis::RedisError>,
    },
    /// Redis let the worker go, because the gate did not say in time that it lives.
    #[error("keep {worker}: its owner's key has expired, or somebody else has written it; nothing was moved since")]
    Expired {
        /// The worker.
        worker: String,
    },
    /// The broker refused a command, or the connection broke on it.
    #[error("{doing}: {error}")]
    Command {
        /// What was being done, as a fragment that can follow "failed to".
        doing: String,
        /// lapin's error.
        error: Box<lapin::Error>,
    },
    /// The broker did not answer.
    #[error("{doing}: no answer in {} s", COMMAND_TIMEOUT.as_secs())]
    Silent {
        /// What was being done.
        doing: String,
    },
    /// The broker has no right for it.
    #[error("{doing}: the broker refused permission ({detail})")]
    Permission {
        /// What was being done.
        doing: String,
        /// The broker's words.
        detail: String,
        /// The command that grants it.
        remedy: String,
    },
    /// The broker takes no messages.
    #[error("publish the probe message: RabbitMQ takes none, as in a memory or disk alarm (rabbitmqctl list_alarms)")]
    Blocked,
    /// The link is being rebuilt; whoever keeps it says why.
    #[error("keep the link")]
    LinkDown,
    /// Another gate owns the worker.
    #[error("own {worker}: it is owned by {owner}")]
    Owned {
        /// The worker.
        worker: String,
        /// Who, as far as it answered.
        owner: String,
    },
    /// Somebody took the way apart. What is missing is declared and proven again.
    #[error("move messages: the exchange '{exchange}' leads nowhere any more; they stay where they are")]
    Nowhere {
        /// Where the way ends; empty for the anonymous exchange.
        exchange: String,
    },
    /// What is on the broker does not fit the settings.
    #[error("{doing}: {detail}")]
    Topology {
        /// What was being done.
        doing: String,
        /// What is wrong.
        detail: String,
        /// What to do.
        remedy: String,
    },
}

impl Fault {
    /// What lapin said while `doing`.
    pub(crate) fn command(doing: &str, error: lapin::Error) -> Self {
        Self::Command { doing: doing.to_owned(), error: Box::new(error) }
    }

    /// The same, if the broker has refused permission, with the command that gives it. `names` is what narrower patterns
    /// than those of the command have to cover.
    pub(crate) fn permission(self, vhost: &str, user: &str, names: &str) -> Self {
        let Self::Command { doing, error } = self else { return self };
        let lapin::ErrorKind::ProtocolError(refusal) = error.kind() else { return Self::Command { doing, error } };
        if refusal.get_id() != 403 {
            return Self::Command { doing, error };
        }
        let detail = refusal.get_message().to_string();
        let remedy = format!(
            "run: rabbitmqctl set_permissions -p {vhost} {user} \".*\" \".*\" \".*\" (or patterns that cover {names})"
        );
        Self::Permission { doing, detail, remedy }
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Connect(error) => error.retry(),
            Self::ConnectRedis(error) => error.retry(),
            Self::Command { error, .. } => amqp::retry(error),
            Self::Redis { error, .. } => redis::retry(error),
            Self::Silent { .. } | Self::LinkDown => Retry::AfterReconnect,
            Self::Owned { .. } | Self::Expired { .. } | Self::Blocked | Self::Nowhere { .. } => Retry::Soon,
            Self::Permission { .. } | Self::Topology { .. } => Retry::NeedsPerson,
        }
    }

    /// The same as a reason that can be told.
    pub fn reason(&self) -> Reason {
        let (code, remedy) = match self {
            Self::Owned { .. } => (
                Code::OwnedElsewhere,
                "stop the other gate, or take the worker out of one of the two settings files; if it was killed, wait: its hold \
                 ends two and a half heartbeats later",
            ),
            Self::Permission { remedy, .. } | Self::Topology { remedy, .. } => (Code::BrokerRefused, remedy.as_str()),
            Self::Connect(error) if error.retry() == Retry::NeedsPerson => (Code::BrokerRefused, "correct broker.url"),
            Self::ConnectRedis(error) if error.retry() == Retry::NeedsPerson => {
                (Code::BrokerRefused, "correct broker.url")
            }
            Self::ConnectRedis(_) => (Code::BrokerUnreachable, "see that Redis runs and that broker.url is right"),
            Self::Redis { error, .. } if redis::retry(error) == Retry::NeedsPerson => {
                (Code::BrokerRefused, "see Redis' log for the reason")
            }
            Self::Connect(_) => (Code::BrokerUnreachable, "see that RabbitMQ runs and that broker.url is right"),
            Self::Command { error, .. } if amqp::retry(error) == Retry::NeedsPerson => {
                (Code::BrokerRefused, "see RabbitMQ's log for the reason")
            }
            Self::Nowhere { .. } => {
                (Code::BrokerRefused, "none: the gate makes the way again, and says so if it cannot")
            }
            Self::Expired { .. } => (Code::BrokerUnreachable, "none: the gate takes the worker again"),
            Self::Command { .. } | Self::Redis { .. } | Self::Silent { .. } | Self::LinkDown | Self::Blocked => {
                (Code::BrokerUnreachable, "none: the gate connects again by itself")
            }
        };
        Reason::new(code, format!("failed to {self}"), remedy)
    }

    /// What to do, where the message does not say it: a command to run, or a setting to change.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Permission { remedy, .. } | Self::Topology { remedy, .. } => Some(remedy),
            Self::Connect(_)
            | Self::ConnectRedis(_)
            | Self::Redis { .. }
            | Self::Expired { .. }
            | Self::Command { .. }
            | Self::Silent { .. }
            | Self::Blocked
            | Self::LinkDown
            | Self::Nowhere { .. }
            | Self::Owned { .. } => None,
        }
    }

    /// Whether a permission is what is missing, rather than a right setting.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_permission(),
            Self::ConnectRedis(error) => error.is_permission(),
            Self::Permission { .. } => true,
            Self::Command { .. }
            | Self::Redis { .. }
            | Self::Expired { .. }
            | Self::Silent { .. }
            | Self::LinkDown
            | Self::Blocked
            | Self::Owned { .. }
            | Self::Nowhere { .. }
            | Self::Topology { .. } => false,
        }
    }
}

/// Whether the broker has refused with this reply code, such as 404 NOT_FOUND or 405 RESOURCE_LOCKED.
pub(crate) fn is_refusal(error: &lapin::Error, code: u16) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(refusal) if refusal.get_id() == code)
}

/// Awaits a command's answer, but not for ever: lapin has no timeouts, and waits as long as the broker is silent.
pub(crate) async fn within<T>(doing: &str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(COMMAND_TIMEOUT, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::command(doing, error)),
        Err(_) => Err(Fault::Silent { doing: doing.to_owned() }),
    }
}
