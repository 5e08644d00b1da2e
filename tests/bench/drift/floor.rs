//! The least that could shut a way because of an edit: one thread that waits for the event and sends the command.

use std::{
    fs,
    path::PathBuf,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, SystemTime},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{DRIFTED, SOON, edit, since};
use crate::{
    bare::Bare,
    support::{gate::Host, runtime::on, vhost::Vhost},
};

/// A file of its own, watched, and a way of its own that any edit of the file shuts.
pub(super) struct Floor<'a> {
    host: &'a Host,
    file: PathBuf,
    bare: Bare,
    shut_at: Receiver<SystemTime>,
}

impl<'a> Floor<'a> {
    /// The way is open.
    pub(super) fn new(vhost: &Vhost, host: &'a Host) -> Self {
        let dir = host.state_dir().with_file_name("floor");
        fs::create_dir_all(&dir).unwrap();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        inotify.add_watch(&dir, AddWatchFlags::IN_MOVED_TO).unwrap();
        let bare = Bare::new(vhost, "floor");
        let (send, shut_at) = channel();
        let own = bare.clone();
        // Ends with the process, as it waits for events until then.
        thread::spawn(move || {
            // A runtime on this thread, so that the answer is heard where the event was.
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            while let Ok(events) = inotify.read_events() {
                for _ in events {
                    runtime.block_on(own.shut()).unwrap();
                    let _ = send.send(SystemTime::now());
                }
            }
        });
        let floor = Self { host, file: dir.join("config.toml"), bare, shut_at };
        floor.mend();
        floor
    }

    /// One edit: from the rename to the broker's confirmation.
    pub(super) fn round(&self) -> Duration {
        let edited = edit(self.host, &self.file, DRIFTED);
        since(edited, self.shut_at.recv_timeout(SOON).unwrap())
    }

    /// Opens the way again.
    pub(super) fn mend(&self) {
        let bare = self.bare.clone();
        on(async move { bare.open().await }).unwrap();
    }
}
