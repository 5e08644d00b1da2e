//! What this machine shows of workers: whose their processes are, and which tools those users find.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User};

use super::{Drafted, Owner, Profile, Tool};
use crate::{
    doctor::told::Told,
    edge::recycle::process::Found,
    identity::{GateUser, Identity, look_up},
    model::WorkerName,
    probe::program::{Located, locate, may_run},
    settings::RunAs,
};

/// The tools that are known here, by the names of their checks, with the names that each may have.
const TOOLS: [(&str, &[&str]); 2] = [("codex_cli", &["codex"]), ("spec_kit", &["speckit", "specify"])];
/// Where an image has what a missing config is made from.
const TEMPLATE: &str = "/etc/codex/config.toml";
/// Of the user's home.
const CONFIG: &str = ".codex/config.toml";

/// Whether a worker runs on this host: its name says so, or a process of Celery's here that has its number and its name.
pub(super) fn is_here(node: &str, told: &Told, host: &str) -> bool {
    is_of(node, host) || process(told).is_ok_and(|(_, _, command)| names(&command, node))
}

/// Whether a command line has this name, as in `-n NAME`, `--hostname=NAME`, or the title that setproctitle gives it:
/// `[celeryd: NAME:MainProcess]`.
fn names(command: &str, node: &str) -> bool {
    command.split([' ', '=', ':']).any(|word| word == node || word.strip_prefix("-n") == Some(node))
}

fn is_of(node: &str, host: &str) -> bool {
    node.rsplit_once('@').is_some_and(|(_, of)| of.eq_ignore_ascii_case(host))
}

/// The process that a worker says it is, if there is one of Celery's with that number here.
fn process(told: &Told) -> Result<(u32, Found, String), String> {
    let (pid, _) = told.process.as_ref().ok_or("it does not say which process it is")?;
    let found = Found::at(*pid).map_err(|why| format!("it answers as process {pid}, and {why}"))?;
    let command = found.command().map_err(|why| format!("it answers as process {pid}, and {why}"))?;
    Ok((*pid, found, command))
}

/// Whose process a worker is, and with which home and PATH it was started.
pub(super) fn owner(node: &str, told: &Told, host: &str, gate: &GateUser) -> Owner {
    let (pid, found, command) = match process(told) {
        Ok(found) => found,
        Err(why) => return Owner::Unknown(why),
    };
    // Every container counts its processes from 1.
    if !is_of(node, host) && !names(&command, node) {
        return Owner::Unknown(format!("process {pid} of this machine is another worker's"));
    }
    let Ok(Some(user)) = User::from_uid(found.uid) else {
        return Owner::Unknown(format!("process {pid} belongs to uid {}, which has no name here", found.uid));
    };
    // The gate takes its own HOME for its own user's, and that of passwd for everybody else's.
    let is_known = |home: &PathBuf| found.uid != gate.uid && *home == user.dir;
    let home = found.variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute() && !is_known(home));
    let path = found.variable("PATH").filter(|path| !path.is_empty());
    let codex_home = found.variable("CODEX_HOME").filter(|home| !home.is_empty());
    Owner::Known { pid, user: user.name, home, path, codex_home }
}

/// As whom the checks of these workers would run. Nothing is run here, so that it needs no leave to become somebody else.
pub(super) fn identities(workers: &[Drafted], gate: &GateUser) -> Vec<Identity> {
    let mut found: Vec<Identity> = Vec::new();
    for worker in workers {
        let run_as = match &worker.owner {
            Owner::Known { user, home, path, .. } => {
                RunAs { user: Some(user.clone()), home: home.clone(), path_env: path.clone(), env: BTreeMap::new() }
            }
            Owner::Unknown(_) => RunAs::default(),
        };
        let is_own = run_as.user.as_ref().is_none_or(|name| {
            User::from_name(name).is_ok_and(|entry| entry.is_some_and(|entry| entry.uid == gate.uid))
        });
        let may_be_anybody = GateUser { uid: if is_own { gate.uid } else { Uid::from_raw(0) }, ..gate.clone() };
        let identity = look_up(&run_as, vec![WorkerName::new(&worker.name)], &may_be_anybody);
        // Whoever has no home, or left passwd just now, is told of by `worker-gate check`.
        found.extend(identity.ok().filter(|identity| !found.iter().any(|other| other.sees_what(identity))));
    }
    found
}

/// Which tools these users find.
pub(super) fn tools(identities: &[Identity]) -> Vec<Tool> {
    TOOLS.into_iter().map(|(check, names)| tool(check, names, identities)).collect()
}

fn tool(check: &'static str, names: &'static [&'static str], identities: &[Identity]) -> Tool {
    let at = |name: &str, identity: &Identity| match locate(name, identity) {
        Located::At(path) if may_run(identity, &path) => Some(path),
        Located::At(_) | Located::Nowhere => None,
    };
    let is_found = |name: &&&str| identities.iter().any(|identity| at(name, identity).is_some());
    let program = names.iter().find(is_found).or(names.first()).copied().unwrap_or_default();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for identity in identities {
        match at(program, identity) {
            Some(path) if !found.contains(&path) => found.push(path),
            Some(_) => {}
            None => missing.push(identity.user.clone()),
        }
    }
    missing.dedup();
    Tool { check, program, found, missing }
}

/// Which of these users have a config that can be managed.
pub(super) fn profile(identities: &[Identity]) -> Profile {
    let found = identities.iter().map(|identity| identity.home.join(CONFIG)).filter(|path| path.exists());
    let template = Some(Path::new(TEMPLATE)).filter(|path| path.is_file()).map(Path::to_owned);
    Profile { found: found.collect(), template }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn a_worker_is_here_by_its_name_or_by_its_process() {
        let silent = Told::default();
        assert!(is_here("a@h", &silent, "H") && !is_here("a@h", &silent, "other") && !is_here("h", &silent, "h"));
        // This test's own process is none of Celery's.
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let other = Told { process: Some((child.id(), "prefork".to_owned())), ..Told::default() };
        assert!(!is_here("a@h", &other, "other"));
        let gate = GateUser::current(None, None);
        let Owner::Unknown(why) = owner("a@h", &other, "h", &gate) else { panic!("it is no worker") };
        assert!(why.contains("does not say celery"), "{why}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_command_line_names_a_worker_as_a_whole_word() {
        for command in
            ["celery worker -n a@h ", "-na@h", "python --hostname=a@h", "[celeryd: a@h:MainProcess] -active-"]
        {
            assert!(names(command, "a@h"), "{command}");
        }
        assert!(!names("celery worker -n a@h-1", "a@h") && !names("celery worker -n ba@h", "a@h"));
    }

    #[test]
    fn whose_process_a_worker_is_shows_in_its_user_and_in_what_it_was_started_with() {
        let mut child = Command::new("sh");
        child.args(["-c", "echo; read never", "celery worker -n a@h"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        child.env_clear().envs([("HOME", "/srv/a"), ("PATH", "/opt/a:/usr/bin:/bin"), ("CODEX_HOME", "/srv/codex")]);
        let mut child = child.spawn().unwrap();
        // By then it is what it is to be.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let told = Told { process: Some((child.id(), "solo".to_owned())), ..Told::default() };
        let gate = GateUser::current(None, None);
        assert!(is_here("a@h", &told, "other") && !is_here("b@h", &told, "other"));
        let expected = Owner::Known {
            pid: child.id(),
            user: User::from_uid(gate.uid).unwrap().unwrap().name,
            home: Some("/srv/a".into()),
            path: Some("/opt/a:/usr/bin:/bin".to_owned()),
            codex_home: Some("/srv/codex".to_owned()),
        };
        assert_eq!(owner("a@h", &told, "other", &gate), expected);
        let Owner::Unknown(why) = owner("b@h", &told, "other", &gate) else { panic!("it is another one's") };
        assert!(why.contains("another worker's"), "{why}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_tool_is_one_that_the_user_may_run_by_whichever_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let gate = GateUser::current(Some(folder.path().to_owned()), Some(folder.path().display().to_string()));
        let identity = look_up(&RunAs::default(), vec![WorkerName::new("a@h")], &gate).unwrap();
        let looked = |identity: &Identity| tools(std::slice::from_ref(identity));
        put("codex", 0o644);
        let specify = put("specify", 0o755);
        let [codex, spec_kit] = &looked(&identity)[..] else { panic!("two tools are known") };
        assert_eq!((codex.program, &codex.found, &codex.missing), ("codex", &vec![], &vec![identity.user.clone()]));
        assert_eq!((spec_kit.program, &spec_kit.found), ("specify", &vec![specify]));
        put("codex", 0o755);
        let other = put("speckit", 0o755);
        let [codex, spec_kit] = &looked(&identity)[..] else { panic!("two tools are known") };
        assert!(codex.missing.is_empty() && spec_kit.found == [other]);
    }
}
