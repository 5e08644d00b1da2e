//! The users of workers and producers: with which rights they come, and what they must be refused.

use std::{collections::BTreeMap, net::IpAddr};

use super::{DoctorError, Finding};
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

/// A variable is no URL of this broker.
#[derive(Debug, thiserror::Error)]
pub enum UserProblem {
    /// It is no broker URL at all.
    #[error("read {variable}: {problem}")]
    NoUrl {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it; nothing of it is in this.
        problem: UrlProblem,
    },
    /// One of RabbitMQ and Redis is meant here, and the other there.
    #[error("use {variable}: it is for another kind of broker than broker.url")]
    OtherBroker {
        /// Its name.
        variable: &'static str,
    },
}

impl Users {
    /// Reads both variables; an empty one is as one that is not there.
    ///
    /// # Errors
    /// One of them is no URL of this kind of broker. Nothing of it is in the error.
    pub fn from_env(env: &BTreeMap<String, String>, brokers: &[BrokerUrl]) -> Result<Self, UserProblem> {
        let is_redis = brokers.iter().any(|url| url.as_redis().is_some());
        let read = |variable: &'static str| {
            let Some(text) = env.get(variable).filter(|text| !text.is_empty()) else { return Ok(None) };
            match BrokerUrl::parse(text) {
                Ok(url) if url.as_redis().is_some() != is_redis => Err(UserProblem::OtherBroker { variable }),
                Ok(url) => Ok(Some(url)),
                Err(problem) => Err(UserProblem::NoUrl { variable, problem }),
            }
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
    /// The rights of a user of this kind could not be tried.
    pub(super) fn failed(self, error: DoctorError) -> DoctorError {
        let variable = match self {
            Self::Worker => WORKER_URL,
            Self::Producer => PRODUCER_URL,
        };
        DoctorError::User { variable, source: Box::new(error) }
    }

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
        let broker = [BrokerUrl::parse("amqp://h//").unwrap()];
        assert_eq!(Users::from_env(&env(""), &broker).unwrap(), Users::default());
        assert!(Users::from_env(&env("amqp://w:secret@h//"), &broker).unwrap().worker.is_some());
        for wrong in ["hunter2@h", "redis://w:hunter2@h/0"] {
            let said = Users::from_env(&env(wrong), &broker).unwrap_err().to_string();
            assert!(said.contains(WORKER_URL) && !said.contains("hunter2"), "{said}");
        }
    }
}
