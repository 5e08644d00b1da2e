//! In real time, on real files: each way to change a file, and the notice that has to follow within a bound.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::clock;

/// Far below the slow look, so that nothing but an event can explain a notice; far above what a busy machine needs.
const SOON: Duration = Duration::from_secs(1);
/// After the last notice of a burst there is none for so long.
const STILL: Duration = Duration::from_millis(50);

/// A folder, and a subject in it that is watched.
struct Scene {
    folder: tempfile::TempDir,
    subject: Subject,
    watcher: Watcher,
    task: JoinHandle<()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scene {
    /// `build` makes the files, and says which path below the folder is watched.
    async fn new<P: AsRef<Path>>(build: impl FnOnce(&Path) -> P) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(build(folder.path()));
        let (watcher, task) = Watcher::start();
        let task = tokio::spawn(task.run());
        let subject = watcher.subject(vec![path]);
        let scene = Self { folder, subject, watcher, task };
        scene.settle().await;
        assert_eq!(scene.subject.unwatched(), None);
        scene
    }

    /// The folder has a file `f` that says "a", which is watched.
    async fn with_file() -> Self {
        Self::new(|folder| {
            fs::write(folder.join("f"), "a").unwrap();
            "f"
        })
        .await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for the first notice and until no more comes.
    async fn settle(&self) {
        timeout(SOON, self.subject.touched()).await.expect("the first notice");
        self.be_still().await;
    }

    async fn be_still(&self) {
        while timeout(STILL, self.subject.touched()).await.is_ok() {}
    }

    async fn is_noticed(&self, what: &str, change: impl FnOnce()) {
        let before = clock::now().mono;
        change();
        let touched = timeout(SOON, self.subject.touched()).await;
        let touched = touched.unwrap_or_else(|_| panic!("no notice of: {what}"));
        assert!(touched.at > before, "a notice from before: {what}");
        self.be_still().await;
        let watched = async {
            while self.subject.unwatched().is_some() {
                sleep(STILL).await;
            }
        };
        let watched = timeout(SOON, watched).await;
        assert!(watched.is_ok(), "{what}: {:?}", self.subject.unwatched());
    }

    /// A watch that is lost by the first change misses the second.
    async fn are_noticed(&self, what: &str, change: impl Fn()) {
        for _ in 0..3 {
            self.is_noticed(what, &change).await;
        }
    }

    async fn is_not_noticed(&self, what: &str, change: impl FnOnce()) {
        change();
        assert!(timeout(STILL, self.subject.touched()).await.is_err(), "{what}");
    }
}

/// Runs a program in a folder, as somebody at a terminal would.
fn sh(folder: &Path, line: &str) {
    let status = Command::new("sh").args(["-ec", line]).current_dir(folder).stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "{line}");
}

fn replace(path: &Path, text: &str) {
    let mut name = OsString::from(path);
    name.push(".new");
    fs::write(&name, text).unwrap();
    fs::rename(&name, path).unwrap();
}

fn point(link: &Path, to: impl AsRef<Path>) {
    let mut name = OsString::from(link);
    name.push(".new");
    symlink(to, &name).unwrap();
    fs::rename(&name, link).unwrap();
}

#[tokio::test]
async fn a_write_in_place_is_noticed() {
    let scene = Scene::with_file().await;
    scene.are_noticed("write", || fs::write(scene.path("f"), "b").unwrap()).await;
}

#[tokio::test]
async fn an_append_is_noticed_while_the_file_stays_open() {
    let scene = Scene::with_file().await;
    let file = OpenOptions::new().append(true).open(scene.path("f")).unwrap();
    scene.are_noticed("append", || (&file).write_all(b"x").unwrap()).await;
}

#[tokio::test]
async fn a_rename_over_the_file_is_noticed_and_so_is_a_write_to_the_new_one() {
    let scene = Scene::with_file().await;
    scene.are_noticed("replace", || replace(&scene.path("f"), "b")).await;
    scene.are_noticed("write", || fs::write(scene.path("f"), "c").unwrap()).await;
}

#[tokio::test]
async fn another_mode_or_owner_is_noticed() {
    let scene = Scene::with_file().await;
    let mode = |mode| fs::set_permissions(scene.path("f"), Permissions::from_mode(mode)).unwrap();
    scene.is_noticed("chmod", || mode(0o600)).await;
    scene.is_noticed("chmod again", || mode(0o640)).await;
    if nix::unistd::Uid::effective().is_root() {
        let own = |uid| chown(scene.path("f"), Some(uid), None).unwrap();
        scene.is_noticed("chown", || own(1234)).await;
        scene.is_noticed("chown back", || own(0)).await;
    } else {
        println!("skipped: only root can give a file away");
    }
}

#[tokio::test]
async fn a_file_that_is_deleted_and_made_again_is_noticed_both_times() {
    let scene = Scene::with_file().await;
    let path = scene.path("f");
    for _ in 0..3 {
        scene.is_noticed("delete", || fs::remove_file(&path).unwrap()).await;
        scene.is_noticed("create", || fs::write(&path, "b").unwrap()).await;
        scene.is_noticed("write", || fs::write(&path, "c").unwrap()).await;
    }
}

#[tokio::test]
async fn a_file_that_never_was_is_noticed_when_its_folders_and_then_it_appear() {
    let scene = Scene::new(|_| "a/b/f").await;
    let path = scene.path("a/b/f");
    scene.is_noticed("the first folder", || fs::create_dir(scene.path("a")).unwrap()).await;
    scene.is_noticed("the second folder", || fs::create_dir(scene.path("a/b")).unwrap()).await;
    scene.is_noticed("the file", || fs::write(&path, "a").unwrap()).await;
    scene.is_noticed("its content", || fs::write(&path, "b").unwrap()).await;
}

#[tokio::test]
async fn a_symlink_that_points_elsewhere_is_noticed_and_so_are_writes_behind_it() {
    let scene = Scene::new(|folder| {
        fs::create_dir_all(folder.join("one")).unwrap();
        fs::create_dir_all(folder.join("two")).unwrap();
        fs::write(folder.join("one/f"), "1").unwrap();
        fs::write(folder.join("two/f"), "2").unwrap();
        symlink("one/f", folder.join("link")).unwrap();
        symlink("link", folder.join("first")).unwrap();
        "first"
    })
    .await;
    scene.are_noticed("a write behind it", || fs::write(scene.path("one/f"), "x").unwrap()).await;
    scene.are_noticed("a rename behind it", || replace(&scene.path("one/f"), "y")).await;
    scene.is_noticed("another target", || point(&scene.path("link"), "two/f")).await;
    scene.is_noticed("a write there", || fs::write(scene.path("two/f"), "y").unwrap()).await;
    scene.is_noticed("an absolute target", || point(&scene.path("first"), scene.path("one/f"))).await;
    scene.is_noticed("a write there", || fs::write(scene.path("one/f"), "z").unwrap()).await;
    scene.is_not_noticed("what it pointed to before", || fs::write(scene.path("two/f"), "w").unwrap()).await;
}

#[tokio::test]
async fn a_swap_of_a_mounted_config_map_is_noticed() {
    let scene = Scene::new(|folder| {
        fs::create_dir(folder.join("..1")).unwrap();
        fs::write(folder.join("..1/f"), "1").unwrap();
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/f", folder.join("f")).unwrap();
        "f"
    })
    .await;
    for number in 2..5 {
        let swap = || {
            let folder = scene.path(&format!("..{number}"));
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("f"), number.to_string()).unwrap();
            point(&scene.path("..data"), folder.file_name().unwrap());
            fs::remove_dir_all(scene.path(&format!("..{}", number - 1))).unwrap();
        };
        scene.is_noticed("swap", swap).await;
    }
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_noticed_and_so_is_an_edit_after_that() {
    let scene = Scene::new(|folder| {
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        fs::write(folder.join("a/b/c/f"), "1").unwrap();
        "a/b/c/f"
    })
    .await;
    let other = || {
        fs::create_dir_all(scene.path("new/c")).unwrap();
        fs::write(scene.path("new/c/f"), "2").unwrap();
        fs::rename(scene.path("a/b"), scene.path("old")).unwrap();
        fs::rename(scene.path("new"), scene.path("a/b")).unwrap();
    };
    for _ in 0..3 {
        scene.is_noticed("replace the folder", other).await;
        scene.are_noticed("write", || fs::write(scene.path("a/b/c/f"), "3").unwrap()).await;
        scene.are_noticed("replace", || replace(&scene.path("a/b/c/f"), "4")).await;
        scene.is_not_noticed("the old one", || fs::write(scene.path("old/c/f"), "5").unwrap()).await;
        fs::remove_dir_all(scene.path("old")).unwrap();
    }
}

#[tokio::test]
async fn a_folder_far_above_that_moves_away_and_back_is_noticed() {
    let scene = Scene::new(|folder| {
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        fs::write(folder.join("a/b/c/f"), "1").unwrap();
        "a/b/c/f"
    })
    .await;
    let (here, there) = (scene.path("a"), scene.path("elsewhere"));
    scene.is_noticed("away", || fs::rename(&here, &there).unwrap()).await;
    scene.is_noticed("and back", || fs::rename(&there, &here).unwrap()).await;
    scene.is_noticed("a write after that", || fs::write(scene.path("a/b/c/f"), "2").unwrap()).await;
    let mode = |mode| fs::set_permissions(scene.path("a/b"), Permissions::from_mode(mode)).unwrap();
    scene.is_noticed("chmod of a folder", || mode(0o700)).await;
}

#[tokio::test]
async fn a_write_by_way_of_another_name_of_the_file_is_noticed() {
    let scene = Scene::with_file().await;
    let elsewhere = tempfile::tempdir_in(scene.folder.path()).unwrap();
    fs::hard_link(scene.path("f"), elsewhere.path().join("other")).unwrap();
    scene.settle().await;
    scene.are_noticed("hard link", || fs::write(elsewhere.path().join("other"), "b").unwrap()).await;
}

#[tokio::test]
async fn the_programs_that_people_edit_with_are_noticed() {
    let scene = Scene::with_file().await;
    let folder = scene.folder.path();
    fs::write(folder.join("other"), "other").unwrap();
    for line in [
        "sed -i s/./x/ f",
        "cp other f",
        "cp --remove-destination other f",
        "cp other new && mv new f",
        "install -m 600 other f",
        "touch f",
        "truncate -s 0 f",
        "dd if=other of=f conv=notrunc status=none",
        "ln -sfn other f",
        "sed -i s/./y/ other",
        "rm f",
        "tee f < other > /dev/null",
        // What vim does with 'backup' and 'backupcopy=no'.
        "mv f f~ && cat other > f && rm f~",
    ] {
        scene.is_noticed(line, || sh(folder, line)).await;
    }
}

#[tokio::test]
async fn neighbours_are_not_noticed() {
    let scene = Scene::with_file().await;
    scene
        .is_not_noticed("another file, and a read of this one", || {
            fs::write(scene.path("g"), "x").unwrap();
            fs::remove_file(scene.path("g")).unwrap();
            fs::read(scene.path("f")).unwrap();
        })
        .await;
}

#[tokio::test]
async fn a_burst_is_one_notice_that_bears_the_time_of_its_first_event() {
    let scene = Scene::with_file().await;
    let before = clock::now().mono;
    let file = OpenOptions::new().append(true).open(scene.path("f")).unwrap();
    (&file).write_all(b"x").unwrap();
    let first = timeout(SOON, scene.subject.touched()).await.unwrap();
    let between = clock::now().mono;
    for _ in 0..1000 {
        (&file).write_all(b"x").unwrap();
        tokio::task::yield_now().await;
    }
    let mut more = Vec::new();
    while let Ok(touched) = timeout(STILL, scene.subject.touched()).await {
        more.push(touched.at);
    }
    assert!(before < first.at && first.at < between);
    assert!(!more.is_empty() && more.len() < 4, "nobody looked meanwhile: {more:?}");
    assert!(more[0] > between);
}

/// Twenty thousand events before the task gets to read one; the kernel keeps 16,384.
#[tokio::test]
async fn a_queue_that_overflows_touches_everybody() {
    let scene = Scene::with_file().await;
    let still = tempfile::NamedTempFile::new().unwrap();
    let other = scene.watcher.subject(vec![still.path().to_owned()]);
    timeout(SOON, other.touched()).await.unwrap();
    while timeout(STILL, other.touched()).await.is_ok() {}
    let limit: u32 = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    for number in 0..limit + 4_000 {
        // Equal events in a row are one event, so the modes take turns.
        let mode = if number % 2 == 0 { 0o600 } else { 0o640 };
        fs::set_permissions(scene.path("f"), Permissions::from_mode(mode)).unwrap();
        OpenOptions::new().append(true).open(scene.path("f")).unwrap().write_all(b"x").unwrap();
    }
    timeout(SOON, scene.subject.touched()).await.unwrap();
    timeout(SOON, other.touched()).await.expect("nothing happened to the other file, but nobody can know");
    scene.be_still().await;
    scene.are_noticed("after the overflow", || replace(&scene.path("f"), "b")).await;
}

#[tokio::test]
async fn a_subject_can_be_given_other_paths_and_leaves_no_watch_behind() {
    let scene = Scene::with_file().await;
    fs::write(scene.path("g"), "a").unwrap();
    scene.subject.set(vec![scene.path("g"), scene.path("h")]);
    scene.settle().await;
    scene.is_not_noticed("the old path", || fs::write(scene.path("f"), "b").unwrap()).await;
    scene.are_noticed("the new path", || fs::write(scene.path("g"), "b").unwrap()).await;
    scene.is_noticed("a second path", || fs::write(scene.path("h"), "b").unwrap()).await;
}

#[tokio::test]
async fn many_subjects_on_one_file_are_all_told() {
    let scene = Scene::with_file().await;
    let others: Vec<_> = (0..100).map(|_| scene.watcher.subject(vec![scene.path("f")])).collect();
    for other in &others {
        timeout(SOON, other.touched()).await.unwrap();
    }
    scene.is_noticed("write", || fs::write(scene.path("f"), "b").unwrap()).await;
    for other in &others {
        timeout(SOON, other.touched()).await.unwrap();
    }
}

#[tokio::test]
async fn edits_without_a_pause_are_never_missed() {
    let scene = Scene::new(|folder| {
        fs::create_dir(folder.join("d")).unwrap();
        fs::write(folder.join("d/f"), "0").unwrap();
        "d/f"
    })
    .await;
    let (path, folder) = (scene.path("d/f"), scene.folder.path().to_owned());
    let writer = std::thread::spawn(move || {
        for number in 1..=2_000_u32 {
            match number % 4 {
                0 => fs::write(&path, number.to_string()).unwrap(),
                1 => replace(&path, &number.to_string()),
                2 => {
                    fs::create_dir(folder.join("e")).unwrap();
                    fs::write(folder.join("e/f"), number.to_string()).unwrap();
                    fs::rename(folder.join("d"), folder.join("old")).unwrap();
                    fs::rename(folder.join("e"), folder.join("d")).unwrap();
                    fs::remove_dir_all(folder.join("old")).unwrap();
                }
                _ => {
                    fs::remove_file(&path).unwrap();
                    fs::write(&path, number.to_string()).unwrap();
                }
            }
        }
    });
    // Whoever looks after every notice, and at nothing else, ends up with the truth.
    let mut seen = String::new();
    let all = timeout(Duration::from_secs(30), async {
        while seen != "2000" {
            scene.subject.touched().await;
            seen = fs::read_to_string(scene.path("d/f")).unwrap_or_default();
        }
    });
    assert!(all.await.is_ok(), "missed what came after {seen}");
    writer.join().unwrap();
}

#[tokio::test]
async fn a_watch_that_is_refused_is_told() {
    let (watcher, task) = Watcher::start();
    let subject = watcher.subject(vec!["/proc/self/fd/none".into()]);
    assert_eq!(subject.unwatched(), Some(Unwatched::NotYet), "nobody runs the task yet");
    let task = tokio::spawn(task.run());
    timeout(SOON, subject.touched()).await.unwrap();
    task.abort();
    let refused = Unwatched::Refused { path: "/a".into(), errno: Errno::ENOSPC };
    assert!(refused.to_string().contains("max_user_watches"));
}

/// Runs the test on a thread with a mount table of its own. Says so if that is not permitted.
fn with_own_mounts<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    let thread = std::thread::spawn(|| {
        let private = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>));
        if let Err(errno) = private {
            println!("skipped: mounts need CAP_SYS_ADMIN: {errno}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

fn bind(from: &Path, to: &Path) {
    use nix::mount::{MsFlags, mount};
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn a_file_that_is_bind_mounted_is_noticed_when_its_source_is_edited() {
    with_own_mounts(|| async {
        let scene = Scene::new(|folder| {
            fs::create_dir(folder.join("source")).unwrap();
            fs::write(folder.join("source/f"), "1").unwrap();
            fs::write(folder.join("f"), "").unwrap();
            bind(&folder.join("source/f"), &folder.join("f"));
            "f"
        })
        .await;
        scene.are_noticed("a write to its source", || fs::write(scene.path("source/f"), "2").unwrap()).await;
    });
}

#[test]
fn a_folder_that_is_bind_mounted_is_noticed_when_a_file_is_replaced_in_its_source() {
    with_own_mounts(|| async {
        let scene = Scene::new(|folder| {
            fs::create_dir(folder.join("source")).unwrap();
            fs::create_dir(folder.join("d")).unwrap();
            fs::write(folder.join("source/f"), "1").unwrap();
            bind(&folder.join("source"), &folder.join("d"));
            "d/f"
        })
        .await;
        scene.are_noticed("a rename in its source", || replace(&scene.path("source/f"), "2")).await;
    });
}

#[test]
fn what_is_mounted_over_a_file_and_unmounted_again_is_noticed() {
    with_own_mounts(|| async {
        let scene = Scene::new(|folder| {
            fs::create_dir_all(folder.join("a/b")).unwrap();
            fs::create_dir_all(folder.join("over/b")).unwrap();
            fs::write(folder.join("a/b/f"), "1").unwrap();
            fs::write(folder.join("over/b/f"), "2").unwrap();
            "a/b/f"
        })
        .await;
        scene.is_noticed("mount", || bind(&scene.path("over"), &scene.path("a"))).await;
        scene.are_noticed("a write there", || fs::write(scene.path("a/b/f"), "3").unwrap()).await;
        scene.is_noticed("unmount", || nix::mount::umount(&scene.path("a")).unwrap()).await;
        scene.are_noticed("a write below", || fs::write(scene.path("a/b/f"), "3").unwrap()).await;
    });
}

#[test]
fn an_edit_through_an_overlay_is_noticed() {
    with_own_mounts(|| async {
        let is_skipped = std::cell::Cell::new(false);
        let scene = Scene::new(|folder| {
            for name in ["lower", "upper", "work", "merged"] {
                fs::create_dir(folder.join(name)).unwrap();
            }
            fs::write(folder.join("lower/f"), "1").unwrap();
            let at = |name| folder.join(name).display().to_string();
            let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
            let flags = nix::mount::MsFlags::empty();
            let mounted =
                nix::mount::mount(Some("overlay"), &folder.join("merged"), Some("overlay"), flags, Some(&*options));
            is_skipped.set(mounted.is_err());
            "merged/f"
        })
        .await;
        if is_skipped.get() {
            println!("skipped: no overlay here");
            return;
        }
        scene.are_noticed("a write", || fs::write(scene.path("merged/f"), "2").unwrap()).await;
        scene.are_noticed("a rename", || replace(&scene.path("merged/f"), "3")).await;
    });
}

/// Makes the edit of that number.
type Edit<'a> = Box<dyn Fn(usize) + 'a>;

/// The time from before the first system call of an edit to the notice in the owner's task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: cargo test --release --lib -- --ignored --nocapture watch::tests::how_long"]
async fn how_long_a_notice_takes() {
    const TIMES: usize = 300;
    let scene = Scene::new(|folder| {
        for name in ["..0", "one", "two", "a/b"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        for name in ["f", "..0/f", "one/f", "two/f", "a/b/f"] {
            fs::write(folder.join(name), "x").unwrap();
        }
        symlink("..0", folder.join("..data")).unwrap();
        symlink("one/f", folder.join("link")).unwrap();
        "f"
    })
    .await;
    let at = |name: &str| scene.path(name);
    let append = OpenOptions::new().append(true).open(at("f")).unwrap();
    let edits: Vec<(&str, &str, Edit)> = vec![
        ("write in place", "f", Box::new(|n| fs::write(at("f"), n.to_string()).unwrap())),
        ("append, fd open", "f", Box::new(|_| (&append).write_all(b"x").unwrap())),
        (
            "chmod",
            "f",
            Box::new(|n| {
                let mode = if n % 2 == 0 { 0o600 } else { 0o640 };
                fs::set_permissions(at("f"), Permissions::from_mode(mode)).unwrap();
            }),
        ),
        ("write temp + rename", "f", Box::new(|n| replace(&at("f"), &n.to_string()))),
        (
            "unlink + create",
            "f",
            Box::new(|_| {
                fs::remove_file(at("f")).unwrap();
                fs::write(at("f"), "x").unwrap();
            }),
        ),
        ("edit of a symlink's target", "link", Box::new(|n| fs::write(at("one/f"), n.to_string()).unwrap())),
        ("symlink retarget", "link", Box::new(|n| point(&at("link"), if n % 2 == 0 { "two/f" } else { "one/f" }))),
        (
            "k8s ..data swap",
            "..data/f",
            Box::new(|n| {
                let next = at(&format!("..{}", n + 1));
                fs::create_dir(&next).unwrap();
                fs::write(next.join("f"), "x").unwrap();
                point(&at("..data"), next.file_name().unwrap());
                fs::remove_dir_all(at(&format!("..{n}"))).unwrap();
            }),
        ),
        (
            "parent dir replaced",
            "a/b/f",
            Box::new(|_| {
                fs::create_dir(at("a/c")).unwrap();
                fs::write(at("a/c/f"), "x").unwrap();
                fs::rename(at("a/b"), at("old")).unwrap();
                fs::rename(at("a/c"), at("a/b")).unwrap();
                fs::remove_dir_all(at("old")).unwrap();
            }),
        ),
    ];
    println!("| edit | median | p99 | max (us; to the notice) | median | p99 (to the read of the event) |");
    for (what, path, edit) in edits {
        scene.subject.set(vec![at(path)]);
        scene.be_still().await;
        let (mut told, mut read) = (Vec::new(), Vec::new());
        for number in 0..TIMES {
            let before = clock::now().mono;
            edit(number);
            let touched = timeout(SOON, scene.subject.touched()).await.unwrap();
            told.push(clock::now().mono.since(before).as_micros());
            read.push(touched.at.since(before).as_micros());
            // What else belongs to this edit must not be taken for the next one's notice.
            while timeout(Duration::from_millis(5), scene.subject.touched()).await.is_ok() {}
        }
        told.sort_unstable();
        read.sort_unstable();
        let (p50, p99) = (TIMES / 2, TIMES * 99 / 100);
        println!("| {what} | {} | {} | {} | {} | {} |", told[p50], told[p99], told[TIMES - 1], read[p50], read[p99]);
    }
}
