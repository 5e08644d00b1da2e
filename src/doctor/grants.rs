//! The rights that these settings need, as commands to run: for each worker, for the producers, and for the gate. Pure: it
//! looks at nothing but the settings, and no password is in what it gives.
//!
//! What a worker may not do is the point of them: it neither reads an intake nor binds to it, and it reaches no lane but its
//! own. It may publish to the intake, because Celery sends a task's retry to where its message came from.

use crate::settings::{BrokerUrl, Settings};

mod rabbitmq;
mod redis;

/// What stands for a password in commands that need one.
const PASSWORD: &str = "PASSWORD";

/// A user, what it may do and why.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    /// Sentences about it, each a comment of its own.
    notes: Vec<String>,
    /// One command, ready to run.
    line: String,
}

/// Every line to print.
pub fn grants(settings: &Settings) -> String {
    let url = settings.broker.urls.first();
    let (head, grants) = match url {
        Some(BrokerUrl::Amqp(url)) => rabbitmq::grants(settings, url),
        Some(BrokerUrl::Redis(_)) | None => redis::grants(settings, url.and_then(BrokerUrl::as_redis)),
    };
    let mut lines: Vec<String> = head.iter().map(|note| comment(note)).collect();
    for grant in grants {
        lines.push(String::new());
        lines.extend(grant.notes.iter().map(|note| comment(note)));
        lines.push(grant.line);
    }
    lines.join("\n") + "\n"
}

fn comment(text: &str) -> String {
    format!("# {text}")
}

/// The name of a worker's user: its lane's, which is shorter than its node's and has no @ that a URL would have to encode.
fn worker_user(lane: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '-' };
    format!("worker-{}", lane.chars().map(plain).collect::<String>())
}

/// The producers' user.
const PRODUCER: &str = "producer";

/// The user of whoever looks and commands from elsewhere.
const OPERATOR: &str = "operator";

/// The gate's user: the one whom the settings name, unless that is the one who may do everything.
fn gate_user(named: Option<&str>) -> String {
    named.filter(|name| !matches!(*name, "guest" | "default" | "")).unwrap_or("gate").to_owned()
}

#[cfg(test)]
mod tests;
