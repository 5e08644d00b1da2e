//! What every command needs that asks gates over the broker.

use anyhow::anyhow;
use nix::unistd::{User, geteuid};

use super::{Coded, Context, Exit, prepare, run::broker_exit};
use crate::{
    control::asker::{AskError, Asker},
    edge::fault::Fault,
    settings::Reach,
};

/// Connects, to ask in the name of the user who runs this.
pub(super) async fn connect(context: &Context, reach: &Reach) -> anyhow::Result<Asker> {
    match Asker::connect(&reach.broker, &reach.control, me(context)).await {
        Ok(asker) => Ok(asker),
        Err(AskError::Fault(fault)) => Err(failed(&fault)),
        Err(AskError::Key(error)) => Err(prepare::unusable(&error)),
    }
}

/// What is wrong with the broker, and its exit code.
pub(super) fn failed(fault: &Fault) -> anyhow::Error {
    let remedy = fault.remedy().map_or_else(String::new, |remedy| format!("; {remedy}"));
    let text = anyhow!("failed to {}{remedy}", crate::chain::chain(fault));
    Coded::new(broker_exit(fault.retry(), fault.is_permission()), text).into()
}

/// There is no gate to answer.
pub(super) fn nobody() -> anyhow::Error {
    let text = "no gate is known on this broker: is one running (worker-gate run), and with the same broker.url?";
    Coded::new(Exit::Unreachable, anyhow!(text)).into()
}

/// `user@host`, as far as this process can tell.
fn me(context: &Context) -> String {
    let uid = geteuid();
    // Whoever has become root by sudo is still somebody.
    let name = context.source.env.get("SUDO_USER").filter(|name| uid.is_root() && !name.is_empty()).cloned();
    let name = name.or_else(|| Some(User::from_uid(uid).ok()??.name)).unwrap_or_else(|| format!("uid {uid}"));
    format!("{name}@{}", context.source.hostname)
}
