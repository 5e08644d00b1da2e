//! The rules that an image has to keep before it may be tagged. All of them are tried, as the worker's user.

use std::{collections::BTreeMap, path::Path, time::Duration};

use jiff::Timestamp;
use semver::Version;

use super::{
    LARGEST, Manifest, Verified,
    published::{List, look_up},
    record::{CHECKS, NODE, ask, files, programs},
};
use crate::{
    glob,
    hash::sha256,
    identity::Identity,
    model::{Failure, ImageState, Outcome},
    probe::Runner,
    regular,
    settings::{Package, Settings},
};

/// The oldest Node.js that counts.
const OLDEST_NODE: u64 = 18;
/// For a smoke test.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One rule, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for programs.
    pub name: String,
    /// Why it does not hold; `None` if it does.
    pub broken: Option<Failure>,
}

/// Everything that was tried.
#[derive(Debug)]
pub struct Verdict {
    /// Each rule, in the order in which they were tried.
    pub rules: Vec<Rule>,
    /// The manifest with the state `verified`, if all of them hold.
    pub verified: Option<Manifest>,
}

/// Tries every rule on a manifest and on the machine as it is now.
pub async fn verify(
    manifest: &Manifest,
    settings: &Settings,
    identity: &Identity,
    runner: &Runner,
    list: Option<&List>,
    now: Timestamp,
) -> Verdict {
    let mut trial = Trial { manifest, settings, identity, runner, rules: Vec::new(), published: BTreeMap::new() };
    trial.base_image();
    trial.node_version();
    trial.versions(now).await;
    trial.published(list).await;
    trial.template().await;
    trial.logs();
    trial.files();
    trial.smoke().await;
    let Trial { rules, published, .. } = trial;
    let verified = rules.iter().all(|rule| rule.broken.is_none()).then(|| Manifest {
        state: ImageState::Verified,
        verified: Some(Verified { at: now, rules: rules.iter().map(|rule| rule.name.clone()).collect(), published }),
        ..manifest.clone()
    });
    Verdict { rules, verified }
}

struct Trial<'a> {
    manifest: &'a Manifest,
    settings: &'a Settings,
    identity: &'a Identity,
    runner: &'a Runner,
    rules: Vec<Rule>,
    published: BTreeMap<String, String>,
}

impl Trial<'_> {
    fn rule(&mut self, name: impl Into<String>, holds: Result<(), (String, String)>) {
        let broken = holds.err().map(|(detail, remedy)| Failure { detail, remedy });
        self.rules.push(Rule { name: name.into(), broken });
    }

    fn base_image(&mut self) {
        let (base, approved) = (&self.manifest.base_image, &self.settings.image.approved_base_images);
        let holds = if approved.iter().any(|pattern| glob::matches(pattern, base)) {
            Ok(())
        } else {
            let approved = if approved.is_empty() { "none".to_owned() } else { approved.join(", ") };
            Err((
                format!("the base image {base:?} is not approved (image.approved_base_images: {approved})"),
                "build on an approved base image, or have this one approved".to_owned(),
            ))
        };
        self.rule("base_image", holds);
    }

    fn node_version(&mut self) {
        let said = &self.manifest.node_version;
        let holds = match Version::parse(said) {
            Ok(version) if version.major >= OLDEST_NODE && version.pre.is_empty() => Ok(()),
            Ok(_) | Err(_) => Err((
                format!("Node.js is {said:?}, and a release of {OLDEST_NODE} or newer is wanted"),
                format!("install Node.js {OLDEST_NODE} or newer, and record the image again"),
            )),
        };
        self.rule("node_version", holds);
    }

    /// What the manifest says is semver, and what the tools say now.
    async fn versions(&mut self, now: Timestamp) {
        let mut missing = Vec::new();
        for (name, program) in programs(self.settings, &mut missing) {
            let listed = self.listed(&name).to_owned();
            if name != NODE {
                let holds = Version::parse(&listed).map(|_| ()).map_err(|_| {
                    (format!("{name}_version is {listed:?}, which is no version"), "record the image again".to_owned())
                });
                self.rule(format!("{name}_version"), holds);
            }
            let holds = match ask(self.identity, self.runner, &program, now).await {
                Ok(said) if said.version == listed => Ok(()),
                Ok(said) => Err((
                    format!("the manifest has {name} {listed}, and `{program} --version` says {}", said.version),
                    "record the image again, after its last change".to_owned(),
                )),
                Err(Failure { detail, remedy }) => Err((detail, remedy)),
            };
            self.rule(format!("{name}_is_installed"), holds);
        }
        for Failure { detail, remedy } in missing {
            self.rule("checks", Err((detail, remedy)));
        }
    }

    fn listed(&self, name: &str) -> &str {
        match name {
            NODE => &self.manifest.node_version,
            "codex_cli" => &self.manifest.codex_cli_version,
            _ => &self.manifest.spec_kit_version,
        }
    }

    async fn published(&mut self, list: Option<&List>) {
        let packages = [&self.settings.image.codex_cli_package, &self.settings.image.spec_kit_package];
        for (name, package) in CHECKS.into_iter().zip(packages) {
            let package: &Package = package;
            let found = look_up(package, self.listed(name), list, self.identity, self.runner).await;
            let holds = match found {
                Ok(from) => {
                    self.published.insert(package.to_string(), from);
                    Ok(())
                }
                Err(Failure { detail, remedy }) => Err((detail, remedy)),
            };
            self.rule(format!("{name}_is_published"), holds);
        }
    }

    /// It is what was recorded, and the worker's user can read it.
    async fn template(&mut self) {
        let path = self.manifest.codex_config_template_path.clone();
        let holds = match regular::read(Path::new(&path), LARGEST) {
            Ok(bytes) if sha256(&bytes) == self.manifest.codex_config_template_hash => Ok(()),
            Ok(_) => Err((
                format!("the template {path} is another one than was recorded"),
                "record the image again, after its last change".to_owned(),
            )),
            Err(error) => {
                Err((format!("the template {path} cannot be read: {error}"), "put it into the image".to_owned()))
            }
        };
        self.rule("template", holds);
        let test = ["/usr/bin/test", "-r", &path].map(str::to_owned);
        let ended = self.runner.run(self.identity, &test, TIMEOUT).await;
        let holds = if ended.outcome == Outcome::ExitCode(0) {
            Ok(())
        } else {
            Err((
                format!("{} cannot read the template {path}", self.identity.user),
                format!("run: chmod a+r {path}, and see that every folder above it may be entered"),
            ))
        };
        self.rule("template_is_readable", holds);
    }

    /// The output of each tool's version command is there.
    fn logs(&mut self) {
        let mut missing = Vec::new();
        for (name, program) in programs(self.settings, &mut missing) {
            let (command, listed) = (format!(" {program} --version: "), self.listed(&name));
            let has = |log: &String| log.contains(&command) && log.contains(listed) && log.contains("[sha256 ");
            let holds = if !listed.is_empty() && self.manifest.install_logs.iter().any(has) {
                Ok(())
            } else {
                Err((
                    format!("install_logs has no output of `{program} --version` with the version {listed:?}"),
                    "record the image again".to_owned(),
                ))
            };
            self.rule(format!("{name}_is_logged"), holds);
        }
    }

    /// Each tool is made of the files that were recorded.
    fn files(&mut self) {
        let mut missing = Vec::new();
        for (name, program) in programs(self.settings, &mut missing) {
            let (now, then) = (files(self.identity, &program), self.manifest.tools.get(&name));
            let other = then.and_then(|then| {
                let changed = then.iter().find(|(path, hash)| now.get(*path) != Some(hash));
                changed.or_else(|| now.iter().find(|(path, _)| !then.contains_key(*path))).map(|(path, _)| path.clone())
            });
            let holds = match (then, other) {
                (Some(then), None) if !then.is_empty() => Ok(()),
                (_, other) => Err((
                    format!(
                        "what {program} is made of is not what was recorded{}",
                        other.map_or_else(String::new, |path| format!(": {path}"))
                    ),
                    "record the image again, after its last change".to_owned(),
                )),
            };
            self.rule(format!("{name}_is_as_recorded"), holds);
        }
    }

    async fn smoke(&mut self) {
        for command in &self.settings.image.smoke {
            let ended = self.runner.run(self.identity, command, TIMEOUT).await;
            let typed = command.join(" ");
            let holds = if ended.outcome == Outcome::ExitCode(0) {
                Ok(())
            } else {
                Err((
                    self.runner.redactor().redact(&format!("`{typed}` {}", ended.detail)),
                    format!("run it as {} and mend what it says", self.identity.user),
                ))
            };
            self.rule(format!("smoke: {typed}"), holds);
        }
    }
}
