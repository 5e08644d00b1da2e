//! Operators' holds over a restart of the gate: `<state_dir>/holds.json`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use crate::{
    control::Done,
    durable,
    model::{By, Hold, Now, WorkerName, order::Outcome},
};

const FILE_NAME: &str = "holds.json";

/// By worker.
pub(super) type Holds = BTreeMap<WorkerName, Hold>;

/// What was written down when the gate last ran. Where that cannot be read, every worker is held: somebody may have wanted one
/// to be, and unknown is shut.
pub(super) fn read(state_dir: &Path, workers: impl Iterator<Item = WorkerName>, now: Now) -> Holds {
    let path = state_dir.join(FILE_NAME);
    let read = fs::read(&path)
        .and_then(|text| serde_json::from_slice::<BTreeMap<String, Hold>>(&text).map_err(io::Error::from));
    match read {
        Ok(holds) => holds.into_iter().map(|(worker, hold)| (WorkerName::new(&worker), hold)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Holds::new(),
        Err(error) => {
            let reason =
                format!("operators' holds from before the gate's start cannot be read ({}: {error})", path.display());
            tracing::error!("{reason}; every worker is held until it is released");
            let by = By { user: None, claims: "worker-gate".to_owned() };
            let hold = Hold { by, reason, since: now.wall, until: None };
            workers.map(|worker| (worker, hold.clone())).collect()
        }
    }
}

/// Holds that are to be written down, and the answer that waits for it.
#[derive(Debug)]
pub(super) struct Save {
    pub(super) holds: Holds,
    pub(super) done: Vec<Done>,
    pub(super) reply: oneshot::Sender<Vec<Done>>,
}

impl Save {
    /// Answers; of holds that a restart would end, with the reason.
    pub(super) fn answer(self, problem: Option<&str>) {
        let told = |done: Done| {
            let forgetful = problem.filter(|_| done.outcome == Outcome::Held).map(str::to_owned);
            Done { forgetful, ..done }
        };
        // Whoever asked may have stopped waiting.
        let _ = self.reply.send(self.done.into_iter().map(told).collect());
    }
}

/// Writes holds down, one after the other, until nobody asks any more.
pub(super) async fn keep(state_dir: PathBuf, mut saves: mpsc::Receiver<Save>) {
    while let Some(save) = saves.recv().await {
        let (dir, holds) = (state_dir.clone(), save.holds.clone());
        let written = spawn_blocking(move || write(&dir, &holds)).await.unwrap_or_else(|defect| Err(defect.into()));
        let problem = written.err().map(|error| format!("write {}: {error}", state_dir.join(FILE_NAME).display()));
        if let Some(problem) = &problem {
            tracing::error!("failed to {problem}; holds end if the gate is restarted");
        }
        save.answer(problem.as_deref());
    }
}

fn write(state_dir: &Path, holds: &Holds) -> io::Result<()> {
    let holds: BTreeMap<_, _> = holds.iter().map(|(worker, hold)| (worker.as_str(), hold)).collect();
    let text = serde_json::to_string_pretty(&holds)? + "\n";
    durable::replace(&state_dir.join(FILE_NAME), text.as_bytes(), 0o640)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn hold() -> Hold {
        let by = By { user: Some("ops".into()), claims: "eve@x".into() };
        Hold { by, reason: "maintenance".into(), since: "2026-11-22T10:00:00Z".parse().unwrap(), until: None }
    }

    fn names() -> impl Iterator<Item = WorkerName> {
        ["a", "b"].into_iter().map(WorkerName::new)
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), names(), clock::now()), Holds::new());
        let holds = Holds::from([(WorkerName::new("a"), hold())]);
        write(dir.path(), &holds).unwrap();
        assert_eq!(read(dir.path(), names(), clock::now()), holds);
        write(dir.path(), &Holds::new()).unwrap();
        assert_eq!(read(dir.path(), names(), clock::now()), Holds::new());
    }

    #[test]
    fn where_holds_cannot_be_read_every_worker_is_held() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "{\"a\":").unwrap();
        let holds = read(dir.path(), names(), clock::now());
        assert_eq!(holds.keys().cloned().collect::<Vec<_>>(), names().collect::<Vec<_>>());
        assert!(holds.values().all(|hold| hold.reason.contains("cannot be read") && hold.until.is_none()));
    }
}
