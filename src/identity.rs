//! As whom checks run: a set of workers' user, home, PATH and environment, looked up once at start.

use std::{
    collections::BTreeMap,
    ffi::CString,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{Gid, Uid, User, getgrouplist},
};
use thiserror::Error;

use crate::{
    model::{IdentityId, WorkerName},
    secret::Secret,
    settings::{RunAs, Worker},
};

mod access;

pub(crate) use access::Who;

/// One user's view of the machine, and the workers that it stands for.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its place in the gate's list.
    pub id: IdentityId,
    /// Login name.
    pub user: String,
    /// User id.
    pub uid: Uid,
    /// Primary group id.
    pub gid: Gid,
    /// All groups, the primary one included.
    pub groups: Vec<Gid>,
    /// HOME.
    pub home: PathBuf,
    /// PATH.
    pub path: String,
    /// What settings add to the environment.
    pub env: BTreeMap<String, Secret>,
    /// Who is vouched for by this identity's checks.
    pub workers: Vec<WorkerName>,
}

impl Identity {
    /// For whom the mode bits count.
    pub(crate) fn who(&self) -> Who<'_> {
        Who { uid: self.uid, groups: &self.groups }
    }

    /// Whether the checks of both would run alike.
    pub(crate) fn sees_what(&self, other: &Self) -> bool {
        (self.uid, self.gid, &self.groups, &self.home, &self.path, &self.env)
            == (other.uid, other.gid, &other.groups, &other.home, &other.path, &other.env)
    }
}

/// What the gate knows of itself; `main` reads it once.
#[derive(Debug, Clone)]
pub struct GateUser {
    /// The gate's effective user.
    pub uid: Uid,
    /// The gate's effective group.
    pub gid: Gid,
    /// The gate's supplementary groups.
    pub groups: Vec<Gid>,
    /// `$HOME`
    pub home: Option<PathBuf>,
    /// `$PATH`
    pub path: Option<String>,
}

impl GateUser {
    /// The running process, with the two variables that its caller has read.
    pub fn current(home: Option<PathBuf>, path: Option<String>) -> Self {
        Self {
            uid: Uid::effective(),
            gid: Gid::effective(),
            // Only ever refused for a buffer that is too small, which nix rules out.
            groups: nix::unistd::getgroups().unwrap_or_default(),
            home,
            path,
        }
    }
}

/// Why a worker's checks cannot run as the settings want. Each names the worker, the key and the remedy.
#[derive(Debug, Error)]
pub enum IdentityProblem {
    /// No such user in passwd.
    #[error(
        "find the user \"{user}\" that run_as of worker \"{worker}\" names; create the user, or correct workers.run_as"
    )]
    UnknownUser {
        /// The first worker that asks for it.
        worker: WorkerName,
        /// As written in the settings.
        user: String,
    },
    /// Only root can become somebody else.
    #[error(
        "run the checks of worker \"{worker}\" as the user \"{user}\", because the gate runs as uid {gate} and only root \
         can become another user; start the gate as root or as \"{user}\", or remove workers.run_as"
    )]
    NotPermitted {
        /// The first worker that asks for it.
        worker: WorkerName,
        /// As written in the settings.
        user: String,
        /// As whom the gate runs.
        gate: Uid,
    },
    /// Neither settings nor `$HOME` nor passwd name an absolute home.
    #[error("find a home for the checks of worker \"{worker}\"; set workers.home to an absolute path")]
    NoHome {
        /// The first worker that asks for it.
        worker: WorkerName,
    },
    /// The user or group database did not answer.
    #[error(
        "look up the user \"{user}\" that run_as of worker \"{worker}\" names; see whether `getent passwd {user}` and \
         `id {user}` answer"
    )]
    Lookup {
        /// The first worker that asks for it.
        worker: WorkerName,
        /// As written in the settings, or the gate's own user id.
        user: String,
        /// What the database said.
        source: Errno,
    },
}

impl IdentityProblem {
    /// Whether the cause is a missing permission (exit code 77) and not a wrong setting (78).
    pub fn is_not_permitted(&self) -> bool {
        matches!(self, Self::NotPermitted { .. })
    }
}

/// PATH for a gate that has none itself, as a container's init may start it.
const FALLBACK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks up every distinct user, home, PATH and environment that the workers ask for. Workers that turn out to see the
/// same machine share one identity, also if one of them names the gate's own user and the other leaves it out.
///
/// # Errors
///
/// All problems at once, one for each distinct `run_as` that cannot be had.
pub fn resolve(workers: &[Worker], gate: &GateUser) -> Result<Vec<Identity>, Vec<IdentityProblem>> {
    let mut asked: Vec<(&RunAs, Vec<WorkerName>)> = Vec::new();
    for worker in workers {
        match asked.iter_mut().find(|(run_as, _)| **run_as == worker.run_as) {
            Some((_, names)) => names.push(worker.name.clone()),
            None => asked.push((&worker.run_as, vec![worker.name.clone()])),
        }
    }

    let mut found: Vec<Identity> = Vec::new();
    let mut problems = Vec::new();
    for (run_as, names) in asked {
        match look_up(run_as, names, gate) {
            Ok(mut identity) => {
                if let Some(other) = found.iter_mut().find(|other| other.sees_what(&identity)) {
                    other.workers.append(&mut identity.workers);
                } else {
                    identity.id = IdentityId(found.len());
                    found.push(identity);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems) }
}

pub(crate) fn look_up(run_as: &RunAs, workers: Vec<WorkerName>, gate: &GateUser) -> Result<Identity, IdentityProblem> {
    let Some(worker) = workers.first().cloned() else {
        unreachable!("every run_as comes from a worker");
    };
    let lookup = |user: &str, source| IdentityProblem::Lookup { worker: worker.clone(), user: user.into(), source };

    let entry = match &run_as.user {
        Some(name) => {
            let entry = User::from_name(name).map_err(|e| lookup(name, e))?;
            let unknown = || IdentityProblem::UnknownUser { worker: worker.clone(), user: name.clone() };
            Some(entry.ok_or_else(unknown)?)
        }
        // A container may run under a uid that passwd does not know: the gate's own user needs no entry.
        None => User::from_uid(gate.uid).map_err(|e| lookup(&gate.uid.to_string(), e))?,
    };
    let uid = entry.as_ref().map_or(gate.uid, |entry| entry.uid);
    let is_own = uid == gate.uid;
    let user = entry.as_ref().map_or_else(|| gate.uid.to_string(), |entry| entry.name.clone());
    if !is_own && !gate.uid.is_root() {
        return Err(IdentityProblem::NotPermitted { worker, user, gate: gate.uid });
    }

    let (gid, groups) = match &entry {
        // The gate's own user keeps the groups that the gate was started with: they are what its worker, started
        // beside it, has as well, and giving them up would need a privilege.
        Some(entry) if !is_own => {
            let name = CString::new(entry.name.as_str()).map_err(|_| lookup(&entry.name, Errno::EINVAL))?;
            (entry.gid, getgrouplist(&name, entry.gid).map_err(|e| lookup(&entry.name, e))?)
        }
        Some(_) | None => (gate.gid, gate.groups.clone()),
    };

    let from_variable = gate.home.as_ref().filter(|_| is_own);
    let home = [run_as.home.as_ref(), from_variable, entry.as_ref().map(|entry| &entry.dir)]
        .into_iter()
        .flatten()
        .find(|home| home.is_absolute())
        .ok_or_else(|| IdentityProblem::NoHome { worker: worker.clone() })?;

    Ok(Identity {
        id: IdentityId(0),
        user,
        uid,
        gid,
        groups: with_primary(gid, groups),
        home: normalized(home),
        path: run_as.path_env.clone().or_else(|| gate.path.clone()).unwrap_or_else(|| FALLBACK_PATH.into()),
        env: run_as.env.clone(),
        workers,
    })
}

fn with_primary(gid: Gid, mut groups: Vec<Gid>) -> Vec<Gid> {
    if !groups.contains(&gid) {
        groups.insert(0, gid);
    }
    groups
}

/// Without doubled or trailing slashes, so that `/home/x/` and `/home/x` are one home.
fn normalized(home: &Path) -> PathBuf {
    home.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{EdgeKind, IntakeType, OnQuarantine, RouteIntake};

    fn worker(name: &str, run_as: RunAs) -> Worker {
        Worker {
            name: WorkerName::new(name),
            run_as,
            lane: name.into(),
            edge: EdgeKind::Route(RouteIntake {
                exchange: "x".into(),
                kind: IntakeType::Direct,
                keys: vec![name.into()],
            }),
            queue_arguments: toml::Table::new(),
            on_quarantine: OnQuarantine::Drain,
            task_events: false,
        }
    }

    fn user(name: &str) -> RunAs {
        RunAs { user: Some(name.into()), ..RunAs::default() }
    }

    fn root() -> GateUser {
        GateUser {
            uid: Uid::from_raw(0),
            gid: Gid::from_raw(0),
            groups: vec![Gid::from_raw(0)],
            home: Some("/somewhere".into()),
            path: Some("/bin".into()),
        }
    }

    #[test]
    fn workers_with_one_view_of_the_machine_share_one_identity() {
        let found =
            resolve(&[worker("a", RunAs::default()), worker("b", user("nobody")), worker("c", user("root"))], &root())
                .unwrap();
        let names: Vec<Vec<&str>> = found.iter().map(|i| i.workers.iter().map(WorkerName::as_str).collect()).collect();
        assert_eq!(names, [vec!["a", "c"], vec!["b"]]);
        assert_eq!(found.iter().map(|i| i.id.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn another_environment_is_another_identity() {
        let other = RunAs { env: BTreeMap::from([("A".into(), Secret::new("b"))]), ..RunAs::default() };
        assert_eq!(resolve(&[worker("a", RunAs::default()), worker("b", other)], &root()).unwrap().len(), 2);
    }

    #[test]
    fn the_home_is_the_settings_one_then_the_gates_variable_then_the_passwd_entry() {
        let home = |run_as, gate: &GateUser| resolve(&[worker("a", run_as)], gate).unwrap()[0].home.clone();
        let set = RunAs { home: Some("/srv/h/".into()), ..RunAs::default() };
        assert_eq!(home(set, &root()), Path::new("/srv/h"));
        assert_eq!(home(RunAs::default(), &root()), Path::new("/somewhere"));
        assert_eq!(home(user("daemon"), &root()), Path::new("/usr/sbin"));
        assert_eq!(home(RunAs::default(), &GateUser { home: None, ..root() }), Path::new("/root"));
    }

    #[test]
    fn another_user_has_its_own_groups() {
        let found = resolve(&[worker("a", user("nobody"))], &root()).unwrap();
        assert_eq!((found[0].uid.as_raw(), found[0].gid.as_raw()), (65534, 65534));
        assert_eq!(found[0].groups, [Gid::from_raw(65534)]);
    }

    #[test]
    fn a_uid_that_passwd_does_not_know_can_still_be_the_gates_own() {
        let gate = GateUser { uid: Uid::from_raw(4_000_123), ..root() };
        let found = resolve(&[worker("a", RunAs::default())], &gate).unwrap();
        assert_eq!(found[0].user, "4000123");
        let homeless = resolve(&[worker("a", RunAs::default())], &GateUser { home: None, ..gate }).unwrap_err();
        assert!(homeless[0].to_string().contains("workers.home"), "{homeless:?}");
    }

    #[test]
    fn all_problems_are_told_at_once_and_only_the_missing_permission_is_marked_as_one() {
        let gate = GateUser { uid: Uid::from_raw(65534), ..root() };
        let problems = resolve(&[worker("a", user("no-such-user")), worker("b", user("daemon"))], &gate).unwrap_err();
        assert_eq!(
            problems.iter().map(|p| (p.to_string(), p.is_not_permitted())).collect::<Vec<_>>(),
            [
                (
                    "find the user \"no-such-user\" that run_as of worker \"a\" names; create the user, or correct \
                     workers.run_as"
                        .to_owned(),
                    false
                ),
                (
                    "run the checks of worker \"b\" as the user \"daemon\", because the gate runs as uid 65534 and only \
                     root can become another user; start the gate as root or as \"daemon\", or remove workers.run_as"
                        .to_owned(),
                    true
                ),
            ]
        );
    }
}
