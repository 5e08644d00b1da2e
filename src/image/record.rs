//! Gathers what an image is made of, as the worker's user sees it.

use std::{collections::BTreeMap, path::Path, time::Duration};

use jiff::Timestamp;

use super::{LARGEST, Manifest, SCHEMA};
use crate::{
    hash::{digest, hex, sha256},
    identity::Identity,
    model::{Failure, ImageState, Outcome},
    probe::{Runner, toolchain, version},
    regular,
    settings::Settings,
};

/// For `--version`; a first start of Node.js on a cold disk takes seconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Node.js, as its program is called.
pub(super) const NODE: &str = "node";
/// The checks whose tools a manifest is about.
pub(super) const CHECKS: [&str; 2] = ["codex_cli", "spec_kit"];

/// What `--version` of a tool says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// The version in it.
    pub(super) version: String,
    /// A line for the manifest.
    pub(super) log: String,
}

/// Gathers the manifest of an image on this base.
///
/// # Errors
/// Everything that is missing, at once.
pub async fn record(
    settings: &Settings,
    identity: &Identity,
    runner: &Runner,
    base_image: &str,
    now: Timestamp,
) -> Result<Manifest, Vec<Failure>> {
    let (mut versions, mut logs, mut tools, mut missing) = (BTreeMap::new(), Vec::new(), BTreeMap::new(), Vec::new());
    for (name, program) in programs(settings, &mut missing) {
        match ask(identity, runner, &program, now).await {
            Ok(said) => {
                versions.insert(name.clone(), said.version);
                logs.push(said.log);
            }
            Err(failure) => missing.push(failure),
        }
        tools.insert(name, files(identity, &program));
    }
    let template = settings.profile.as_ref().and_then(|profile| profile.template.clone()).unwrap_or_default();
    let template_hash = match regular::read(&template, LARGEST) {
        Ok(bytes) => sha256(&bytes),
        Err(error) => {
            missing.push(Failure {
                detail: format!("the template {} (profile.template) cannot be read: {error}", template.display()),
                remedy: "put the template into the image, and name it in profile.template".to_owned(),
            });
            String::new()
        }
    };
    if !missing.is_empty() {
        return Err(missing);
    }
    let mut version = |name: &str| versions.remove(name).unwrap_or_default();
    Ok(Manifest {
        schema: SCHEMA,
        state: ImageState::Built,
        base_image: base_image.to_owned(),
        node_version: version(NODE),
        codex_cli_version: version(CHECKS[0]),
        spec_kit_version: version(CHECKS[1]),
        codex_config_template_path: template.display().to_string(),
        codex_config_template_hash: template_hash,
        install_logs: logs,
        tools,
        gate_version: env!("CARGO_PKG_VERSION").to_owned(),
        recorded_at: now,
        verified: None,
    })
}

/// Each tool by its name in the manifest, with its program.
pub(super) fn programs(settings: &Settings, missing: &mut Vec<Failure>) -> Vec<(String, String)> {
    let mut programs = vec![(NODE.to_owned(), NODE.to_owned())];
    for name in CHECKS {
        let program = settings.checks.get(name).and_then(|check| check.run.first()?.first());
        match program {
            Some(program) => programs.push((name.to_owned(), program.clone())),
            None => missing.push(Failure {
                detail: format!("there is no check named {name}, whose tool the manifest is about"),
                remedy: format!("add [checks.{name}] to the settings"),
            }),
        }
    }
    programs
}

/// Asks a tool for its version.
pub(super) async fn ask(identity: &Identity, runner: &Runner, program: &str, now: Timestamp) -> Result<Said, Failure> {
    let ended = runner.run(identity, &[program.to_owned(), "--version".to_owned()], TIMEOUT).await;
    let printed = runner.redactor().redact(&ended.stdout.text());
    let found = version::find(&printed);
    match (ended.outcome, found) {
        (Outcome::ExitCode(0), Some(version)) => {
            let line = printed.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
            let log = format!("{now:.0} {program} --version: {line} [sha256 {}]", sha256(printed.as_bytes()));
            Ok(Said { version: version.to_string(), log })
        }
        (Outcome::ExitCode(0), None) => Err(Failure {
            detail: format!("`{program} --version` prints no version"),
            remedy: format!("see what it prints as {}", identity.user),
        }),
        (_, _) => Err(Failure {
            detail: runner.redactor().redact(&format!("`{program} --version` {}", ended.detail)),
            remedy: format!("install {program} so that {} finds it on its PATH", identity.user),
        }),
    }
}

/// The files that decide what a program runs, each with its sha256.
pub(super) fn files(identity: &Identity, program: &str) -> BTreeMap<String, String> {
    let hashed = |path: &Path| {
        let file = regular::open(path).ok()?;
        Some(hex(&digest(&file, toolchain::LARGEST).ok()?))
    };
    let chain = toolchain::chain(identity, program);
    chain.iter().filter_map(|path| Some((path.display().to_string(), hashed(path)?))).collect()
}
