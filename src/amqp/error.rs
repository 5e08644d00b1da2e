//! What can go wrong between the gate and RabbitMQ, and whether trying again can help.

use std::{io, path::PathBuf};

use lapin::{Error, ErrorKind};

use crate::settings::broker_url::AmqpUrl;

/// What to do about an error of the broker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The channel is gone, the connection is not: try again on a new channel.
    Soon,
    /// The connection is gone.
    AfterReconnect,
    /// Trying again will give the same answer until somebody changes something.
    NeedsPerson,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens there, or the name does not resolve.
    #[error("reach RabbitMQ at {address}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something listens and says nothing.
    #[error("finish the handshake with RabbitMQ at {address}: no answer in time")]
    TimedOut {
        /// Host and port.
        address: String,
    },
    /// It was reached and ended the conversation.
    #[error("speak AMQP with {address}: {detail}")]
    Broken {
        /// Host and port.
        address: String,
        /// lapin's words.
        detail: String,
    },
    /// Wrong user or password.
    #[error(
        "log in to RabbitMQ at {address} as {user}: it refused the user or the password; correct broker.url \
         (rabbitmqctl authenticate_user {user} tells whether the password is right)"
    )]
    Credentials {
        /// Host and port.
        address: String,
        /// The user in the URL.
        user: String,
    },
    /// The virtual host does not exist.
    #[error(
        "open the virtual host {vhost} on RabbitMQ at {address}: there is no such virtual host; correct broker.url or \
         run: rabbitmqctl add_vhost {vhost}"
    )]
    NoVhost {
        /// Host and port.
        address: String,
        /// As decoded from the URL.
        vhost: String,
    },
    /// The user may not use the virtual host.
    #[error(
        "open the virtual host {vhost} on RabbitMQ at {address}: {user} has no permission there; run: \
         rabbitmqctl set_permissions -p {vhost} {user} \".*\" \".*\" \".*\""
    )]
    VhostRefused {
        /// Host and port.
        address: String,
        /// As decoded from the URL.
        vhost: String,
        /// The user in the URL.
        user: String,
    },
    /// TLS came to no agreement.
    #[error("agree on TLS with {address}: {detail}; check broker.ca_file, broker.cert_file and the port")]
    Tls {
        /// Host and port.
        address: String,
        /// rustls's words.
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
    /// The authorities' file holds none.
    #[error("find a certificate in {path:?}, which broker.ca_file names: a PEM file is expected")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The URL is one for Redis.
    #[error("use broker.url for RabbitMQ: its scheme is not amqp or amqps")]
    NotAmqp,
}

impl ConnectError {
    /// What lapin said, told apart: a wrong password is a soft error in its eyes (DEPENDENCIES.md 1.4).
    pub(super) fn from_lapin(error: &Error, url: &AmqpUrl, address: String) -> Self {
        let detail = error.to_string();
        if let ErrorKind::ProtocolError(refusal) = error.kind() {
            let (user, vhost) = (url.user.clone(), url.vhost.clone());
            return match refusal.get_id() {
                403 => Self::Credentials { address, user },
                530 if detail.contains("not found") => Self::NoVhost { address, vhost },
                530 => Self::VhostRefused { address, vhost, user },
                _ => Self::Broken { address, detail },
            };
        }
        let ErrorKind::IOError(source) = error.kind() else { return Self::Broken { address, detail } };
        match source.raw_os_error() {
            None if url.tls && source.get_ref().is_some() => Self::Tls { address, detail },
            None => Self::Unreachable { address, source: io::Error::new(source.kind(), source.to_string()) },
            Some(number) => Self::Unreachable { address, source: io::Error::from_raw_os_error(number) },
        }
    }

    /// Whether a permission is what is missing, rather than a right setting.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Credentials { .. } | Self::VhostRefused { .. })
    }

    /// Whether trying again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => Retry::AfterReconnect,
            Self::Credentials { .. }
            | Self::NoVhost { .. }
            | Self::VhostRefused { .. }
            | Self::Tls { .. }
            | Self::TlsFile { .. }
            | Self::NoCertificate { .. }
            | Self::NotAmqp => Retry::NeedsPerson,
        }
    }
}

/// What to do about an error on an established connection. AMQP 0-9-1 reply codes.
pub fn retry(error: &Error) -> Retry {
    if let ErrorKind::ProtocolError(refusal) = error.kind() {
        return match refusal.get_id() {
            // access-refused, precondition-failed, not-allowed, not-implemented, command-invalid (unknown exchange type)
            403 | 406 | 503 | 530 | 540 => Retry::NeedsPerson,
            // not-found (somebody deleted it: it is declared again), resource-locked (owned, maybe by a ghost of ours)
            404 | 405 => Retry::Soon,
            _ if error.is_amqp_soft_error() => Retry::Soon,
            _ => Retry::AfterReconnect,
        };
    }
    // The cause is in an earlier error; a new channel will say it again if it lasts.
    if matches!(error.kind(), ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidChannel(_)) {
        Retry::Soon
    } else {
        Retry::AfterReconnect
    }
}
