//! What can go wrong between the gate and Redis, and whether trying again can help.

use std::{error::Error as _, io, path::PathBuf};

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::amqp::Retry;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens there, or the name does not resolve.
    #[error("reach Redis at {address}: {detail}")]
    Unreachable {
        /// Host and port, or the socket's path.
        address: String,
        /// What was said.
        detail: String,
    },
    /// Something listens and says nothing.
    #[error("finish the handshake with Redis at {address}: no answer in time")]
    TimedOut {
        /// Host and port, or the socket's path.
        address: String,
    },
    /// Wrong user or password, or none where one is needed.
    #[error("log in to Redis at {address} as {user}: it refused the user or the password; correct broker.url")]
    Credentials {
        /// Host and port, or the socket's path.
        address: String,
        /// The user in the URL, or `default`.
        user: String,
    },
    /// The user lacks a right that every gate needs.
    #[error("use Redis at {address} as {user}: it refused permission ({detail})")]
    NotPermitted {
        /// Host and port, or the socket's path.
        address: String,
        /// The user in the URL, or `default`.
        user: String,
        /// Redis' words.
        detail: String,
    },
    /// It answers, and not as a gate needs it.
    #[error("use Redis at {address}: {detail}")]
    Unfit {
        /// Host and port, or the socket's path.
        address: String,
        /// What is the matter, and what to do.
        detail: String,
    },
    /// TLS came to no agreement.
    #[error("agree on TLS with {address}: {detail}; check broker.ca_file, broker.cert_file and the port")]
    Tls {
        /// Host and port.
        address: String,
        /// rustls' words.
        detail: String,
    },
    /// A file of the TLS settings cannot be read.
    #[error("read {path:?}, which {key} names")]
    TlsFile {
        /// The settings key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A sentinel knows of no such master.
    #[error("find the master {name:?} (broker.master_name) at the sentinel {address}: {detail}")]
    NoMaster {
        /// Host and port of the sentinel.
        address: String,
        /// The master's name.
        name: String,
        /// What it said.
        detail: String,
        /// Whether the sentinel answered, and does not know the name.
        is_unknown: bool,
    },
    /// The URL is one for RabbitMQ.
    #[error("use broker.url for Redis: its scheme is not redis, rediss, redis+socket or sentinel")]
    NotRedis,
}

impl ConnectError {
    /// What the crate said, told apart.
    pub(super) fn from_redis(error: &RedisError, address: String, user: Option<&str>, tls: bool) -> Self {
        let user = user.unwrap_or("default").to_owned();
        let detail = text(error);
        let kind = error.kind();
        let is_away = matches!(kind, ErrorKind::Server(ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown));
        if kind == ErrorKind::AuthenticationFailed || matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) {
            Self::Credentials { address, user }
        } else if kind == ErrorKind::Server(ServerErrorKind::NoPerm) {
            Self::NotPermitted { address, user, detail }
        } else if kind == ErrorKind::RESP3NotSupported {
            Self::Unfit { address, detail: "it does not speak RESP3; Redis 6.2 or newer is needed".to_owned() }
        } else if error.is_timeout() {
            Self::TimedOut { address }
        } else if kind == ErrorKind::Io && tls && !error.is_connection_refusal() && !is_system(error) {
            Self::Tls { address, detail }
        } else if kind == ErrorKind::Io || is_away || error.is_connection_dropped() {
            Self::Unreachable { address, detail }
        } else {
            Self::Unfit { address, detail }
        }
    }

    /// Whether a permission is what is missing, rather than a right setting.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Credentials { .. } | Self::NotPermitted { .. })
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::NoMaster { is_unknown: false, .. } => {
                Retry::AfterReconnect
            }
            Self::Credentials { .. }
            | Self::NotPermitted { .. }
            | Self::Unfit { .. }
            | Self::Tls { .. }
            | Self::TlsFile { .. }
            | Self::NoMaster { is_unknown: true, .. }
            | Self::NotRedis => Retry::NeedsPerson,
        }
    }
}

/// What the operating system said, and not TLS.
fn is_system(error: &RedisError) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io.raw_os_error().is_some();
        }
        source = cause.source();
    }
    false
}

/// What Redis or the crate said, without the crate's own classes of errors, which say it twice.
pub fn text(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (_, Some(detail)) if error.kind() != ErrorKind::Io => format!("{}: {detail}", error.category()),
        _ => error.to_string(),
    }
}

/// Whether Redis has refused permission. What a script may not do has a code of its own only since Redis 7.2; before that it is
/// an error like any other, which the words tell apart (Redis 7.0, script.c, `scriptVerifyACL`).
pub fn is_refusal(error: &RedisError) -> bool {
    let words = ["The user executing the script can't", "ACL failure in script"];
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm)
        || error.detail().is_some_and(|detail| words.iter().any(|words| detail.contains(words)))
}

/// What to do about an error on an established connection.
pub fn retry(error: &RedisError) -> Retry {
    if is_refusal(error) || error.kind() == ErrorKind::Server(ServerErrorKind::CrossSlot) {
        Retry::NeedsPerson
    } else {
        // Also from a replica since a failover: somebody else is the master now, or soon.
        Retry::AfterReconnect
    }
}
