//! From `built` to `verified`: what an image is made of is recorded, and every rule is tried before it may be tagged.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use serde_json::Value;
use worker_gate::{image::Manifest, model::ImageState};

use crate::support::{
    gate::{Host, MANAGED},
    vhost::vhost,
};

const SOON: Duration = Duration::from_secs(30);
const BASE: &str = "python:3.11-slim";
const SPECKIT: &str = "case \"$1\" in\n--version) echo 'specify 1.2.3' ;;\n*) echo 'Usage: specify' ;;\nesac\n";
const PUBLISHED: &str = "# brought along\nnpm:@openai/codex 0.168.0 0.169.0\npypi:specify-cli 1.2.3\n";

/// A host with everything that an image needs.
struct Image {
    host: Host,
    settings: String,
}

impl Image {
    fn new() -> Self {
        let host = Host::new("image");
        host.set_tool("speckit", SPECKIT);
        let image = Self { settings: String::new(), host };
        image.node("v18.20.4");
        fs::write(image.file("template.toml"), "approval_policy = \"never\"\n").unwrap();
        fs::write(image.file("published"), PUBLISHED).unwrap();
        let settings =
            image.host.settings("redis://localhost", "codex-0").replace("edge = \"route\"", "edge = \"feed\"");
        let settings =
            settings.replace(r#"exchange = "codex", type = "direct", keys = ["codex-0"]"#, r#"queue = "codex""#);
        let (template, manifest) = (image.file("template.toml"), image.manifest());
        let settings = settings.replace("template = \"\"", &format!("template = {template:?}")).replace(
            "[evidence]",
            &format!("[image]\nmanifest = {manifest:?}\napproved_base_images = [\"python:3.1?-slim*\"]\n\n[evidence]"),
        );
        Self { settings, ..image }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.state_dir().with_file_name(name)
    }

    fn manifest(&self) -> PathBuf {
        self.file("image.json")
    }

    fn node(&self, version: &str) {
        fs::write(self.host.tool("node"), format!("#!/bin/sh\necho {version}\n")).unwrap();
        fs::set_permissions(self.host.tool("node"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, args: &[&str]) -> (i32, String) {
        let output = self.host.command(&self.settings, args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    }

    fn record(&self) -> (i32, String) {
        self.run(&["image", "record", "--base-image", BASE])
    }

    /// The rules that do not hold, by name.
    fn broken(&self) -> (i32, Vec<String>) {
        let list = self.file("published");
        let (code, text) = self.run(&["image", "verify", "--json", "--offline", list.to_str().unwrap()]);
        let rules: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        let broken = rules.iter().filter(|rule| rule["holds"] == false);
        assert!(broken.clone().all(|rule| !rule["remedy"].as_str().unwrap().is_empty()), "{text}");
        (code, broken.map(|rule| rule["rule"].as_str().unwrap().to_owned()).collect())
    }

    /// Changes what the manifest says, and seals it again, as somebody does who knows how.
    fn forge(&self, change: impl FnOnce(&mut Manifest)) {
        let mut manifest = Manifest::read(&self.manifest()).unwrap();
        change(&mut manifest);
        manifest.write(&self.manifest()).unwrap();
    }
}

#[test]
fn an_image_that_keeps_every_rule_is_verified_and_says_by_what() {
    let image = Image::new();
    let (code, text) = image.record();
    assert_eq!(code, 0, "{text}");
    let built = Manifest::read(&image.manifest()).unwrap();
    assert_eq!(built.state, ImageState::Built);
    assert_eq!((built.codex_cli_version.as_str(), built.spec_kit_version.as_str()), ("0.169.0", "1.2.3"));
    assert_eq!((built.node_version.as_str(), built.base_image.as_str()), ("18.20.4", BASE));
    assert!(built.install_logs.iter().any(|log| log.contains(" codex --version: codex-cli 0.169.0 [sha256 ")));
    assert!(built.install_logs.iter().any(|log| log.contains(" speckit --version: specify 1.2.3 [sha256 ")));
    assert!(built.tools["codex_cli"].keys().any(|path| path.ends_with("/tools/codex")), "{:?}", built.tools);
    assert_eq!(image.broken(), (0, Vec::new()));
    let verified = Manifest::read(&image.manifest()).unwrap();
    assert_eq!(verified.state, ImageState::Verified);
    let by = verified.verified.unwrap();
    assert!(by.published["npm:@openai/codex"].contains("the list"), "{by:?}");
    assert!(by.rules.iter().any(|rule| rule == "smoke: speckit --help"), "{by:?}");
    // Once more is no other outcome.
    assert_eq!(image.broken(), (0, Vec::new()));
}

#[test]
fn check_says_what_is_wrong_with_the_image_where_only_a_verified_one_will_do() {
    let mut image = Image::new();
    image.host.set_profile(MANAGED);
    let check = |image: &Image| {
        let (code, text) = image.run(&["check", "--json"]);
        let records: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        (code, records[0]["reason"]["detail"].as_str().map(str::to_owned))
    };
    assert_eq!(check(&image), (0, None), "nobody asks for one");
    image.settings = image.settings.replace("[image]\n", "[image]\nrequired = true\n");
    let (code, why) = check(&image);
    assert!(code == 1 && why.as_ref().unwrap().contains("there is no image manifest"), "{why:?}");
    image.record();
    let (code, why) = check(&image);
    assert!(code == 1 && why.as_ref().unwrap().contains("only a verified image"), "{why:?}");
    assert!(image.run(&["check"]).1.contains("only a verified image"));
    assert_eq!(image.broken(), (0, Vec::new()));
    assert_eq!(check(&image), (0, None));
    image.host.set_tool("codex", "echo 'codex-cli 0.170.0'\n");
    let (code, why) = check(&image);
    assert!(code == 1 && why.as_ref().unwrap().contains("0.170.0"), "{why:?}");
}

#[test]
fn each_rule_is_broken_by_what_it_is_about_and_the_image_stays_built() {
    type Break = fn(&Image);
    let table: [(&str, Break); 17] = [
        ("base_image", |image| image.forge(|manifest| manifest.base_image = "debian:sid".into())),
        ("node_version", |image| image.forge(|manifest| manifest.node_version = "16.20.2".into())),
        ("node_version", |image| image.forge(|manifest| manifest.node_version = "20.0.0-rc.1".into())),
        ("node_is_installed", |image| image.node("v20.1.0")),
        ("codex_cli_version", |image| image.forge(|manifest| manifest.codex_cli_version = String::new())),
        ("spec_kit_version", |image| image.forge(|manifest| manifest.spec_kit_version = "latest".into())),
        ("codex_cli_is_installed", |image| image.host.set_tool("codex", "echo 'codex-cli 0.170.0'\n")),
        ("spec_kit_is_installed", |image| fs::remove_file(image.host.tool("speckit")).unwrap()),
        ("codex_cli_is_published", |image| fs::write(image.file("published"), "pypi:specify-cli 1.2.3").unwrap()),
        ("spec_kit_is_published", |image| fs::write(image.file("published"), "npm:@openai/codex 0.169.0").unwrap()),
        ("template", |image| fs::write(image.file("template.toml"), "approval_policy = \"on-request\"\n").unwrap()),
        ("template_is_readable", |image| fs::remove_file(image.file("template.toml")).unwrap()),
        ("codex_cli_is_logged", |image| {
            image.forge(|manifest| manifest.install_logs.retain(|log| !log.contains("codex")));
        }),
        ("spec_kit_is_logged", |image| image.forge(|manifest| manifest.install_logs.clear())),
        ("codex_cli_is_as_recorded", |image| {
            let tool = fs::read_to_string(image.host.tool("codex")).unwrap();
            fs::write(image.host.tool("codex"), format!("{tool}# somebody was here\n")).unwrap();
        }),
        ("smoke: speckit --help", |image| {
            image.host.set_tool("speckit", &SPECKIT.replace("*) echo 'Usage: specify' ;;", "*) exit 3 ;;"));
        }),
        ("manifest", |image| {
            let text = fs::read_to_string(image.manifest()).unwrap();
            fs::write(image.manifest(), text.replace("\"built\"", "\"verified\"")).unwrap();
        }),
    ];
    for (rule, break_it) in table {
        let image = Image::new();
        assert_eq!(image.record().0, 0);
        break_it(&image);
        let (code, broken) = image.broken();
        assert_eq!(code, 1, "{rule}");
        assert!(broken.iter().any(|name| name == rule), "{rule}: {broken:?}");
        if rule != "manifest" {
            assert_eq!(Manifest::read(&image.manifest()).unwrap().state, ImageState::Built, "{rule}");
        }
    }
    let image = Image::new();
    assert_eq!(image.broken(), (1, vec!["manifest".to_owned()]), "there is none");
}

#[test]
fn what_is_missing_at_the_build_is_all_said_at_once() {
    let image = Image::new();
    fs::remove_file(image.host.tool("codex")).unwrap();
    fs::remove_file(image.file("template.toml")).unwrap();
    let (code, text) = image.record();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("nothing was recorded") && text.contains("codex --version"), "{text}");
    assert!(text.contains("profile.template") && !image.manifest().exists(), "{text}");
}

#[test]
fn a_registry_is_asked_where_no_list_is_given() {
    let image = Image::new();
    let npm = "#!/bin/sh\n[ \"$1 $2 $3 $4\" = 'view @openai/codex versions --json' ] && echo '[\"0.169.0\"]'\n";
    // As `python3 -m pip index versions` prints it.
    let python = "#!/bin/sh\n[ \"$4 $5\" = 'versions specify-cli' ] && echo 'Available versions: 1.2.3, 1.0.0'\n";
    for (tool, text) in [("npm", npm), ("python3", python)] {
        fs::write(image.host.tool(tool), text).unwrap();
        fs::set_permissions(image.host.tool(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert_eq!(image.record().0, 0);
    let (code, text) = image.run(&["image", "verify"]);
    assert_eq!(code, 0, "{text}");
    let by = Manifest::read(&image.manifest()).unwrap().verified.unwrap();
    assert_eq!(by.published["npm:@openai/codex"], "`npm view @openai/codex versions --json`");
    fs::write(image.host.tool("npm"), "#!/bin/sh\necho 'npm ERR! network' >&2; exit 1\n").unwrap();
    let (code, text) = image.run(&["image", "verify"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("broken  codex_cli_is_published") && text.contains("--offline LIST"), "{text}");
}

#[test]
fn a_worker_is_admitted_on_an_image_that_was_verified() {
    let (image, vhost) = (Image::new(), vhost());
    assert_eq!(image.record().0, 0);
    let settings = image
        .host
        .settings(&vhost.url(), "codex-0")
        .replace("[evidence]", &format!("[image]\nmanifest = {:?}\nrequired = true\n\n[evidence]", image.manifest()));
    let gate = image.host.start(&settings);
    let record = gate.wait_until(SOON, "codex-0", "quarantined");
    assert_eq!(record["reason"]["code"], "image_unverified", "{record}");
    assert_eq!(image.broken(), (0, Vec::new()));
    let record = gate.wait_until(SOON, "codex-0", "admitted");
    assert_eq!(record["image"]["state"], "verified", "{record}");
}
