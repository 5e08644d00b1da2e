//! Reading a broker URL as kombu does (kombu/utils/url.py, kombu/connection.py, kombu/transport/redis.py).
//!
//! No error shows any part of the text: where a password holds a `/`, `@`, `?` or `;` that should have been percent
//! encoded, any other part of the URL may be a piece of it.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use super::{AmqpUrl, BrokerUrl, RedisEndpoint, RedisUrl};
use crate::secret::Secret;

/// Why a text is no broker URL that the gate can honour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlProblem {
    /// There is no `://`, or nothing before it.
    #[error("there is no scheme; write it as amqp://user:password@host:port/vhost or redis://:password@host:port/db")]
    NoScheme,
    /// Not one of those that the gate speaks.
    #[error(
        "the scheme is not one of amqp, pyamqp, amqps, redis, rediss, redis+socket, sentinel{}",
        .0.map_or_else(String::new, |name| format!(" (worker-gate does not speak {name})"))
    )]
    UnknownScheme(
        /// Its name, if kombu knows it.
        Option<&'static str>,
    ),
    /// A space, a line break or the like.
    #[error("there is white space or a control character in it; percent-encode it as in %20")]
    WhiteSpace,
    /// A `#`, which ends a URL for kombu.
    #[error("there is a \"#\" in it; in a password write it as %23")]
    Fragment,
    /// Not a number from 1 to 65535.
    #[error(
        "the port is not a number from 1 to 65535; an IPv6 address needs brackets, and in a password / ? # @ : must be percent-encoded"
    )]
    BadPort,
    /// Brackets without an IPv6 address in them.
    #[error("what stands in brackets is not an IPv6 address; write it as in [::1]:5672")]
    BadIpv6,
    /// A host with characters that no host has.
    #[error("the host has characters that no host name has; in a password / ? # @ must be percent-encoded")]
    BadHost,
    /// Percent-encoded bytes that are no text.
    #[error("its percent-encoding is not UTF-8; encode the UTF-8 bytes of each character")]
    NotUtf8,
    /// Redis: the path is no database number.
    #[error("the database is not a number; write it as in redis://host:6379/0")]
    BadDatabase,
    /// Nothing between two `;`, or before the first, or after the last.
    #[error("an alternative is empty; remove the extra \";\", and in a password write it as %3B")]
    EmptyAlternative,
    /// `redis+socket://` without a path, or with a host.
    #[error("a socket is written as redis+socket:///path?virtual_host=0")]
    BadSocket,
    /// TLS asked for by an option of a plain scheme.
    #[error("a TLS option stands on a scheme without TLS; write amqps:// or rediss:// instead")]
    TlsOnPlain,
    /// The peer's certificate or name would not be verified.
    #[error(
        "the option {0} asks to trust a broker that is not verified, which worker-gate never does; remove it, and name the authority in broker.ca_file"
    )]
    Unverified(
        /// The option.
        &'static str,
    ),
    /// An option that is a setting here.
    #[error("the option {0} is not read from the URL; remove it and write {1}")]
    OwnSetting(
        /// The option.
        &'static str,
        /// The setting.
        &'static str,
    ),
    /// An option that the gate would not honour.
    #[error(
        "an option after the \"?\" is not one that worker-gate honours; remove it (known are ssl_cert_reqs=required, ssl_check_hostname=true, and virtual_host for a socket)"
    )]
    UnknownOption,
}

/// Schemes that kombu has and the gate has not; only these are named in a message.
const ELSEWHERE: [&str; 18] = [
    "librabbitmq",
    "confluentkafka",
    "kafka",
    "memory",
    "sqs",
    "mongodb",
    "zookeeper",
    "sqlalchemy",
    "sqla",
    "slmq",
    "filesystem",
    "qpid",
    "consul",
    "etcd",
    "azurestoragequeues",
    "azureservicebus",
    "gcpubsub",
    "pgmq",
];

/// Options of kombu and of its clients that settings of the gate stand for.
const SETTINGS: [(&str, &str); 4] = [
    ("heartbeat", "broker.heartbeat"),
    ("ssl_ca_certs", "broker.ca_file"),
    ("ssl_certfile", "broker.cert_file"),
    ("ssl_keyfile", "broker.key_file"),
];

/// A URL in its parts, before they mean anything.
struct Parts<'a> {
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    /// Decoded, without its first `/`.
    path: String,
    query: &'a str,
}

/// Reads one URL.
pub(super) fn url(text: &str) -> Result<BrokerUrl, UrlProblem> {
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(UrlProblem::WhiteSpace);
    }
    let (scheme, rest) = text.split_once("://").ok_or(UrlProblem::NoScheme)?;
    let scheme = scheme.to_ascii_lowercase();
    let tls = matches!(scheme.as_str(), "amqps" | "rediss");
    match scheme.as_str() {
        "" => Err(UrlProblem::NoScheme),
        "amqp" | "pyamqp" | "amqps" => amqp(parts(rest)?, tls).map(BrokerUrl::Amqp),
        "redis" | "rediss" => {
            let parts = parts(rest)?;
            options(parts.query, tls, false)?;
            let db = database(&parts.path)?;
            let endpoint = RedisEndpoint::Tcp { host: loopback(parts.host), port: parts.port.unwrap_or(6379), tls };
            Ok(redis(endpoint, parts.user, parts.password, db))
        }
        "sentinel" => {
            let parts = parts(rest)?;
            options(parts.query, false, false)?;
            let db = database(&parts.path)?;
            let endpoint = RedisEndpoint::Sentinel { host: loopback(parts.host), port: parts.port.unwrap_or(26379) };
            Ok(redis(endpoint, parts.user, parts.password, db))
        }
        "redis+socket" => {
            let parts = parts(rest)?;
            let db = options(parts.query, false, true)?;
            if parts.host.is_some() || parts.port.is_some() || parts.path.is_empty() {
                return Err(UrlProblem::BadSocket);
            }
            let db = db.map_or(Ok(0), |db| database(&db))?;
            let endpoint = RedisEndpoint::Socket(format!("/{}", parts.path).into());
            Ok(redis(endpoint, parts.user, parts.password, db))
        }
        other => Err(UrlProblem::UnknownScheme(ELSEWHERE.into_iter().find(|name| *name == other))),
    }
}

/// Reads alternatives, separated by `;`.
pub(super) fn list(text: &str) -> Result<Vec<BrokerUrl>, UrlProblem> {
    if text.is_empty() {
        return Err(UrlProblem::NoScheme);
    }
    let alternatives = text.split(';');
    alternatives.map(|text| if text.is_empty() { Err(UrlProblem::EmptyAlternative) } else { url(text) }).collect()
}

fn amqp(parts: Parts<'_>, tls: bool) -> Result<AmqpUrl, UrlProblem> {
    options(parts.query, tls, false)?;
    Ok(AmqpUrl {
        host: parts.host.unwrap_or_else(|| "localhost".to_owned()),
        port: parts.port.unwrap_or(if tls { 5671 } else { 5672 }),
        user: parts.user.unwrap_or_else(|| "guest".to_owned()),
        password: Secret::new(parts.password.unwrap_or_else(|| "guest".to_owned())),
        vhost: if parts.path.is_empty() { "/".to_owned() } else { parts.path },
        tls,
    })
}

fn redis(endpoint: RedisEndpoint, user: Option<String>, password: Option<String>, db: u32) -> BrokerUrl {
    BrokerUrl::Redis(RedisUrl { endpoint, user, password: password.map(Secret::new), db })
}

/// kombu's Redis transports fall back to the address, its AMQP transport to the name.
fn loopback(host: Option<String>) -> String {
    host.unwrap_or_else(|| "127.0.0.1".to_owned())
}

/// Takes apart what follows `://`, by the rules of Python's `urlparse`.
fn parts(rest: &str) -> Result<Parts<'_>, UrlProblem> {
    if rest.contains('#') {
        return Err(UrlProblem::Fragment);
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (netloc, path) = before.split_once('/').unwrap_or((before, ""));
    let (user, address) = match netloc.rsplit_once('@') {
        Some((user, address)) => (user, address),
        None => ("", netloc),
    };
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let (host, port) = address_parts(address)?;
    let port = match port {
        "" => None,
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => match text.parse() {
            Ok(port) if port > 0 => Some(port),
            Ok(_) | Err(_) => return Err(UrlProblem::BadPort),
        },
        _ => return Err(UrlProblem::BadPort),
    };
    Ok(Parts { user: given(user)?, password: given(password)?, host, port, path: decoded(path)?, query })
}

fn address_parts(address: &str) -> Result<(Option<String>, &str), UrlProblem> {
    if let Some(inner) = address.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or(UrlProblem::BadIpv6)?;
        // A link-local address may name its interface behind a "%".
        let bare = host.split_once('%').map_or(host, |(bare, _)| bare);
        bare.parse::<Ipv6Addr>().map_err(|_| UrlProblem::BadIpv6)?;
        let port = if after.is_empty() { "" } else { after.strip_prefix(':').ok_or(UrlProblem::BadPort)? };
        return Ok((Some(host.to_ascii_lowercase()), port));
    }
    let (host, port) = address.split_once(':').unwrap_or((address, ""));
    let host = given(host)?.map(|host| host.to_lowercase());
    let foreign = |c: char| c.is_ascii() && !c.is_ascii_alphanumeric() && !matches!(c, '-' | '.' | '_');
    match host {
        Some(host) if host.contains(foreign) => Err(UrlProblem::BadHost),
        host => Ok((host, port)),
    }
}

/// Decoded text, or nothing if it is empty.
fn given(text: &str) -> Result<Option<String>, UrlProblem> {
    decoded(text).map(|text| Some(text).filter(|text| !text.is_empty()))
}

fn decoded(text: &str) -> Result<String, UrlProblem> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| UrlProblem::NotUtf8)?;
    if text.contains('\0') { Err(UrlProblem::WhiteSpace) } else { Ok(text.into_owned()) }
}

/// kombu takes an empty path, and a lone `/`, as database 0, and skips one more `/`.
fn database(path: &str) -> Result<u32, UrlProblem> {
    let number = path.strip_prefix('/').unwrap_or(path);
    if number.is_empty() {
        return Ok(0);
    }
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(UrlProblem::BadDatabase);
    }
    number.parse().map_err(|_| UrlProblem::BadDatabase)
}

/// Refuses every option that would change what the workers' Celery does and not what the gate does. Gives the value of
/// `virtual_host`, where it may stand.
fn options(query: &str, tls: bool, socket: bool) -> Result<Option<String>, UrlProblem> {
    let mut virtual_host = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // kombu drops options with empty values.
        if value.is_empty() {
            continue;
        }
        if let Some((name, setting)) = SETTINGS.into_iter().find(|(option, _)| *option == name) {
            return Err(UrlProblem::OwnSetting(name, setting));
        }
        match name {
            "ssl_cert_reqs" | "ssl_check_hostname" if !tls => return Err(UrlProblem::TlsOnPlain),
            "ssl_cert_reqs" if !matches!(value, "required" | "CERT_REQUIRED") => {
                return Err(UrlProblem::Unverified("ssl_cert_reqs"));
            }
            "ssl_check_hostname" if !value.eq_ignore_ascii_case("true") => {
                return Err(UrlProblem::Unverified("ssl_check_hostname"));
            }
            "ssl_cert_reqs" | "ssl_check_hostname" => {}
            "virtual_host" if socket => virtual_host = Some(decoded(value)?),
            _ => return Err(UrlProblem::UnknownOption),
        }
    }
    Ok(virtual_host)
}
