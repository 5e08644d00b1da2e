//! One connection to RabbitMQ, made so that it cannot hang, leak, or come back by itself.
//!
//! lapin's own connecting has no timeout that works and its recovery re-opens edges that were shut (DEPENDENCIES.md 1.2,
//! 1.5), so the socket is made here, a second handle on it is kept, and whoever holds a [`Link`] can cut it for good.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_compat::CompatExt;
use async_rs::Runtime;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, Event,
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use nix::sys::socket::{Shutdown, shutdown};
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};

use crate::settings::{self, BrokerUrl, broker_url::AmqpUrl};

mod error;

pub use error::{ConnectError, Retry, retry};

/// For the TCP connect to one address. A host that is up answers within milliseconds; three seconds cover one lost SYN.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);
/// The largest frame that is asked for: RabbitMQ's own default, since a smaller one could not carry every message's
/// headers. Said before the handshake, lapin's two buffers of 32 frames are memory that the kernel gives page by page when
/// it is needed; left to the handshake, lapin fills all 8 MiB of every connection with zeros.
const FRAME_MAX: u32 = 131_072;
/// For TCP, TLS and the AMQP handshake together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection and the knife that cuts it.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    socket: OwnedFd,
}

impl Link {
    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Resolves with the cause when the connection is gone.
    pub fn lost(&self) -> BoxFuture<'static, String> {
        // Boxed, because the listener's type names the borrow that its value does not hold.
        let events = self.connection.events_listener().boxed();
        until_error(events).boxed()
    }

    /// Ends the connection without asking anybody. The broker drops what was exclusive to it as soon as it sees the end of
    /// the stream, so this is also the last resort for shutting an edge.
    pub fn cut(&self) {
        // The socket may be gone already; there is nothing left to cut then.
        let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.socket), Shutdown::Both);
    }

    /// Says goodbye, and cuts if that is not heard within `limit`.
    pub async fn close(&self, limit: Duration) {
        if timeout(limit, self.connection.close(200, "bye".into())).await.is_err() {
            self.cut();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn until_error(mut events: BoxStream<'static, Event>) -> String {
    loop {
        match events.next().await {
            // lapin tells a channel's end here, too; whoever used the channel hears of it by the command that failed.
            Some(Event::Error(cause)) if cause.is_amqp_soft_error() => {}
            Some(Event::Error(cause)) => return cause.to_string(),
            Some(Event::ConnectionBlocked(why)) => {
                tracing::warn!(why, "RabbitMQ blocks publishing; edges can still be shut");
            }
            Some(Event::ConnectionUnblocked) => tracing::info!("RabbitMQ takes messages again"),
            Some(_) => {}
            None => return "the connection ended".to_owned(),
        }
    }
}

/// Connects to the first of the broker's alternatives that answers. `purpose` is shown in RabbitMQ's list of connections.
///
/// # Errors
/// The last alternative's error; an error that needs a person wins over one that time may mend.
pub async fn connect(broker: &settings::Broker, purpose: &str) -> Result<Link, ConnectError> {
    let mut worst: Option<ConnectError> = None;
    for url in &broker.urls {
        let BrokerUrl::Amqp(url) = url else { return Err(ConnectError::NotAmqp) };
        match connect_one(url, broker, purpose).await {
            Ok(link) => return Ok(link),
            Err(error) => {
                if worst.as_ref().is_none_or(|worst| worst.retry() != Retry::NeedsPerson) {
                    worst = Some(error);
                }
            }
        }
    }
    Err(worst.unwrap_or(ConnectError::NotAmqp))
}

async fn connect_one(url: &AmqpUrl, broker: &settings::Broker, purpose: &str) -> Result<Link, ConnectError> {
    let address = format!("{}:{}", url.host, url.port);
    let tls = if url.tls { Some(tls_config(&broker.tls)?) } else { None };
    let knife: Arc<Mutex<Option<OwnedFd>>> = Arc::default();
    let properties = ConnectionProperties::default().with_connection_name(purpose.into());
    let connecting = {
        let (host, port, knife) = (url.host.clone(), url.port, Arc::clone(&knife));
        Connection::connector(
            uri(url, broker.heartbeat),
            Runtime::tokio_current(),
            async move |_: AMQPUri, _: Runtime<_>| {
                let socket = timeout(TCP_TIMEOUT, TcpStream::connect((host.as_str(), port)))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
                socket.set_nodelay(true)?;
                // A peer that stops acknowledging is noticed by the kernel even while nothing is read.
                SockRef::from(&socket).set_tcp_user_timeout(Some(HANDSHAKE_TIMEOUT))?;
                *lock(&knife) = Some(socket.as_fd().try_clone_to_owned()?);
                let stream = AsyncTcpStream::Plain(socket.compat());
                Ok(match &tls {
                    Some(tls) => stream.into_tls(&host, tls.as_ref()).await?,
                    None => stream,
                })
            },
            properties,
        )
    };
    let outcome = timeout(HANDSHAKE_TIMEOUT, connecting).await;
    let socket = lock(&knife).take();
    match (outcome, socket) {
        (Ok(Ok(connection)), Some(socket)) => Ok(Link { connection, socket }),
        (Ok(Err(error)), _) => Err(ConnectError::from_lapin(&error, url, address)),
        (Ok(Ok(_)), None) => Err(ConnectError::TimedOut { address }),
        (Err(_), socket) => {
            // lapin's thread would wait for the rest of the handshake for ever (DEPENDENCIES.md 1.5).
            if let Some(socket) = socket {
                let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&socket), Shutdown::Both);
            }
            Err(ConnectError::TimedOut { address })
        }
    }
}

fn lock(knife: &Mutex<Option<OwnedFd>>) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
    knife.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn uri(url: &AmqpUrl, heartbeat: Duration) -> AMQPUri {
    AMQPUri {
        // The closure above does TLS; lapin only uses the rest.
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: url.user.clone(), password: url.password.reveal().to_owned() },
            host: url.host.clone(),
            port: url.port,
        },
        vhost: url.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX)),
            frame_max: Some(FRAME_MAX),
            ..AMQPQueryString::default()
        },
    }
}

fn tls_config(tls: &settings::Tls) -> Result<OwnedTLSConfig, ConnectError> {
    let read = |key: &'static str, path: &std::path::Path| {
        std::fs::read(path).map_err(|source| ConnectError::TlsFile { key, path: path.to_owned(), source })
    };
    let cert_chain = tls
        .ca_file
        .as_deref()
        .map(|path| {
            let pem = String::from_utf8_lossy(&read("broker.ca_file", path)?).into_owned();
            // lapin takes a file without any certificate silently and fails later as "unknown issuer".
            if pem.contains("-----BEGIN CERTIFICATE-----") {
                Ok(pem)
            } else {
                Err(ConnectError::NoCertificate { path: path.to_owned() })
            }
        })
        .transpose()?;
    let identity = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => {
            Some(OwnedIdentity::PKCS8 { pem: read("broker.cert_file", cert)?, key: read("broker.key_file", key)? })
        }
        (None, _) | (_, None) => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}
