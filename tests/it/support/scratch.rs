//! Folders of this test run, below the build folder or where scripts/test says.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// scripts/test sets this variable to a folder of its own, and looks afterwards for processes that know of it.
pub(crate) const RUN_MARK: &str = "WORKER_GATE_TEST_RUN";

/// This process's folder. A process cannot clean up after its own end (statics are not dropped, and it may be killed),
/// so each run removes the folders of processes that are gone.
static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
    let all = env::var_os(RUN_MARK).map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("it-"));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let root = all.join(format!("it-{}", process::id()));
    fs::create_dir_all(&root).unwrap();
    root
});

/// A folder that goes when this value goes.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty folder; `purpose` is part of its name.
    pub(crate) fn new(purpose: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = ROOT.join(format!("{purpose}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
