//! A POST for each event.

use std::{sync::Arc, time::Duration};

use tokio::task::spawn_blocking;
use ureq::{
    Agent,
    http::{StatusCode, Uri},
    tls::{Certificate, RootCerts, TlsConfig},
};

use super::{
    Event,
    body::{self, Body},
};
use crate::secret::Secret;

/// For the connection alone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// For one POST with its answer. Chat services answer within a second; what takes longer than this is better asked again.
const TIMEOUT: Duration = Duration::from_secs(15);

/// So much of an answer is read, and thrown away, so that the connection can be used again.
const ANSWER: u64 = 64 * 1024;

/// Nothing can be posted there. What is not a URL is not shown, since it may be half of a secret.
#[derive(Debug, thiserror::Error)]
pub enum NoWebhook {
    /// No URL was given.
    #[error(
        "post to a webhook: there is no URL; give it behind --webhook, or in the environment as WORKER_GATE_WEBHOOK_URL"
    )]
    NoUrl,
    /// What was given is no URL with a host.
    #[error("post to a webhook: what --webhook names is no http or https URL")]
    NotAUrl,
    /// Nobody could be believed to be who they say they are.
    #[error(
        "post to {0}: this machine has no certificates of authorities; install ca-certificates, or set SSL_CERT_FILE to a PEM \
         file"
    )]
    NoAuthorities(String),
}

/// Where to post, and what.
#[derive(Debug)]
pub struct Webhook {
    agent: Agent,
    url: Secret,
    /// Scheme, host and port: in the path and the query of a webhook's URL is what lets one in.
    shown: String,
    body: Body,
}

impl Webhook {
    /// A webhook by its URL. A user and a password in the URL are sent as HTTP's basic authorization; the proxy of the
    /// environment is used, if there is one.
    ///
    /// # Errors
    /// If that is no URL of http or https, or this machine cannot tell whom to believe.
    pub fn new(url: Secret, body: Body) -> Result<Self, NoWebhook> {
        if url.reveal().is_empty() {
            return Err(NoWebhook::NoUrl);
        }
        let uri: Uri = url.reveal().parse().map_err(|_| NoWebhook::NotAUrl)?;
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host().filter(|host| !host.is_empty())) else {
            return Err(NoWebhook::NotAUrl);
        };
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(NoWebhook::NotAUrl),
        };
        let shown = format!("{scheme}://{host}:{}", uri.port_u16().unwrap_or(default_port));
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // The path that it leads to may be anybody's, and what is told is not for everybody.
            .max_redirects(0)
            .user_agent(concat!("worker-gate/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT));
        if scheme == "https" {
            let roots = authorities().ok_or_else(|| NoWebhook::NoAuthorities(shown.clone()))?;
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self { agent: config.build().into(), url, shown, body })
    }

    /// Posts what there is to be said of an event; nothing, if that is nothing.
    pub(super) async fn post(&self, event: &Event, published: &str) -> Result<(), String> {
        let Some(body) = body::of(self.body, event, published) else { return Ok(()) };
        let (agent, url, shown) = (self.agent.clone(), self.url.clone(), &self.shown);
        let answer = spawn_blocking(move || {
            let mut answer = agent.post(url.reveal()).header("content-type", "application/json").send(body)?;
            let _ = answer.body_mut().with_config().limit(ANSWER).read_to_vec();
            Ok::<_, ureq::Error>(answer.status())
        });
        match answer.await {
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) => Err(format!("{shown} answered {}", told(status))),
            Ok(Err(error)) => Err(format!("{shown} {}", failed(&error))),
            Err(_) => Err(format!("the POST to {shown} broke off")),
        }
    }
}

/// Whom this machine believes; `SSL_CERT_FILE` and `SSL_CERT_DIR` count.
fn authorities() -> Option<RootCerts> {
    let found = rustls_native_certs::load_native_certs().certs;
    let certificates: Vec<_> = found.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    (!certificates.is_empty()).then(|| RootCerts::Specific(Arc::new(certificates)))
}

fn told(status: StatusCode) -> String {
    let redirect = if status.is_redirection() { ", which leads elsewhere and is not followed" } else { "" };
    let reason = status.canonical_reason().map_or_else(String::new, |reason| format!(" ({reason})"));
    format!("{}{reason}{redirect}", status.as_u16())
}

/// The end of a sentence that begins with whom it is about. Only what is known to be without the URL.
fn failed(error: &ureq::Error) -> String {
    if let ureq::Error::Timeout(_) = error {
        return "did not answer in time".to_owned();
    }
    if let ureq::Error::Io(error) = error {
        return format!("cannot be reached: {error}");
    }
    if let ureq::Error::Rustls(error) = error {
        return format!("cannot be believed: {error}");
    }
    if let ureq::Error::HostNotFound = error {
        return "cannot be reached: there is no such host".to_owned();
    }
    if let ureq::Error::ConnectProxyFailed(_) = error {
        return "cannot be reached: the proxy refuses".to_owned();
    }
    "cannot be reached, or does not speak HTTP".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(url: &str) -> Result<Webhook, NoWebhook> {
        Webhook::new(Secret::new(url), Body::Event)
    }

    #[test]
    fn only_scheme_host_and_port_are_shown() {
        for (url, shown) in [
            ("http://user:geheim@hooks.example/services/geheim?token=geheim#geheim", "http://hooks.example:80"),
            ("http://127.0.0.1:9093/api/v2/alerts", "http://127.0.0.1:9093"),
            ("http://[::1]:8065/hooks/geheim", "http://[::1]:8065"),
        ] {
            let webhook = webhook(url).unwrap();
            assert_eq!(webhook.shown, shown);
            let debug = format!("{webhook:?}");
            assert!(!debug.contains("geheim"), "{debug}");
        }
    }

    #[test]
    fn what_is_no_url_is_refused_and_not_shown() {
        for wrong in
            ["hooks.example/geheim", "ftp://geheim", "http:///geheim", "geheim", "http://a b/geheim", "/geheim"]
        {
            let error = webhook(wrong).unwrap_err().to_string();
            assert!(error.contains("no http or https URL") && !error.contains("geheim"), "{wrong}: {error}");
        }
        assert!(matches!(webhook(""), Err(NoWebhook::NoUrl)));
    }

    #[test]
    fn a_status_is_told_with_its_name() {
        assert_eq!(told(StatusCode::INTERNAL_SERVER_ERROR), "500 (Internal Server Error)");
        assert_eq!(told(StatusCode::FOUND), "302 (Found), which leads elsewhere and is not followed");
    }
}
