//! Drift of the managed config on a real host: every way in which editors and people change a file, every way in which it
//! can be wrong, and what is none of the gate's business.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    facts::{Fact, Facts},
    gate::{Gate, Host},
    process::run,
    vhost::{Vhost, vhost},
    wait::throughout,
};

mod codex;
mod places;
mod tools;

const SOON: Duration = Duration::from_secs(30);
/// Without an event there is a look ten seconds after the last one, and each change here comes right after a look.
const BY_AN_EVENT: Duration = Duration::from_secs(9);
const LANE: &str = "codex-0";
const NEVER: &str = "never";
const ON_REQUEST: &str = "on-request";
/// A value that is nobody's business.
const SECRET: &str = "hidden-in-the-profile";

/// A profile with this `approval_policy`.
fn text(policy: &str) -> String {
    let server = format!("[mcp_servers.docs]\ncommand = \"true\"\nenv = {{ API_KEY = \"{SECRET}\" }}\n");
    format!("# mine\nmodel = \"o5\"\napproval_policy = \"{policy}\"\n\n{server}")
}

/// The same text with another one in it; panics if it has not the one that is to go.
#[track_caller]
fn changed(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from} in:\n{text}");
    text.replace(from, to)
}

/// Runs a line in a folder, with these variables.
#[track_caller]
fn sh(folder: &Path, line: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new("sh");
    command.args(["-euc", line]).current_dir(folder).envs(variables.iter().copied());
    run(command);
}

/// What has happened to the worker, in these facts; that its checks have run is no news.
fn kinds(facts: &[Fact]) -> Vec<&str> {
    let about = facts.iter().filter(|fact| fact.body["worker_name"] == LANE);
    about.map(Fact::kind).filter(|kind| *kind != "worker-health-check").collect()
}

/// A gate whose worker is admitted, and what it says.
struct Stage {
    gate: Gate,
    facts: Facts,
    vhost: Vhost,
    host: Host,
}

impl Stage {
    fn new(name: &str) -> Self {
        let (vhost, host) = (vhost(), Host::new(name));
        let settings = host.settings(&vhost.url(), LANE);
        Self::with(host, vhost, &settings, Host::start)
    }

    fn with(host: Host, vhost: Vhost, settings: &str, start: impl Fn(&Host, &str) -> Gate) -> Self {
        // Nothing but what a test does may lead to a look at the profile in its time.
        let settings = changed(settings, "max_age = \"20s\"", "max_age = \"10m\"");
        // What editors are given, and links are made to.
        for policy in [NEVER, ON_REQUEST] {
            let folder = host.home().join(policy);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("config.toml"), text(policy)).unwrap();
        }
        host.set_profile(&text(NEVER));
        let mut facts = Facts::of(&vhost);
        let gate = start(&host, &settings);
        gate.wait_for_edge(SOON, LANE, "open");
        facts.next(SOON, "worker-admitted", LANE);
        Self { gate, facts, vhost, host }
    }

    /// Runs a line in the home, as somebody at a terminal would.
    #[track_caller]
    fn sh(&self, line: &str, policy: &str) {
        sh(&self.host.home(), line, &[("POLICY", policy)]);
    }

    /// Waits for the edge and gives the time that it took since then, in which nothing but an event can have led to a look.
    #[track_caller]
    fn at_once(&self, what: &str, start: Instant, edge: &str) -> Duration {
        self.gate.wait_for_edge(SOON, LANE, edge);
        let took = start.elapsed();
        assert!(took < BY_AN_EVENT, "{what}: {edge} after {took:?}");
        took
    }

    /// The fact of a quarantine for a reason that has this in its detail. It must say what to do.
    #[track_caller]
    fn quarantined(&mut self, what: &str, codes: &[&str], detail: &str) -> Fact {
        let fact = self.facts.next(SOON, "worker-quarantined", LANE);
        let reason = &fact.body["reason"];
        assert!(codes.contains(&reason["code"].as_str().unwrap()), "{what}: {reason}");
        assert!(reason["detail"].as_str().unwrap().contains(detail), "{what}: {reason}");
        assert!(!reason["remedy"].as_str().unwrap().is_empty(), "{what}: {reason}");
        assert_eq!(fact.body["edge"], "shut", "{what}");
        assert!(fact.body["latency_ms"].is_f64(), "{what}: {}", fact.body);
        fact
    }

    /// Runs a line that makes the profile good again.
    #[track_caller]
    fn opens_after(&mut self, line: &str) {
        self.sh(line, NEVER);
        self.gate.wait_for_edge(SOON, LANE, "open");
        self.facts.next(SOON, "worker-admitted", LANE);
    }

    /// Makes a change that is none of the gate's business, and gives the fact that follows: the edge stays open throughout.
    #[track_caller]
    fn stays_open(&mut self, what: &str, change: impl FnOnce(&Self)) -> Fact {
        let hash = |record: &Value| record["config_hash"].as_str().unwrap().to_owned();
        let (told, before) = (self.facts.all().len(), self.gate.wait_until(SOON, LANE, "admitted"));
        change(self);
        let fact = self.facts.next(SOON, "worker-config-managed", LANE);
        assert_ne!(hash(&fact.body), hash(&before), "{what}");
        assert_eq!(fact.body["policy_hash"], before["policy_hash"], "{what}");
        throughout(Duration::from_millis(500), what, || self.vhost.is_open(LANE));
        // Were it ever shut, and be it for a moment, there would be a fact about it.
        let told = self.facts.all().split_off(told);
        assert_eq!(kinds(&told), ["worker-config-managed"], "{what}");
        let record = self.gate.wait_until(SOON, LANE, "admitted");
        assert_eq!((hash(&record), &record["edge"]), (hash(&fact.body), &Value::from("open")), "{what}");
        println!("{what}: {}", fact.body["changed_settings"]);
        fact
    }

    /// Nobody has been told what the profile says.
    fn told_no_secret(self) {
        let facts: String = self.facts.all().iter().map(|fact| fact.body.to_string()).collect();
        let audit = fs::read_to_string(self.host.state_dir().join("audit.jsonl")).unwrap();
        assert!(!facts.is_empty() && !audit.is_empty());
        for (what, said) in [("a fact", facts), ("the audit log", audit), ("the log", self.gate.log())] {
            assert!(!said.contains(SECRET), "{what} says it");
        }
        assert!(self.gate.stop().success());
    }
}

/// A file of its own in a folder of its own.
const PLAIN: &str = "cp -R never .codex";

/// How a file is brought to say another `$POLICY`: a name, what lays the good file out, and the way itself, all in the home.
/// The folder `$POLICY` has the file that is wanted.
const WAYS: &[(&str, &str, &str)] = &[
    ("sed -i", PLAIN, r#"sed -i "s/^approval_policy.*/approval_policy = \"$POLICY\"/" .codex/config.toml"#),
    (
        "vim",
        PLAIN,
        r#"vim -Nnes -u NONE -i NONE -c "%s/^approval_policy.*/approval_policy = \"$POLICY\"/" -c wq .codex/config.toml"#,
    ),
    (
        "an editor that keeps a backup by renaming",
        PLAIN,
        "cd .codex; mv config.toml config.toml~; cat ../$POLICY/config.toml >config.toml; sync config.toml; \
         rm config.toml~",
    ),
    (
        "an editor that keeps a backup by copying",
        PLAIN,
        "cd .codex; cp config.toml config.toml~; cat ../$POLICY/config.toml >config.toml; sync config.toml",
    ),
    (
        "an editor that renames a new file",
        PLAIN,
        "cd .codex; cat ../$POLICY/config.toml >.config.new; sync .config.new; mv .config.new config.toml",
    ),
    ("cp", PLAIN, "cp $POLICY/config.toml .codex/"),
    ("cp --remove-destination", PLAIN, "cp --remove-destination $POLICY/config.toml .codex/"),
    ("mv", PLAIN, "cp $POLICY/config.toml new; mv new .codex/config.toml"),
    ("install", PLAIN, "install -m 600 $POLICY/config.toml .codex/"),
    ("tar", PLAIN, "tar -C $POLICY -cf - config.toml | tar -C .codex -xf -"),
    ("rm, and a new one", PLAIN, "rm .codex/config.toml; cp $POLICY/config.toml .codex/"),
    (
        "a write by way of a hard link",
        "cp -R never .codex; ln .codex/config.toml alias",
        "cat $POLICY/config.toml >alias",
    ),
    (
        "ln -sfn of the file",
        "mkdir .codex; ln -s ../never/config.toml .codex/config.toml",
        "ln -sfn ../$POLICY/config.toml .codex/config.toml",
    ),
    ("ln -sfn of its folder", "ln -s never .codex", "ln -sfn $POLICY .codex"),
    (
        "an edit behind a link",
        "cp -R never dotfiles; mkdir .codex; ln -s ../dotfiles/config.toml .codex/config.toml",
        "cp $POLICY/config.toml new; mv new dotfiles/config.toml",
    ),
    ("its folder replaced", PLAIN, "cp -R $POLICY new; mv .codex old; mv new .codex; rm -r old"),
    (
        "its folder replaced behind a link",
        "mkdir opt; cp -R never opt/codex; ln -s opt/codex .codex",
        "cp -R $POLICY new; mv opt/codex old; mv new opt/codex; rm -r old",
    ),
    (
        "another version of a Kubernetes volume",
        "mkdir .codex; cp -R never .codex/..1; ln -s ..1 .codex/..data; ln -s ..data/config.toml .codex/config.toml",
        "cd .codex; new=..$(date +%s%N); cp -R ../$POLICY $new; ln -s $new ..data_tmp; mv -T ..data_tmp ..data",
    ),
];

/// Each way is gone so often, there and back: a watch that the first change takes away misses the second.
const ROUNDS: usize = 3;
#[test]
fn every_way_to_edit_the_profile_shuts_the_edge_at_once_and_every_way_back_opens_it() {
    let mut stage = Stage::new("ways");
    for (name, lay_out, way) in WAYS {
        let program = way.split(' ').next().unwrap();
        if !Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap().status.success() {
            println!("skipped, because there is no {program}: {name}");
            continue;
        }
        stage.sh("rm -rf .codex alias dotfiles opt", NEVER);
        stage.quarantined(name, &["profile_missing"], "does not exist");
        stage.opens_after(lay_out);
        let mut took = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            stage.sh(way, ON_REQUEST);
            took.push(stage.at_once(name, start, "shut"));
            // Of an edit in several steps the first one may have been seen.
            stage.quarantined(name, &["profile_drifted", "profile_missing"], "config.toml");
            stage.gate.wait_for(SOON, LANE, &format!("{name}: what it says in the end"), |record| {
                record["reason"]["code"] == "profile_drifted"
                    && record["reason"]["detail"].as_str().unwrap().contains("approval_policy is \"on-request\"")
            });
            let start = Instant::now();
            stage.sh(way, NEVER);
            took.push(stage.at_once(name, start, "open"));
            stage.facts.next(SOON, "worker-admitted", LANE);
        }
        println!("{name}: {took:?}");
    }
    stage.told_no_secret();
}

/// What can be wrong with a profile: a name, what makes it so, the reason's code, and what its detail must say.
const PROBLEMS: &[(&str, &str, &str, &[&str])] = &[
    ("the key is gone", "sed -i /^approval/d .codex/config.toml", "profile_drifted", &["approval_policy is not set"]),
    ("emptied", ": >.codex/config.toml", "profile_drifted", &["approval_policy is not set"]),
    (
        "another profile is selected",
        r#"printf 'profile = "x"\napproval_policy = "never"\n[profiles.x]\napproval_policy = "on-failure"\n' >new
           mv new .codex/config.toml"#,
        "profile_drifted",
        &["approval_policy is \"on-failure\"", "profiles.x"],
    ),
    (
        "another type",
        "sed -i 's/^approval.*/approval_policy = [\"never\"]/' .codex/config.toml",
        "profile_drifted",
        &["approval_policy is "],
    ),
    (
        "not TOML",
        "printf 'approval_policy = \"never\"\nkey = hidden-in-the-profile\n' >new; mv new .codex/config.toml",
        "profile_drifted",
        &["is not TOML: line 2"],
    ),
    ("not UTF-8", r"printf '# \377' >new; mv new .codex/config.toml", "profile_drifted", &["is not UTF-8 at byte 2"]),
    ("too large", "head -c 2M /dev/zero >new; mv new .codex/config.toml", "profile_drifted", &["larger than 1 MiB"]),
    ("deleted", "rm .codex/config.toml", "profile_missing", &[".codex/config.toml does not exist"]),
    ("its folder deleted", "rm -r .codex", "profile_missing", &[".codex/config.toml does not exist"]),
    ("a link to nowhere", "ln -sfn none .codex/config.toml", "profile_missing", &[".codex/none does not exist"]),
    (
        "a link out of the home",
        "ln -sfn /etc/hostname .codex/config.toml",
        "profile_drifted",
        &["leads out of the home"],
    ),
    ("a link to itself", "ln -sfn config.toml .codex/config.toml", "profile_drifted", &["too many symbolic links"]),
    (
        "a directory",
        "mkdir new; mv .codex/config.toml old; mv -T new .codex/config.toml",
        "profile_drifted",
        &["it is a directory"],
    ),
    ("a pipe", "mkfifo new; mv new .codex/config.toml", "profile_drifted", &["it is a named pipe"]),
    (
        "a file where its folder was",
        "touch new; mv .codex old; mv -T new .codex",
        "profile_drifted",
        &["cannot look at"],
    ),
    ("somebody else's", "chown 1234 .codex/config.toml", "profile_drifted", &["belongs to 1234:", "must belong to"]),
    ("another group's", "chgrp 1234 .codex/config.toml", "profile_drifted", &[":1234 ", "must belong to"]),
];

#[test]
fn whatever_is_wrong_with_the_profile_shuts_the_edge_and_the_reason_says_what_and_what_to_do() {
    let mut stage = Stage::new("problems");
    for (name, line, code, details) in PROBLEMS {
        if line.starts_with("ch") && !nix::unistd::Uid::effective().is_root() {
            println!("skipped, because only root can give a file away: {name}");
            continue;
        }
        let start = Instant::now();
        stage.sh(line, ON_REQUEST);
        stage.at_once(name, start, "shut");
        // Of a change in two steps the first one may have been seen.
        let fact = stage.quarantined(name, &[code, "profile_missing"], ".codex");
        let record = stage.gate.wait_for(SOON, LANE, &format!("{name}: {details:?}"), |record| {
            let reason = &record["reason"];
            reason["code"] == *code && details.iter().all(|detail| reason["detail"].as_str().unwrap().contains(detail))
        });
        println!("{name}: {}", record["reason"]);
        assert!(
            fact.body["reason"] == record["reason"] || line.contains("; mv -T "),
            "{name}: {}",
            fact.body["reason"]
        );
        assert_eq!(record["failure_message"], record["reason"]["detail"], "{name}");
        stage.opens_after("rm -rf .codex new old; cp -R never .codex");
    }
    stage.told_no_secret();
}

/// What is none of the gate's business, with the names of the keys that it is about. All of it is written as Codex writes,
/// by a rename.
const OTHERS: &[(&str, &str, &[&str])] = &[
    ("another value", "sed -i 's/^model.*/model = \"o6\"/' .codex/config.toml", &["model"]),
    ("another secret", "sed -i 's/hidden-in-the-profile/&-2/' .codex/config.toml", &["mcp_servers.docs.env.API_KEY"]),
    (
        "two more keys",
        r#"(cat .codex/config.toml; printf '\n[projects."/work/app"]\ntrust_level = "trusted"\n[tui]\ntheme = "dark"\n') >new
           mv new .codex/config.toml"#,
        &[r#"projects."/work/app".trust_level"#, "tui.theme"],
    ),
    ("a key less", "sed -i /^model/d .codex/config.toml", &["model"]),
    ("a comment", "sed -i 's/^# mine/# ours/' .codex/config.toml", &[]),
];

#[test]
fn other_keys_of_the_profile_may_change_and_the_fact_names_them() {
    let mut stage = Stage::new("others");
    for (name, line, keys) in OTHERS {
        let fact = stage.stays_open(name, |stage| stage.sh(line, NEVER));
        assert_eq!(fact.body["changed_settings"], json!(keys), "{name}");
    }
    stage.told_no_secret();
}
