//! kombu's binding of an exchange on Redis: a set of members in which producers look up where to push (FACTS.md, "Redis, as
//! kombu uses it"). It is no edge, because a producer reads it first and pushes later; so it always leads to the holding
//! queue, and the gate moves from there.

use ::redis::{Script, aio::MultiplexedConnection};

use super::{fault, keys::SEPARATOR};
use crate::{
    edge::fault::Fault,
    settings::{Broker, IntakeType},
};

/// The binding of one worker's exchange and keys.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) exchange: String,
    lane: String,
    /// The set, which kombu's producers read.
    pub(super) table: String,
    /// Members that no deadline takes away (kombu 5.7).
    permanent: String,
    members: Vec<String>,
    script: Script,
}

impl Binding {
    pub(super) fn new(
        broker: &Broker,
        (exchange, kind, keys): (&str, IntakeType, &[String]),
        queue: &str,
        lane: &str,
    ) -> Self {
        let prefix = &broker.global_keyprefix;
        let pattern = |key: &str| match kind {
            IntakeType::Topic => pattern(key),
            IntakeType::Direct | IntakeType::ConsistentHash => String::new(),
        };
        let member = |key: &String| [key.as_str(), &pattern(key), queue].join(SEPARATOR);
        Self {
            exchange: exchange.to_owned(),
            lane: lane.to_owned(),
            table: format!("{prefix}_kombu.binding.{exchange}"),
            permanent: format!("{prefix}_kombu.binding_permanent.{exchange}"),
            members: keys.iter().map(member).collect(),
            script: Script::new(include_str!("scripts/bind.lua")),
        }
    }

    /// Makes it as it has to be. Says by which keys the lane could be reached until now.
    pub(super) async fn make(&self, connection: &mut MultiplexedConnection) -> Result<Vec<String>, Fault> {
        let mut invocation = self.script.prepare_invoke();
        invocation.key(&self.table).key(&self.permanent).arg(SEPARATOR).arg(&self.lane).arg(&self.members);
        let away: Vec<String> =
            invocation.invoke_async(connection).await.map_err(|error| fault("bind the intake", error))?;
        let key = |member: &String| member.split(SEPARATOR).next().unwrap_or_default().to_owned();
        Ok(away.iter().map(key).collect())
    }

    /// Takes it away; what is not there is no error.
    pub(super) async fn remove(&self, connection: &mut MultiplexedConnection) -> Result<(), Fault> {
        let mut commands = ::redis::pipe();
        for table in [&self.table, &self.permanent] {
            commands.cmd("SREM").arg(table).arg(&self.members).ignore();
        }
        commands.query_async(connection).await.map_err(|error| fault("unbind the intake", error))
    }
}

/// The regular expression that kombu writes beside a topic's key (kombu/transport/virtual/exchange.py, `key_to_pattern`).
fn pattern(key: &str) -> String {
    let word = |word: &str| match word {
        "*" => r"[^\.]+".to_owned(),
        "#" => r".*?".to_owned(),
        word => word.chars().fold(String::new(), |mut text, letter| {
            if !letter.is_alphanumeric() && !matches!(letter, '#' | '*') {
                text.push('\\');
            }
            text.push(letter);
            text
        }),
    };
    format!("^{}$", key.split('.').map(word).collect::<Vec<_>>().join(r"\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topics_pattern_is_the_one_that_kombu_writes() {
        for (key, expected) in [
            ("codex", "^codex$"),
            ("a.*.c", r"^a\.[^\.]+\.c$"),
            ("#", "^.*?$"),
            ("a.#", r"^a\..*?$"),
            ("codex-0", r"^codex\-0$"),
            ("a*b", "^a*b$"),
        ] {
            assert_eq!(pattern(key), expected, "{key}");
        }
    }
}
