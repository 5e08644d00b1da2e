//! Makes a quarantined worker start anew (`on_quarantine = "recycle"`): Celery's warm shutdown, and SIGTERM for one that does
//! not hear it. Both let running tasks finish. Whether its supervisor starts it again is seen and told.

use std::time::{Duration, Instant};

use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::fault::Fault;
use crate::{
    failpoint::{self, Point},
    model::{EdgeReport, Recycled, WorkerName},
    settings::Worker,
};

pub(crate) mod process;

use process::Process;

/// For the worker to stop consuming. It does so within a round of its event loop, whatever it runs.
const OBEYS: Duration = Duration::from_secs(10);
/// After this a worker that has not come back is told of. A supervisor takes seconds, unless a task still runs.
const COMES_BACK: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);
/// The same for one that may stay away for good.
const LATE_LOOK: Duration = Duration::from_secs(2);
/// For the worker's events to name its process; there is a heartbeat every 2 s.
const NAMES_ITSELF: Duration = Duration::from_secs(5);

/// What recycling needs of a broker.
pub(super) trait Hands: Send + Sync {
    /// Asks for a warm shutdown over remote control. False if the worker has no mailbox.
    fn shut_down(&self) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// The process that the worker's own events name. Ends with the first one.
    fn process(&self) -> impl Future<Output = Result<u32, Fault>> + Send;

    /// Whether the worker consumes its lane; `None` if that cannot be told just now.
    fn consumes(&self) -> impl Future<Output = Option<bool>> + Send;
}

/// Begins, apart and in its own time, once the worker has said what it has (`answered`). Reports what becomes of it, the last
/// time when the worker is back or stays. One that is still under way is for the same worker, and goes on.
pub(super) fn begin(
    recycling: &mut Option<AbortOnDropHandle<()>>,
    hands: impl Hands + 'static,
    worker: &Worker,
    reports: mpsc::Sender<(WorkerName, EdgeReport)>,
    answered: oneshot::Receiver<()>,
) {
    if recycling.as_ref().is_some_and(|earlier| !earlier.is_finished()) {
        return;
    }
    let (name, user) = (worker.name.clone(), worker.run_as.user.clone());
    let task = tokio::spawn(async move {
        let _ = answered.await;
        let tell = |recycled| reports.send((name.clone(), EdgeReport::Recycled(recycled)));
        // Nobody hears it any more if the gate has stopped meanwhile.
        let _ = match stop(&hands, &name, user.as_deref()).await {
            Ok((by, stopped)) => {
                let since = Instant::now();
                if !until(&hands, true, LOOK, Some(COMES_BACK)).await {
                    let _ = tell(Recycled::Away { by: by.clone(), away: since.elapsed() }).await;
                    until(&hands, true, LATE_LOOK, None).await;
                }
                tell(Recycled::Back { by, stopped, away: since.elapsed() }).await
            }
            Err(why) => tell(Recycled::Stays(why)).await,
        };
    });
    *recycling = Some(AbortOnDropHandle::new(task));
}

/// How the worker was made to stop consuming, and how long that took; or why it was not.
async fn stop(hands: &impl Hands, worker: &WorkerName, user: Option<&str>) -> Result<(String, Duration), String> {
    let begin = Instant::now();
    if hands.consumes().await == Some(false) {
        return Err("nobody consumes its lane; it is away".to_owned());
    }
    // Listened for from the start: once it shuts down it tells nothing more.
    let naming = timeout(NAMES_ITSELF, hands.process());
    let asking = async {
        failpoint::hit(Point::RecycleBegun);
        match hands.shut_down().await {
            Ok(true) if until(hands, false, LOOK, Some(OBEYS)).await => Ok(()),
            Ok(true) => Err(format!("it did not stop within {} s of Celery's shutdown command", OBEYS.as_secs())),
            Ok(false) => Err("its remote control is off, or it has lost its mailbox".to_owned()),
            Err(fault) => Err(format!("failed to {fault}")),
        }
    };
    tokio::pin!(naming, asking);
    let mut named = None;
    let asked = loop {
        tokio::select! {
            biased;
            asked = &mut asking => break asked,
            process = &mut naming, if named.is_none() => named = Some(process),
        }
    };
    let Err(why) = asked else { return Ok(("Celery's shutdown command".to_owned(), begin.elapsed())) };
    let named = match named {
        Some(named) => named,
        None => naming.await,
    };
    let pid = match named {
        Ok(Ok(pid)) => pid,
        Ok(Err(fault)) => return Err(format!("{why}, and its events could not be heard: failed to {fault}")),
        Err(_) => return Err(format!("{why}, and no event of it has named its process; are its events off?")),
    };
    let process = Process::find(pid, user).map_err(|not| format!("{why}, and process {pid} gets no SIGTERM: {not}"))?;
    tracing::warn!(%worker, pid, why, "the worker does not hear Celery's shutdown command: SIGTERM");
    process.terminate().map_err(|not| format!("{why}, and process {pid} got no SIGTERM: {not}"))?;
    if until(hands, false, LOOK, Some(OBEYS)).await {
        return Ok((format!("SIGTERM to process {pid}"), begin.elapsed()));
    }
    Err(format!("{why}, nor within {} s of SIGTERM to process {pid}", OBEYS.as_secs()))
}

/// Waits until the worker consumes, or does not. Twice in a row, because a look may fall into a moment in which the worker takes up
/// a new link. Time in which it cannot be told does not count.
async fn until(hands: &impl Hands, consumes: bool, every: Duration, limit: Option<Duration>) -> bool {
    let (mut spent, mut seen) = (Duration::ZERO, 0);
    loop {
        let begin = Instant::now();
        let found = hands.consumes().await;
        match found {
            Some(found) if found == consumes => seen += 1,
            Some(_) | None => seen = 0,
        }
        if seen == 2 {
            return true;
        }
        if limit.is_some_and(|limit| spent >= limit) {
            return false;
        }
        sleep(every).await;
        if found.is_some() {
            spent += begin.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    };

    use super::*;

    /// A worker of which each look says the next of these, and after them that it is away.
    struct Seen {
        looks: Mutex<Vec<Option<bool>>>,
        asked: AtomicBool,
    }

    impl Hands for Seen {
        async fn shut_down(&self) -> Result<bool, Fault> {
            self.asked.store(true, Relaxed);
            Ok(true)
        }

        async fn process(&self) -> Result<u32, Fault> {
            std::future::pending().await
        }

        async fn consumes(&self) -> Option<bool> {
            let mut looks = self.looks.lock().unwrap();
            if looks.is_empty() { Some(false) } else { looks.remove(0) }
        }
    }

    #[tokio::test]
    async fn only_a_worker_that_is_surely_away_is_not_asked() {
        for (first, is_asked) in [(Some(true), true), (None, true), (Some(false), false)] {
            let seen = Seen { looks: Mutex::new(vec![first]), asked: AtomicBool::new(false) };
            let stopped = stop(&seen, &WorkerName::new("codex-0@host"), None).await;
            assert_eq!((stopped.is_ok(), seen.asked.load(Relaxed)), (is_asked, is_asked), "{first:?}: {stopped:?}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_told_is_looked_at_again() {
        let looks = Mutex::new(vec![Some(false), None, Some(false), Some(true), Some(false)]);
        let seen = Seen { looks, asked: AtomicBool::new(false) };
        assert!(until(&seen, false, LOOK, None).await);
        assert!(seen.looks.lock().unwrap().is_empty());
    }
}
