//! What people do today: a shell script that waits for the event and asks the Celery worker to stop consuming.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{DRIFTED, SOON, edit, pause, since};
use crate::{
    support::{
        celery::{App, venv},
        gate::Host,
        process::{self, Process},
        vhost::Vhost,
        wait::{eventually, until},
    },
    table::Sample,
};

/// Each takes a second or two, most of which is Python's, and they differ little.
pub(super) const EDITS: usize = 10;
const LANE: &str = "today";
const WORKER: &str = "today@bench";

/// The last line of each round is its time, written without another process.
const SCRIPT: &str = r#"inotifywait -m -e moved_to --format %f "$1" | while read -r file; do
    [ "$file" = config.toml ] || continue
    "$2" -A app control cancel_consumer "$3" -d "$4" && echo "done $EPOCHREALTIME"
done"#;

/// From the rename to a worker that consumes no more, and a script that is done.
pub(super) fn measure(vhost: &Vhost, host: &Host) -> Sample {
    let dir = host.state_dir().with_file_name("today");
    fs::create_dir_all(&dir).unwrap();
    let app = App::new(&vhost.url(), "codex", LANE);
    let celery = venv().join("bin/celery");
    let mut worker = app.worker(LANE, WORKER, &["-c", "1"]);
    let mut script = app.python(process::command("/bin/bash"));
    script.args(["-c", SCRIPT, "today"]).arg(&dir).arg(&celery).args([LANE, WORKER]);
    let mut script = Process::start(script, &host.state_dir().with_file_name("today.log"));
    script.wait_for_output(SOON, "Watches established");
    let consumers = || vhost.count(LANE).map_or(0, |count| count.consumers);
    let mut times = Sample::default();
    for round in 1..=EDITS {
        until(SOON, "the worker consumes", || consumers() == 1);
        pause();
        let edited = edit(host, &dir.join("config.toml"), DRIFTED);
        until(SOON, "the worker consumes no more", || consumers() == 0);
        let silent = SystemTime::now();
        let done = eventually(SOON, "the script is done", || done_at(&script.output(), round));
        times.push_time(since(edited, silent.max(done)));
        let mut mend = app.python(process::command(&celery));
        mend.args(["-A", "app", "control", "add_consumer", LANE, "-d", WORKER]);
        process::run(mend);
    }
    script.kill();
    assert!(worker.stop().is_some(), "{}", worker.log());
    times
}

/// When the script's round ended; bash writes seconds with six decimals.
fn done_at(output: &str, round: usize) -> Option<SystemTime> {
    let whole = &output[..output.rfind('\n')?];
    let time = whole.lines().filter_map(|line| line.strip_prefix("done ")).nth(round - 1)?;
    let micros = time.replace(['.', ','], "").parse().unwrap();
    Some(UNIX_EPOCH + Duration::from_micros(micros))
}
