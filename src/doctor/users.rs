//! The users of workers and producers: with which rights they come, and what they must be refused.

use std::{collections::BTreeMap, net::IpAddr};

use super::Finding;
use crate::settings::{
    BrokerUrl,
    broker_url::{AmqpUrl, RedisEndpoint, UrlProblem},
};

/// The variable with a worker's broker URL. Not a flag, because everybody on the machine can read those, passwords and all.
pub const WORKER_URL: &str = "WORKER_GATE_WORKER_URL";
/// The same for the producers'.
pub const PRODUCER_URL: &str = "WORKER_GATE_PRODUCER_URL";

/// Whose rights are tried; nobody's, if no URL is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// A worker's.
    pub worker: Option<BrokerUrl>,
    /// A producer's.
    pub producer: Option<BrokerUrl>,
}

/// A variable is no broker URL.
#[derive(Debug, thiserror::Error)]
#[error("read {variable}: {problem}")]
pub struct UserProblem {
    variable: &'static str,
    problem: UrlProblem,
}

impl Users {
    /// Reads both variables; an empty one is as one that is not there.
    ///
    /// # Errors
    /// One of them is no broker URL. Nothing of it is in the error.
    pub fn from_env(env: &BTreeMap<String, String>) -> Result<Self, UserProblem> {
        let read = |variable: &'static str| {
            let text = env.get(variable).filter(|text| !text.is_empty());
            text.map(|text| BrokerUrl::parse(text).map_err(|problem| UserProblem { variable, problem })).transpose()
        };
        Ok(Self { worker: read(WORKER_URL)?, producer: read(PRODUCER_URL)? })
    }

    /// Each of them that is given.
    pub(super) fn given(&self) -> impl Iterator<Item = (Who, &BrokerUrl)> {
        let worker = self.worker.iter().map(|url| (Who::Worker, url));
        worker.chain(self.producer.iter().map(|url| (Who::Producer, url)))
    }
}

/// What a user is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Worker,
    Producer,
}

impl Who {
    /// A user of this kind was not refused something.
    pub(super) fn not_refused(self, user: &str, what: &str) -> Finding {
        let who = match self {
            Self::Worker => "worker's",
            Self::Producer => "producer's",
        };
        Finding::serious(
            "not-refused",
            format!("the {who} user {user} may {what}"),
            "give it the rights that worker-gate doctor --grants prints, and no others".to_owned(),
        )
    }
}

/// Credentials that everybody knows, where everybody may come.
pub(super) fn weak(url: &BrokerUrl) -> Option<Finding> {
    match url {
        BrokerUrl::Amqp(AmqpUrl { host, user, password, .. })
            if user == "guest" && password.reveal() == "guest" && !is_loopback(host) =>
        {
            Some(Finding::serious(
                "guest-credentials",
                format!("broker.url logs in to {host} as guest, with the password that everybody knows"),
                "add a user of the gate's own (worker-gate doctor --grants), put it into broker.url, and run: rabbitmqctl \
                 delete_user guest"
                    .to_owned(),
            ))
        }
        BrokerUrl::Redis(redis) if redis.password.is_none() => {
            let RedisEndpoint::Tcp { host, .. } = &redis.endpoint else { return None };
            (!is_loopback(host)).then(|| {
                Finding::serious(
                    "guest-credentials",
                    format!("broker.url logs in to Redis at {host} without a password, as everybody can"),
                    "add users (worker-gate doctor --grants), put the gate's into broker.url, and run: redis-cli ACL SETUSER \
                     default off"
                        .to_owned(),
                )
            })
        }
        BrokerUrl::Amqp(_) | BrokerUrl::Redis(_) => None,
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_knows_is_found_where_everybody_may_come() {
        let weak = |url: &str| weak(&BrokerUrl::parse(url).unwrap()).is_some();
        assert!(weak("amqp://rabbit//") && weak("amqp://guest:guest@10.0.0.1//") && weak("redis://redis/0"));
        assert!(!weak("amqp://localhost//") && !weak("amqp://127.0.0.2//") && !weak("amqp://gate:guest@rabbit//"));
        assert!(!weak("redis://localhost/0") && !weak("redis://:secret@redis/0") && !weak("redis+socket:///r.sock"));
    }

    #[test]
    fn a_variable_that_is_no_url_is_named_and_not_shown() {
        let env = |value: &str| BTreeMap::from([(WORKER_URL.to_owned(), value.to_owned())]);
        assert_eq!(Users::from_env(&env("")).unwrap(), Users::default());
        assert!(Users::from_env(&env("amqp://w:secret@h//")).unwrap().worker.is_some());
        let said = Users::from_env(&env("hunter2@h")).unwrap_err().to_string();
        assert!(said.contains(WORKER_URL) && !said.contains("hunter2"), "{said}");
    }
}
