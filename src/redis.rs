//! Connections to Redis, made so that they cannot hang or come back by themselves.
//!
//! The crate's own manager reconnects behind its user's back and never after a time-out (DEPENDENCIES.md 2.2), so whoever
//! holds a [`Link`] hears of its end and makes a new one.

use std::{path::Path, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo,
    PushKind, RedisConnectionInfo, RedisError, TlsCertificates, aio::MultiplexedConnection, cmd, io::tcp::TcpSettings,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::settings::{
    self, BrokerUrl,
    broker_url::{RedisEndpoint, RedisUrl},
};

pub mod envelope;
mod error;

pub use error::{ConnectError, is_refusal, retry, text};

/// For the TCP connect, TLS and the greeting together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For one command, until the link counts as broken. Commands take less than a millisecond; a fork of a large Redis, some
/// hundred.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that stops acknowledging is given up by the kernel even while nothing is asked.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// What Redis pushes without being asked: invalidated keys and published messages.
pub type Pushes = mpsc::UnboundedReceiver<PushInfo>;

/// One connection. Commands that are sent on it, from whichever clone of its handle, are done in the order in which they were
/// sent.
#[derive(Debug)]
pub struct Link {
    connection: MultiplexedConnection,
    address: String,
    lost: watch::Receiver<bool>,
}

impl Link {
    /// A handle for commands.
    pub fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    /// Where it leads: host and port, or a socket's path.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Resolves when Redis, or the network, has ended the connection.
    pub async fn lost(&self) {
        // A sender that is gone has ended with the connection.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }
}

/// Connects to the first of the broker's alternatives that answers as a master.
///
/// # Errors
/// The last alternative's error; an error that needs a person wins over one that time may mend.
pub async fn connect(broker: &settings::Broker, purpose: &str) -> Result<(Link, Pushes), ConnectError> {
    let mut worst: Option<ConnectError> = None;
    for url in &broker.urls {
        let BrokerUrl::Redis(url) = url else { return Err(ConnectError::NotRedis) };
        match connect_one(url, broker, purpose).await {
            Ok(link) => return Ok(link),
            Err(error) => {
                if worst.as_ref().is_none_or(|worst| worst.retry() != crate::amqp::Retry::NeedsPerson) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or(ConnectError::NotRedis))
}

/// Whether the broker is behind sentinels.
pub fn has_sentinels(broker: &settings::Broker) -> bool {
    broker.urls.iter().any(BrokerUrl::is_sentinel)
}

/// Where the master is that a sentinel names now; `None` if the broker is not behind sentinels, or none of them answers.
pub async fn master(broker: &settings::Broker) -> Option<String> {
    for url in &broker.urls {
        if let BrokerUrl::Redis(RedisUrl { endpoint: RedisEndpoint::Sentinel { host, port }, .. }) = url
            && let Ok((host, port)) = ask_sentinel(host, *port, &broker.master_name).await
        {
            return Some(format!("{host}:{port}"));
        }
    }
    None
}

async fn connect_one(url: &RedisUrl, broker: &settings::Broker, purpose: &str) -> Result<(Link, Pushes), ConnectError> {
    let (addr, tls) = match &url.endpoint {
        RedisEndpoint::Tcp { host, port, tls: false } => (ConnectionAddr::Tcp(host.clone(), *port), false),
        RedisEndpoint::Tcp { host, port, tls: true } => {
            (ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None }, true)
        }
        RedisEndpoint::Socket(path) => (ConnectionAddr::Unix(path.clone()), false),
        RedisEndpoint::Sentinel { host, port } => {
            let (host, port) = ask_sentinel(host, *port, &broker.master_name).await?;
            (ConnectionAddr::Tcp(host, port), false)
        }
    };
    let address = addr.to_string();
    let mut login = RedisConnectionInfo::default()
        .set_db(i64::from(url.db))
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name();
    if let Some(user) = &url.user {
        login = login.set_username(user);
    }
    if let Some(password) = &url.password {
        login = login.set_password(password.reveal());
    }
    let failed = |error: RedisError| ConnectError::from_redis(&error, address.clone(), url.user.as_deref(), tls);
    let info = addr.into_connection_info().map_err(failed)?;
    let settings = TcpSettings::default().set_nodelay(true).set_user_timeout(USER_TIMEOUT);
    let info = info.set_redis_settings(login).set_tcp_settings(settings);
    let client = if tls { Client::build_with_tls(info, certificates(&broker.tls)?) } else { Client::open(info) };
    let client = client.map_err(failed)?;
    let ((push, pushes), (end, lost)) = (mpsc::unbounded_channel(), watch::channel(false));
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(HANDSHAKE_TIMEOUT))
        .set_response_timeout(Some(COMMAND_TIMEOUT))
        .set_push_sender(move |info: PushInfo| {
            if info.kind == PushKind::Disconnection {
                end.send_replace(true);
            }
            push.send(info)
        });
    // The crate's own limit does not hold for every step.
    let connecting = timeout(HANDSHAKE_TIMEOUT, client.get_multiplexed_async_connection_with_config(&config));
    let Ok(connected) = connecting.await else { return Err(ConnectError::TimedOut { address }) };
    let mut connection = connected.map_err(failed)?;
    let unfit = |detail: &str| ConnectError::Unfit { address: address.clone(), detail: detail.to_owned() };
    // Who may not ask is not in a cluster's way any less, but is told so by the first script.
    let info: String = cmd("INFO").arg("cluster").query_async(&mut connection).await.unwrap_or_default();
    if info.contains("cluster_enabled:1") {
        return Err(unfit(
            "it is a Redis Cluster, where no script can move a message between queues on different nodes, and Celery \
             does not support it; give the address of a single Redis, or of sentinels",
        ));
    }
    let role: Vec<::redis::Value> = cmd("ROLE").query_async(&mut connection).await.unwrap_or_default();
    if matches!(role.first(), Some(::redis::Value::BulkString(role)) if role == b"slave") {
        // Behind a sentinel this passes: the failover is not over.
        return Err(ConnectError::Unreachable {
            address,
            detail: "it is a replica, which takes no messages".to_owned(),
        });
    }
    let name: Cmd = cmd("CLIENT").arg("SETNAME").arg(purpose.replace(' ', ":")).take();
    // Only for whoever reads CLIENT LIST.
    let _ = name.query_async::<()>(&mut connection).await;
    Ok((Link { connection, address, lost }, pushes))
}

/// Asks one sentinel for the master's address.
async fn ask_sentinel(host: &str, port: u16, name: &str) -> Result<(String, u16), ConnectError> {
    let address = format!("{host}:{port}");
    let failed = |detail: String, is_unknown| ConnectError::NoMaster {
        address: address.clone(),
        name: name.to_owned(),
        detail,
        is_unknown,
    };
    let asking = async {
        let client = Client::open(ConnectionAddr::Tcp(host.to_owned(), port))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        cmd("SENTINEL").arg("get-master-addr-by-name").arg(name).query_async(&mut connection).await
    };
    let answer: Result<Result<Option<(String, u16)>, RedisError>, _> = timeout(HANDSHAKE_TIMEOUT, asking).await;
    match answer {
        Ok(Ok(Some(master))) => Ok(master),
        Ok(Ok(None)) => Err(failed("it knows of no master of this name".to_owned(), true)),
        Ok(Err(error)) => Err(failed(text(&error), false)),
        Err(_) => Err(failed("no answer in time".to_owned(), false)),
    }
}

fn certificates(tls: &settings::Tls) -> Result<TlsCertificates, ConnectError> {
    let read = |key: &'static str, path: &Path| {
        std::fs::read(path).map_err(|source| ConnectError::TlsFile { key, path: path.to_owned(), source })
    };
    let root_cert = tls.ca_file.as_deref().map(|path| read("broker.ca_file", path)).transpose()?;
    let client_tls = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("broker.cert_file", cert)?,
            client_key: read("broker.key_file", key)?,
        }),
        (None, _) | (_, None) => None,
    };
    Ok(TlsCertificates { client_tls, root_cert })
}
