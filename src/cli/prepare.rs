//! What `run`, `check` and `profile` need before they start: settings, and the users that checks run as.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::anyhow;

use super::{Coded, Context, Exit, exit};
use crate::{
    control::key::{Key, KeyError},
    daemon::Setup,
    identity::{self, GateUser, Identity},
    probe::Runner,
    secret::{Redactor, Secret},
    settings::{BrokerUrl, Loaded, Settings},
};

/// What a gate is made from.
pub(super) fn setup(context: &Context) -> anyhow::Result<Setup> {
    let Loaded { settings, file, .. } = context.settings()?;
    let identities = identities(context, &settings)?;
    let runner = runner(context, &settings)?;
    let key = key(&settings)?;
    Ok(Setup { settings, identities, runner, file, key })
}

/// Requests cannot be signed, or their signatures not be looked at.
pub(super) fn unusable(error: &KeyError) -> anyhow::Error {
    exit::failed(Exit::Settings, error)
}

fn key(settings: &Settings) -> anyhow::Result<Option<Key>> {
    let key = settings.control.key_file.as_deref().map(Key::read).transpose();
    key.map_err(|error| unusable(&error))
}

/// Settings, and everybody whom they name.
pub(super) fn prepare(context: &Context) -> anyhow::Result<(Settings, Vec<Identity>)> {
    let settings = context.settings()?.settings;
    let identities = identities(context, &settings)?;
    Ok((settings, identities))
}

pub(super) fn identities(context: &Context, settings: &Settings) -> anyhow::Result<Vec<Identity>> {
    match identity::resolve(&settings.workers, &user(context)) {
        Ok(identities) => Ok(identities),
        Err(problems) => {
            let exit = if problems.iter().all(identity::IdentityProblem::is_not_permitted) {
                Exit::NotPermitted
            } else {
                Exit::Settings
            };
            let lines: Vec<String> =
                problems.iter().map(|problem| format!("failed to {}", crate::chain::chain(problem))).collect();
            Err(Coded::new(exit, anyhow!(lines.join("\n"))).into())
        }
    }
}

/// As whom the gate runs.
pub(super) fn user(context: &Context) -> GateUser {
    let env = &context.source.env;
    GateUser::current(env.get("HOME").map(PathBuf::from), env.get("PATH").cloned())
}

/// The runner for these settings' checks. It knows every secret in them, so that none comes back in a check's output.
pub(super) fn runner(context: &Context, settings: &Settings) -> anyhow::Result<Runner> {
    let env: &BTreeMap<String, String> = &context.source.env;
    let environment = env.iter().map(|(name, value)| (name.into(), value.into()));
    let secrets = settings.workers.iter().flat_map(|worker| worker.run_as.env.values()).chain(passwords(settings));
    Ok(Runner::start(environment, Redactor::new(secrets))?)
}

fn passwords(settings: &Settings) -> impl Iterator<Item = &Secret> {
    settings.broker.urls.iter().filter_map(|url| match url {
        BrokerUrl::Amqp(url) => Some(&url.password),
        BrokerUrl::Redis(url) => url.password.as_ref(),
    })
}
