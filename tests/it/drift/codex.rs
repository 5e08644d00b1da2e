//! The real Codex CLI, which writes to the managed config itself.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{LANE, SOON, Stage, changed};
use crate::support::{gate::Host, vhost::vhost};

/// Codex stores any key and asks nobody about it; this one opens nothing.
const KEY: &str = "sk-made-up-for-a-test";

/// Where the CLI is that scripts/setup installs.
#[track_caller]
fn installed() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/npm/node_modules/.bin");
    assert!(folder.join("codex").exists(), "no Codex CLI in {}: run scripts/setup", folder.display());
    folder
}

/// The folder of the program that PATH leads to.
#[track_caller]
pub(super) fn folder_of(program: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap();
    let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found
        .unwrap_or_else(|| panic!("no {program}: run scripts/setup"))
        .canonicalize()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned()
}

/// A host with the real Codex CLI, logged in, and the PATH that finds it.
struct Real {
    path: String,
    home: PathBuf,
}

impl Real {
    fn new(host: &Host) -> Self {
        let path = format!("{}:{}:/usr/bin:/bin", installed().display(), folder_of("node").display());
        let real = Self { path, home: host.home() };
        real.codex(&["login", "--with-api-key"], KEY);
        real
    }

    /// Runs the CLI as the worker's user would.
    #[track_caller]
    fn codex(&self, args: &[&str], input: &str) -> String {
        let mut command = Command::new(installed().join("codex"));
        command.args(args).env_clear().env("HOME", &self.home).env("PATH", &self.path).current_dir(&self.home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "codex {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A stage with the real Codex CLI; the other tool stays a fake one.
fn stage() -> (Stage, Real) {
    let (vhost, host) = (vhost(), Host::new("codex"));
    let real = Real::new(&host);
    let tools = host.tool("codex").parent().unwrap().display().to_string();
    fs::remove_file(host.tool("codex")).unwrap();
    let settings = host.settings(&vhost.url(), LANE);
    let settings = changed(&settings, &format!("{tools}:/usr/bin"), &format!("{}:{tools}:/usr/bin", real.path));
    (Stage::with(host, vhost, &settings, Host::start), real)
}

#[test]
fn what_codex_says_of_a_config_that_it_cannot_use_reaches_nobody_with_the_values_in_it() {
    let (stage, _) = stage();
    let file = fs::read_to_string(stage.host.profile()).unwrap();
    // The enforced key is right, so the check is what fails: Codex names the place, and the value that is wrong there.
    stage.host.set_profile(&format!("{file}\n[mcp_servers.b]\ncommand = \"b\"\nenv = \"hidden-in-the-profile\"\n"));
    let record = stage.gate.wait_until(SOON, LANE, "quarantined");
    assert_eq!(record["reason"]["code"], "check_failed");
    assert!(record["reason"]["detail"].as_str().unwrap().contains("config.toml"), "{}", record["reason"]);
    stage.told_no_secret();
}

#[test]
fn codexs_own_writes_stay_and_an_edit_of_its_approval_policy_quarantines() {
    let (mut stage, real) = stage();
    let version = real.codex(&["--version"], "");
    let record = stage.gate.wait_until(SOON, LANE, "admitted");
    println!("{} {}", version.trim(), record["checks"]["codex_cli"]);
    assert!(version.contains(record["checks"]["codex_cli"]["version"].as_str().unwrap()), "{version} {record}");

    let profile = stage.host.profile();
    let fact = stage.stays_open("codex mcp add", |_| {
        real.codex(&["mcp", "add", "search", "--env", "TOKEN=hidden-in-the-profile-3", "--", "/bin/true"], "");
    });
    assert!(fs::read_to_string(&profile).unwrap().contains("[mcp_servers.search]"));
    let keys = ["args", "command", "env.TOKEN"].map(|key| format!("mcp_servers.search.{key}"));
    let told = fact.body["changed_settings"].as_array().unwrap();
    assert!(!told.is_empty() && told.iter().all(|key| keys.iter().any(|known| key == known.as_str())), "{told:?}");

    // As Codex writes it when somebody trusts a folder.
    let trusted = "\n[projects.\"/work/app\"]\ntrust_level = \"trusted\"\n";
    let fact = stage.stays_open("a trusted project", |stage| {
        stage.host.set_profile(&format!("{}{trusted}", fs::read_to_string(&profile).unwrap()));
    });
    assert_eq!(fact.body["changed_settings"], serde_json::json!([r#"projects."/work/app".trust_level"#]));
    let fact = stage.stays_open("codex mcp remove", |_| {
        real.codex(&["mcp", "remove", "search"], "");
    });
    assert_eq!(fact.body["changed_settings"].as_array().unwrap(), told);

    let good = fs::read_to_string(&profile).unwrap();
    stage.host.set_profile(&changed(&good, "\"never\"", "\"on-request\""));
    stage.gate.wait_for_edge(SOON, LANE, "shut");
    stage.quarantined("an edit", &["profile_drifted"], "approval_policy is \"on-request\" and must be \"never\"");
    // What Codex writes meanwhile makes nothing good again.
    real.codex(&["mcp", "add", "other", "--", "/bin/true"], "");
    stage.gate.wait_for(SOON, LANE, "its hash is another", |record| {
        record["profile"]["extra_settings"].to_string().contains("mcp_servers.other")
            && record["admission"] == "quarantined"
    });
    let file = fs::read_to_string(&profile).unwrap();
    stage.host.set_profile(&changed(&file, "\"on-request\"", "\"never\""));
    stage.gate.wait_for_edge(SOON, LANE, "open");
    stage.told_no_secret();
}
