use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::unistd::{Gid, Uid, getegid, geteuid};

use super::*;
use crate::{
    model::{ProfileState, WorkerName},
    profile::inspect,
    settings::Enforced,
};

/// A home with everything that a target borrows.
pub(in crate::profile) struct Home {
    pub(in crate::profile) dir: tempfile::TempDir,
    pub(in crate::profile) path: PathBuf,
    pub(in crate::profile) enforce: Vec<Enforced>,
    pub(in crate::profile) workers: Vec<WorkerName>,
    pub(in crate::profile) template: Option<PathBuf>,
}

pub(in crate::profile) const FILE: &str = ".codex/config.toml";

impl Home {
    pub(in crate::profile) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("home");
        fs::create_dir_all(path.join(".codex")).unwrap();
        let never = toml::Value::String("never".to_owned());
        Self {
            dir,
            path,
            enforce: vec![Enforced { key: vec!["approval_policy".to_owned()], value: never }],
            workers: vec![WorkerName::new("codex-0@host")],
            template: None,
        }
    }

    pub(in crate::profile) fn with(text: impl AsRef<[u8]>) -> Self {
        let home = Self::new();
        fs::write(home.file(), text).unwrap();
        home
    }

    pub(in crate::profile) fn file(&self) -> PathBuf {
        self.path.join(FILE)
    }

    pub(in crate::profile) fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    pub(in crate::profile) fn target(&self) -> Target<'_> {
        Target {
            path: "~/.codex/config.toml",
            template: self.template.as_deref(),
            enforce: &self.enforce,
            home: &self.path,
            uid: geteuid(),
            gid: getegid(),
            groups: &[],
            workers: &self.workers,
        }
    }

    /// No other files than those that should be there.
    #[track_caller]
    pub(in crate::profile) fn check_only(&self, expected: &[&str]) {
        let mut names: Vec<_> = fs::read_dir(self.path.join(".codex"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, expected);
    }
}

const BEFORE: &str = "\u{feff}# mine\r\napproval_policy = 'on-request' # why\r\n[mcp_servers.x]\r\ntoken = 's'";
const AFTER: &str = "\u{feff}# mine\r\napproval_policy = \"never\" # why\r\n[mcp_servers.x]\r\ntoken = 's'";

#[test]
fn apply_changes_the_enforced_key_and_keeps_the_mode() {
    // No file system has the second one, so it takes the way of those that have no exchange.
    for exchange in [swap::EXCHANGE, swap::EXCHANGE | RenameFlags::RENAME_NOREPLACE] {
        let home = Home::with(BEFORE);
        fs::set_permissions(home.file(), fs::Permissions::from_mode(0o640)).unwrap();
        let applied = apply_by(home.target(), exchange).unwrap();
        let expected = Applied { path: home.file(), created: false, changed: vec!["approval_policy".to_owned()] };
        assert_eq!(applied, expected);
        assert_eq!(home.text(), AFTER);
        assert_eq!(fs::metadata(home.file()).unwrap().mode() & 0o7777, 0o640);
        home.check_only(&["config.toml"]);
        assert_eq!(inspect(home.target(), None).state, ProfileState::Managed);
    }
}

#[test]
fn a_file_that_is_as_wanted_is_not_even_replaced() {
    let home = Home::with(AFTER);
    let before = fs::metadata(home.file()).unwrap();
    assert_eq!(apply(home.target()).unwrap().changed, Vec::<String>::new());
    let after = fs::metadata(home.file()).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
}

#[test]
fn a_missing_file_is_made_from_the_enforced_keys_with_its_directories() {
    let home = Home::new();
    fs::remove_dir(home.path.join(".codex")).unwrap();
    let mut target = home.target();
    target.path = "~/.codex/deep/er/config.toml";
    let applied = apply(target).unwrap();
    assert!(applied.created);
    assert_eq!(applied.path, home.path.join(".codex/deep/er/config.toml"));
    assert_eq!(fs::read_to_string(&applied.path).unwrap(), "approval_policy = \"never\"\n");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&applied.path), 0o600);
    assert_eq!(mode(applied.path.parent().unwrap()), 0o700);
    assert_eq!(mode(&home.path.join(".codex")), 0o700);
    assert_eq!(inspect(target, None).state, ProfileState::Managed);
}

#[test]
fn a_missing_file_is_made_from_the_template() {
    let mut home = Home::new();
    let template = home.dir.path().join("template.toml");
    fs::write(&template, "# ours\r\nmodel = \"m\"\r\n").unwrap();
    home.template = Some(template.clone());
    assert!(apply(home.target()).unwrap().created);
    assert_eq!(home.text(), "# ours\r\nmodel = \"m\"\r\napproval_policy = \"never\"\r\n");
    home.check_only(&["config.toml"]);

    fs::remove_file(home.file()).unwrap();
    fs::write(&template, "token = s3cret-value\n").unwrap();
    let error = apply(home.target()).unwrap_err();
    assert!(error.to_string().contains("template.toml: it is not TOML: line 1"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
    fs::remove_file(&template).unwrap();
    let error = apply(home.target()).unwrap_err();
    assert!(error.remedy(&home.target()).contains("profile.template"), "{error}");
    nix::unistd::mkfifo(&template, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = apply(home.target()).unwrap_err();
    assert!(error.to_string().ends_with("template.toml: it is not a regular file"), "{error}");
    home.check_only(&[]);
}

#[test]
fn a_symlink_inside_the_home_stays_and_its_target_is_replaced() {
    for absolute in [true, false] {
        let home = Home::new();
        fs::create_dir(home.path.join("dotfiles")).unwrap();
        let real = home.path.join("dotfiles/codex.toml");
        fs::write(&real, BEFORE).unwrap();
        let to = if absolute { real.clone() } else { PathBuf::from("../dotfiles/./codex.toml") };
        symlink(&to, home.file()).unwrap();
        assert_eq!(apply(home.target()).unwrap().path, real);
        assert_eq!(fs::read_link(home.file()).unwrap(), to);
        assert_eq!(fs::read_to_string(&real).unwrap(), AFTER);
        home.check_only(&["config.toml"]);

        // A link to what is not there yet makes it there.
        fs::remove_file(&real).unwrap();
        assert!(apply(home.target()).unwrap().created);
        assert_eq!(fs::read_to_string(&real).unwrap(), "approval_policy = \"never\"\n");
    }
}

#[test]
fn a_home_that_is_a_symlink_and_a_link_that_names_it_are_the_same_home() {
    let mut home = Home::new();
    let alias = home.dir.path().join("alias");
    symlink(&home.path, &alias).unwrap();
    let real = home.path.clone();
    fs::write(real.join("real.toml"), BEFORE).unwrap();
    symlink(alias.join("real.toml"), home.file()).unwrap();
    home.path = alias.clone();
    let absolute = alias.join(FILE);
    let mut target = home.target();
    target.path = absolute.to_str().unwrap();
    assert_eq!(apply(target).unwrap().path, real.join("real.toml"));
    assert_eq!(fs::read_to_string(real.join("real.toml")).unwrap(), AFTER);
}

type Setup = fn(&Home, &Path);

#[test]
fn what_leads_out_of_the_home_is_refused_for_reading_and_writing() {
    let outside = |home: &Home| {
        let dir = home.dir.path().join("outside");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.toml"), BEFORE).unwrap();
        dir
    };
    let cases: [(&str, Setup); 6] = [
        ("file link", |home, out| symlink(out.join("config.toml"), home.file()).unwrap()),
        ("relative file link", |home, _| symlink("../../outside/config.toml", home.file()).unwrap()),
        ("dangling link", |home, out| symlink(out.join("new.toml"), home.file()).unwrap()),
        ("directory link", |home, out| {
            fs::remove_dir(home.path.join(".codex")).unwrap();
            symlink(out, home.path.join(".codex")).unwrap();
        }),
        ("out and back by another name", |home, out| {
            symlink(&home.path, out.join("back")).unwrap();
            symlink("../../outside/config.toml", home.path.join("x")).unwrap();
            symlink("../x", home.file()).unwrap();
        }),
        ("loop", |home, _| symlink("config.toml", home.file()).unwrap()),
    ];
    for (case, setup) in cases {
        let home = Home::new();
        let out = outside(&home);
        setup(&home, &out);
        let report = inspect(home.target(), None);
        assert_eq!(report.state, ProfileState::Drifted, "{case}");
        assert_eq!(report.config_hash, None, "{case}");
        assert!(report.problem.unwrap().detail.starts_with("cannot follow /"), "{case}");
        let error = apply(home.target()).unwrap_err();
        assert!(matches!(error, ApplyError::Read(ReadError::Locate(_))), "{case}: {error}");
        assert_eq!(fs::read_to_string(out.join("config.toml")).unwrap(), BEFORE, "{case}");
        assert!(!out.join("new.toml").exists(), "{case}");
    }
    let home = Home::new();
    for path in ["~/../outside/config.toml", "/etc/passwd", "relative", "~/", "~", "~root/x"] {
        outside(&home);
        let target = Target { path, ..home.target() };
        let error = apply(target).unwrap_err();
        assert!(matches!(error, ApplyError::Read(ReadError::Locate(_))), "{path}: {error}");
        assert_eq!(inspect(target, None).state, ProfileState::Drifted, "{path}");
    }
}

#[test]
fn what_cannot_be_merged_is_left_as_it_is() {
    let big = format!("a = \"{}\"\n", "x".repeat(2 << 20));
    let cases: [(&[u8], &str); 5] = [
        (b"token = sk-secret\n", "not TOML: line 1"),
        (b"a = \"\xff\"\n", "not UTF-8 at byte 5"),
        (b"\xff\xfea\0", "not UTF-8 at byte 0"),
        (big.as_bytes(), "larger than 1 MiB"),
        (b"[approval_policy]\nx = 1\n", "line 1 makes approval_policy a table"),
    ];
    for (bytes, expected) in cases {
        let home = Home::with(bytes);
        let error = apply(home.target()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(!error.remedy(&home.target()).is_empty());
        assert_eq!(fs::read(home.file()).unwrap(), bytes);
        home.check_only(&["config.toml"]);
    }
}

#[test]
fn a_pipe_or_a_directory_in_the_files_place_is_refused_and_does_not_hang() {
    let home = Home::new();
    nix::unistd::mkfifo(&home.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(apply(home.target()).unwrap_err().to_string().contains("a named pipe"));
    fs::remove_file(home.file()).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.file()).unwrap();
    assert!(apply(home.target()).unwrap_err().to_string().contains("a socket"));
    fs::remove_file(home.file()).unwrap();
    fs::create_dir(home.file()).unwrap();
    assert!(apply(home.target()).unwrap_err().to_string().contains("a directory"));
    fs::remove_dir(home.file()).unwrap();
    fs::remove_dir(home.path.join(".codex")).unwrap();
    fs::write(home.path.join(".codex"), "").unwrap();
    let error = apply(home.target()).unwrap_err();
    assert!(error.to_string().contains("ENOTDIR"), "{error}");
    assert!(error.remedy(&home.target()).starts_with("move /"), "{}", error.remedy(&home.target()));
}

#[test]
fn a_strangers_file_is_not_taken_over() {
    let home = Home::with(BEFORE);
    let (uid, gid) = (geteuid().as_raw() + 1, getegid().as_raw());
    let target = Target { uid: Uid::from_raw(uid), ..home.target() };
    let error = apply(target).unwrap_err();
    assert!(matches!(error, ApplyError::Owner { .. }), "{error}");
    assert_eq!(error.remedy(&target), format!("chown {uid}:{gid} {}", home.file().display()));
    assert_eq!(home.text(), BEFORE);
}

/// Runs something with the file rights of a user without any, as long as the tests themselves run as root.
fn as_nobody<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if geteuid().is_root() {
                // Both hold for this thread only, and take root's file capabilities with them.
                nix::unistd::setfsgid(Gid::from_raw(uid));
                nix::unistd::setfsuid(Uid::from_raw(uid));
            }
            work()
        });
        thread.join().unwrap()
    })
}

/// Gives a home to a user, if the tests run as root; returns whose it is then.
fn give(home: &Home, uid: u32) -> (Uid, Gid) {
    if !geteuid().is_root() {
        return (geteuid(), getegid());
    }
    for path in [home.dir.path(), &home.path, &home.path.join(".codex"), &home.file()] {
        if path.exists() {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
    }
    (Uid::from_raw(uid), Gid::from_raw(uid))
}

#[test]
fn root_and_the_user_itself_do_the_same() {
    for as_user in [false, true] {
        for before in [Some(BEFORE), None] {
            let home = before.map_or_else(Home::new, Home::with);
            if before.is_none() {
                fs::remove_dir(home.path.join(".codex")).unwrap();
            }
            let (uid, gid) = give(&home, 4321);
            let target = Target { uid, gid, ..home.target() };
            let result = if as_user { as_nobody(4321, || apply(target)) } else { apply(target) };
            assert_eq!(result.unwrap().created, before.is_none());
            for path in [home.path.join(".codex"), home.file()] {
                let meta = fs::metadata(path).unwrap();
                assert_eq!((meta.uid(), meta.gid()), (uid.as_raw(), gid.as_raw()));
            }
            assert_eq!(inspect(target, None).state, ProfileState::Managed);
            home.check_only(&["config.toml"]);
        }
    }
}

#[test]
fn what_the_user_may_not_do_is_a_question_of_permission() {
    // A directory that cannot be written, and a file that cannot be read.
    for (path, mode) in [(".codex", 0o500), (FILE, 0o000)] {
        let home = Home::with(BEFORE);
        let (uid, gid) = give(&home, 4321);
        fs::set_permissions(home.path.join(path), fs::Permissions::from_mode(mode)).unwrap();
        let target = Target { uid, gid, ..home.target() };
        let error = as_nobody(4321, || apply(target)).unwrap_err();
        assert!(error.is_permission(), "{error}");
        if path == FILE {
            let report = as_nobody(4321, || inspect(target, None));
            assert_eq!(report.state, ProfileState::Drifted);
            assert!(report.problem.unwrap().detail.contains("EACCES"));
        }
        fs::set_permissions(home.path.join(path), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(home.text(), BEFORE);
        home.check_only(&["config.toml"]);
    }
}

/// A tool that writes its config again and again, each time with the next number.
struct Tool {
    file: PathBuf,
    in_place: bool,
}

impl Tool {
    fn text(number: u32) -> String {
        format!("approval_policy = \"on-request\"\nnumber = {number}\npad = \"{}\"\n# end\n", "x".repeat(9_000))
    }

    fn write(&self, number: u32) {
        if self.in_place {
            fs::write(&self.file, Self::text(number)).unwrap();
        } else {
            let temp = self.file.with_extension("tool");
            fs::write(&temp, Self::text(number)).unwrap();
            fs::rename(&temp, &self.file).unwrap();
        }
    }

    /// What the tool reads must be what it wrote, whole, give or take the enforced key. An older text may show for the
    /// moment that it takes to put a newer one back.
    fn check(&self, number: u32) {
        let wrote = Self::text(number);
        let merged = wrote.replace("on-request", "never");
        let since = Instant::now();
        loop {
            let found = fs::read_to_string(&self.file).unwrap();
            if found == wrote || found == merged {
                return;
            }
            assert!(
                since.elapsed() < Duration::from_secs(10),
                "write {number} is lost: {:?}",
                found.lines().nth(1).unwrap_or_default()
            );
            thread::yield_now();
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn race(in_place: bool) {
    let home = Home::with(Tool::text(0));
    let tool = Tool { file: home.file(), in_place };
    let done = AtomicBool::new(false);
    let writes = 1_500;
    let merges = thread::scope(|scope| {
        let merger = scope.spawn(|| {
            let mut merges = 0;
            while !done.load(Ordering::Relaxed) {
                match apply(home.target()) {
                    Ok(applied) => merges += applied.changed.len(),
                    Err(ApplyError::Busy { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            merges
        });
        // Also when an assertion below fails: the scope waits for the merger.
        let _stop = StopOnDrop(&done);
        for number in 1..=writes {
            tool.write(number);
            tool.check(number);
            if number % 8 == 0 {
                // Now and then the merge has the file to itself.
                let came_through = || fs::read_to_string(&tool.file).is_ok_and(|text| text.contains("never"));
                let since = Instant::now();
                while !came_through() {
                    assert!(since.elapsed() < Duration::from_secs(10), "the merge never comes through");
                    thread::yield_now();
                }
                tool.check(number);
            }
        }
        done.store(true, Ordering::Relaxed);
        merger.join().unwrap()
    });
    assert!(merges >= 100, "the merge took part in the race: {merges}");
    apply(home.target()).unwrap();
    assert_eq!(home.text(), Tool::text(writes).replace("on-request", "never"));
    home.check_only(&["config.toml"]);
}

#[test]
fn no_write_is_lost_of_a_tool_that_renames_its_file_into_place() {
    race(false);
}

#[test]
fn no_write_is_lost_of_a_tool_that_writes_in_place() {
    race(true);
}

#[test]
fn two_merges_at_once_leave_one_whole_file() {
    for round in 0..50 {
        let home = if round % 2 == 0 { Home::with(BEFORE) } else { Home::new() };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| apply(home.target()).unwrap());
            }
        });
        assert_eq!(home.text(), if round % 2 == 0 { AFTER } else { "approval_policy = \"never\"\n" });
        home.check_only(&["config.toml"]);
    }
}
