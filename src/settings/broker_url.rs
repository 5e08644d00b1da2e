//! Broker URLs, as kombu reads them.

use std::{fmt, path::PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::secret::Secret;

mod parse;
#[cfg(test)]
mod tests;

pub use parse::UrlProblem;

/// One broker address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerUrl {
    /// `amqp://`, `pyamqp://`, `amqps://`
    Amqp(AmqpUrl),
    /// `redis://`, `rediss://`, `redis+socket://`, `sentinel://`
    Redis(RedisUrl),
}

/// A RabbitMQ address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpUrl {
    /// Name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Default 5672, with TLS 5671.
    pub port: u16,
    /// Default `guest`.
    pub user: String,
    /// Default `guest`.
    pub password: Secret,
    /// Default `/`.
    pub vhost: String,
    /// `amqps://`
    pub tls: bool,
}

/// A Redis address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where it listens.
    pub endpoint: RedisEndpoint,
    /// ACL user.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Database number.
    pub db: u32,
}

/// Where a Redis listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisEndpoint {
    /// `redis://` and `rediss://`
    Tcp {
        /// Name or address.
        host: String,
        /// Default 6379.
        port: u16,
        /// `rediss://`
        tls: bool,
    },
    /// `redis+socket://`
    Socket(PathBuf),
    /// `sentinel://`; asks for the master.
    Sentinel {
        /// Name or address of the sentinel.
        host: String,
        /// Default 26379.
        port: u16,
    },
}

impl BrokerUrl {
    /// Reads one URL.
    ///
    /// # Errors
    /// It is not a URL that kombu reads, or it asks for something that the gate would not do. No part of the text is
    /// in the error.
    pub fn parse(text: &str) -> Result<Self, UrlProblem> {
        parse::url(text)
    }

    /// Whether it is a sentinel's, who is asked for the master.
    pub fn is_sentinel(&self) -> bool {
        self.as_redis().is_some_and(|url| matches!(url.endpoint, RedisEndpoint::Sentinel { .. }))
    }

    /// The address, if it is a Redis'.
    pub fn as_redis(&self) -> Option<&RedisUrl> {
        match self {
            Self::Amqp(_) => None,
            Self::Redis(url) => Some(url),
        }
    }
}

/// Reads alternatives, separated by `;`, in the order in which they are tried. Never empty.
///
/// # Errors
/// As for [`BrokerUrl::parse`]; an empty alternative is one, too.
pub fn parse_list(text: &str) -> Result<Vec<BrokerUrl>, UrlProblem> {
    parse::list(text)
}

/// What stands for a password.
const HIDDEN: &str = "***";

/// Everything but what never needs encoding.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What may stand in a socket's path as it is.
const PATH: &AsciiSet = &ENCODED.remove(b'/');

/// The password never shows.
impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amqp(url) => url.fmt(f),
            Self::Redis(url) => url.fmt(f),
        }
    }
}

/// The password never shows.
impl fmt::Display for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        let user = utf8_percent_encode(&self.user, ENCODED);
        write!(f, "{scheme}://{user}:{HIDDEN}@{}:{}/", Host(&self.host), self.port)?;
        if self.vhost == "/" { f.write_str("/") } else { utf8_percent_encode(&self.vhost, ENCODED).fmt(f) }
    }
}

/// The password never shows, nor a user without one: that is most often a password in the wrong place.
impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match &self.endpoint {
            RedisEndpoint::Tcp { tls: true, .. } => "rediss",
            RedisEndpoint::Tcp { tls: false, .. } => "redis",
            RedisEndpoint::Socket(_) => "redis+socket",
            RedisEndpoint::Sentinel { .. } => "sentinel",
        };
        write!(f, "{scheme}://")?;
        match (&self.user, &self.password) {
            (Some(user), Some(_)) => write!(f, "{}:{HIDDEN}@", utf8_percent_encode(user, ENCODED))?,
            (None, Some(_)) => write!(f, ":{HIDDEN}@")?,
            (Some(_), None) => write!(f, "{HIDDEN}@")?,
            (None, None) => {}
        }
        match &self.endpoint {
            RedisEndpoint::Tcp { host, port, .. } | RedisEndpoint::Sentinel { host, port } => {
                write!(f, "{}:{port}/{}", Host(host), self.db)
            }
            RedisEndpoint::Socket(path) => {
                let path = path.to_string_lossy();
                write!(f, "{}?virtual_host={}", utf8_percent_encode(&path, PATH), self.db)
            }
        }
    }
}

/// A host, in brackets if it is an IPv6 address.
struct Host<'a>(&'a str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}
