//! `worker-gate profile show|diff|apply`: text in, text out. Nothing here prints or exits.

use std::{fmt::Write as _, path::Path};

use jiff::Timestamp;
use serde_json::json;

use super::Exit;
use crate::{
    identity::Identity,
    model::{ProfileReport, ProfileState, WorkerName},
    profile::{
        self, ApplyError, Target,
        managed::{self, Managed},
    },
    settings::Profile,
};

/// What a command says, and how it ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// For stdout; ends with a newline unless it is empty.
    pub stdout: String,
    /// For stderr: problems and warnings; ends with a newline unless it is empty.
    pub stderr: String,
    /// How the program ends.
    pub exit: Exit,
}

/// What the three commands have in common.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// All identities of the gate.
    pub identities: &'a [Identity],
    /// `--worker`: only the profile of this worker.
    pub worker: Option<&'a str>,
    /// `[profile]`.
    pub profile: &'a Profile,
    /// `gate.state_dir`.
    pub state_dir: &'a Path,
}

/// One profile and all workers that it speaks for.
struct One<'a> {
    identity: &'a Identity,
    workers: Vec<WorkerName>,
}

impl<'a> Command<'a> {
    /// Every profile once: identities that differ only in PATH or environment share one.
    fn profiles(&self) -> Result<Vec<One<'a>>, Output> {
        let mut all: Vec<One<'a>> = Vec::new();
        for identity in self.identities {
            let same = |one: &&mut One<'_>| {
                (&one.identity.home, one.identity.uid, one.identity.gid) == (&identity.home, identity.uid, identity.gid)
            };
            match all.iter_mut().find(same) {
                Some(one) => one.workers.extend(identity.workers.iter().cloned()),
                None => all.push(One { identity, workers: identity.workers.clone() }),
            }
        }
        let Some(worker) = self.worker else { return Ok(all) };
        all.retain(|one| one.workers.iter().any(|name| name.as_str() == worker));
        if all.is_empty() {
            let known: Vec<_> = self.identities.iter().flat_map(|i| &i.workers).map(WorkerName::as_str).collect();
            let stderr = format!("no worker is named {worker:?}; the settings have {}\n", known.join(", "));
            return Err(Output { stderr, exit: Exit::Usage, ..Output::default() });
        }
        Ok(all)
    }

    fn target<'t>(&'t self, one: &'t One<'_>) -> Target<'t> {
        Target { workers: &one.workers, ..Target::new(one.identity, self.profile) }
    }
}

/// `profile show`: the state of every profile; exit code 0 if all are managed, else 1.
pub fn show(command: Command<'_>, json: bool) -> Output {
    let profiles = match command.profiles() {
        Ok(profiles) => profiles,
        Err(output) => return output,
    };
    let mut output = Output::default();
    let managed = Managed::read(command.state_dir).unwrap_or_else(|error| {
        let _ = writeln!(output.stderr, "warning: cannot {error}; managed_on is unknown");
        Managed::default()
    });
    let mut reports = Vec::new();
    for one in &profiles {
        let mut report = profile::inspect(command.target(one), None);
        report.managed_on = managed.on(&report.path);
        if report.state != ProfileState::Managed {
            output.exit = Exit::Unfit;
        }
        reports.push((one, report));
    }
    output.stdout = if json {
        let all: Vec<_> = reports.iter().map(|(one, report)| as_json(&one.workers, report)).collect();
        format!("{:#}\n", serde_json::Value::Array(all))
    } else {
        let all: Vec<_> = reports.iter().map(|(one, report)| as_text(&one.workers, report)).collect();
        all.join("\n")
    };
    output
}

fn as_json(workers: &[WorkerName], report: &ProfileReport) -> serde_json::Value {
    let mut object = json!({ "workers": workers });
    // A report is a struct of plain values, so this cannot fail; an object without it would be noticed at once.
    if let (Some(object), Ok(serde_json::Value::Object(report))) =
        (object.as_object_mut(), serde_json::to_value(report))
    {
        object.extend(report);
    }
    object["config_hash"] = json!(report.config_hash);
    object["policy_hash"] = json!(report.policy_hash);
    object["problem"] = json!(report.problem);
    object
}

fn as_text(workers: &[WorkerName], report: &ProfileReport) -> String {
    let workers: Vec<_> = workers.iter().map(WorkerName::as_str).collect();
    let state = match report.state {
        ProfileState::Managed => "managed",
        ProfileState::Drifted => "drifted",
        ProfileState::Missing => "missing",
    };
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("profile", &report.path);
    line("state", state);
    line("workers", &workers.join(", "));
    if let (Some(uid), Some(gid)) = (report.owner_uid, report.owner_gid) {
        line("owner", &format!("{uid}:{gid}"));
    }
    for (key, value) in &report.enforced {
        let value = if value.is_null() { "not set".to_owned() } else { value.to_string() };
        line("enforced", &format!("{key} = {value}"));
    }
    if !report.extra_settings.is_empty() {
        line("other keys", &report.extra_settings.keys().map(String::as_str).collect::<Vec<_>>().join(", "));
    }
    if let Some(hash) = &report.config_hash {
        line("config_hash", hash);
    }
    if let Some(hash) = &report.policy_hash {
        line("policy_hash", hash);
    }
    line("managed_on", &report.managed_on.map_or_else(|| "never".to_owned(), |at| at.to_string()));
    if let Some(problem) = &report.problem {
        line("problem", &problem.detail);
        line("remedy", &problem.remedy);
    }
    out
}

/// `profile diff`: what apply would change; exit code 0 if that is nothing, else 1.
pub fn diff(command: Command<'_>) -> Output {
    let profiles = match command.profiles() {
        Ok(profiles) => profiles,
        Err(output) => return output,
    };
    let mut output = Output::default();
    for one in &profiles {
        let target = command.target(one);
        match profile::diff(target) {
            Ok(None) => {}
            Ok(Some(text)) => {
                output.stdout.push_str(&text);
                output.exit = Exit::Unfit;
            }
            Err(error) => {
                complain(&mut output, &error, &target);
                output.exit = Exit::Unfit;
            }
        }
    }
    output
}

/// `profile apply`: merges the enforced keys into every profile. Each one is tried, whatever becomes of the others.
/// Exit code 0 if all are done, 77 if one needs another user's rights, else 1.
pub fn apply(command: Command<'_>, now: Timestamp) -> Output {
    let profiles = match command.profiles() {
        Ok(profiles) => profiles,
        Err(output) => return output,
    };
    let mut output = Output::default();
    for one in &profiles {
        let target = command.target(one);
        match managed::apply_and_record(target, command.state_dir, now) {
            Ok((applied, warning)) => {
                let path = profile::shown_path(&applied.path);
                let what = match (applied.created, applied.changed.as_slice()) {
                    (true, _) => "created".to_owned(),
                    (false, []) => "nothing to change".to_owned(),
                    (false, keys) => format!("set {}", keys.join(", ")),
                };
                let _ = writeln!(output.stdout, "{path}: {what}");
                if let Some(warning) = warning {
                    let _ = writeln!(output.stderr, "warning: cannot {warning}; managed_on is not updated");
                }
            }
            Err(error) => {
                complain(&mut output, &error, &target);
                if output.exit != Exit::NotPermitted {
                    output.exit = if error.is_permission() { Exit::NotPermitted } else { Exit::Unfit };
                }
            }
        }
    }
    output
}

fn complain(output: &mut Output, error: &ApplyError, target: &Target<'_>) {
    let _ = writeln!(output.stderr, "error: failed to {error}\n  remedy: {}", error.remedy(target));
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use nix::unistd::{getegid, geteuid};

    use super::*;
    use crate::{
        model::IdentityId,
        settings::{Enforced, OnDrift},
    };

    struct Host {
        dir: tempfile::TempDir,
        identities: Vec<Identity>,
        profile: Profile,
    }

    impl Host {
        /// Workers `a` and `b` share a home, with another PATH each; `c` has its own.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let identity = |index: usize, home: &str, worker: &str| {
                let home = dir.path().canonicalize().unwrap().join(home);
                fs::create_dir_all(&home).unwrap();
                Identity {
                    id: IdentityId(index),
                    user: "someone".to_owned(),
                    uid: geteuid(),
                    gid: getegid(),
                    groups: vec![getegid()],
                    home,
                    path: format!("/{worker}/bin"),
                    env: [].into(),
                    workers: vec![WorkerName::new(worker)],
                }
            };
            let identities = vec![identity(0, "one", "a"), identity(1, "one", "b"), identity(2, "two", "c")];
            let enforced =
                Enforced { key: vec!["approval_policy".to_owned()], value: toml::Value::String("never".to_owned()) };
            let profile = Profile {
                path: "~/.codex/config.toml".to_owned(),
                template: None,
                enforce: vec![enforced],
                on_drift: OnDrift::Report,
            };
            Self { dir, identities, profile }
        }

        fn state_dir(&self) -> PathBuf {
            self.dir.path().join("state")
        }
    }

    fn with<T>(host: &Host, worker: Option<&str>, run: impl FnOnce(Command<'_>) -> T) -> T {
        let state_dir = host.state_dir();
        run(Command { identities: &host.identities, worker, profile: &host.profile, state_dir: &state_dir })
    }

    #[test]
    fn the_three_commands_go_from_missing_to_managed() {
        let host = Host::new();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(with(&host, None, |c| show(c, false)).exit, Exit::Unfit);
        let diffed = with(&host, None, diff);
        assert_eq!((diffed.exit, diffed.stdout.matches("--- /dev/null").count()), (Exit::Unfit, 2));
        let applied = with(&host, None, |c| apply(c, now));
        assert_eq!((applied.exit, applied.stdout.matches(": created\n").count()), (Exit::Done, 2), "{applied:?}");
        assert_eq!(applied.stderr, "");
        assert_eq!(with(&host, None, diff), Output::default());
        let shown = with(&host, None, |c| show(c, true));
        assert_eq!(shown.exit, Exit::Done);
        let json: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 2);
        assert_eq!(json[0]["workers"], json!(["a", "b"]));
        assert_eq!(json[0]["state"], "managed");
        assert_eq!(json[0]["managed_on"], "2023-11-14T22:13:20Z");
        assert_eq!(json[0]["enforced"], json!({ "approval_policy": "never" }));
        assert_eq!(json[0]["config_hash"].as_str().unwrap().len(), 64);
        let text = with(&host, Some("c"), |c| show(c, false)).stdout;
        assert!(text.contains("state        managed\nworkers      c\n"), "{text}");

        // The time moves on although nothing changes.
        let later = Timestamp::from_second(1_800_000_000).unwrap();
        let again = with(&host, Some("b"), |c| apply(c, later));
        assert!(again.stdout.ends_with("config.toml: nothing to change\n"), "{again:?}");
        let text = with(&host, None, |c| show(c, false)).stdout;
        assert!(text.contains(&format!("managed_on   {later}")) && text.contains(&format!("managed_on   {now}")));
    }

    #[test]
    fn one_bad_profile_does_not_keep_the_others_from_being_mended() {
        let host = Host::new();
        fs::create_dir(host.identities[0].home.join(".codex")).unwrap();
        fs::write(host.identities[0].home.join(".codex/config.toml"), "x = = 1").unwrap();
        let applied = with(&host, None, |c| apply(c, Timestamp::UNIX_EPOCH));
        assert_eq!(applied.exit, Exit::Unfit);
        assert!(applied.stdout.contains("two/.codex/config.toml: created"), "{applied:?}");
        assert!(applied.stderr.contains("one/.codex/config.toml is not TOML: line 1"), "{applied:?}");
        assert!(applied.stderr.contains("then run: worker-gate profile apply --worker a"), "{applied:?}");
    }

    #[test]
    fn a_state_directory_that_cannot_be_written_is_a_warning() {
        let host = Host::new();
        fs::write(host.state_dir(), "in the way").unwrap();
        let applied = with(&host, Some("c"), |c| apply(c, Timestamp::UNIX_EPOCH));
        assert_eq!(applied.exit, Exit::Done);
        let expected = format!("warning: cannot create {}", host.state_dir().display());
        assert!(applied.stderr.starts_with(&expected), "{applied:?}");
    }

    #[test]
    fn an_unknown_worker_is_wrong_usage_and_the_known_ones_are_named() {
        let host = Host::new();
        let output = with(&host, Some("x"), diff);
        assert_eq!(output.exit, Exit::Usage);
        assert_eq!(output.stderr, "no worker is named \"x\"; the settings have a, b, c\n");
    }
}
