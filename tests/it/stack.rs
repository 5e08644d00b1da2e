//! The stack of docker-compose.yml and the manifests of config/kubernetes: their own tools take them, everything in them is used, and
//! their command lines do outside containers, with the same settings, what README says of them.

mod files;
mod kubernetes;
mod place;
mod story;

use std::{collections::BTreeSet, fs, process::Command};

use files::{BROKERS, PROFILES, compose, root, services, text};

use crate::support::{process::run, scratch::Scratch};

/// Services whose command lines the story runs.
const TOLD: [&str; 9] =
    ["rabbitmq", "redis", "login-1", "login-2", "worker-1", "worker-2", "producer", "alerts", "prometheus"];

#[test]
fn compose_takes_the_file_with_every_profile_and_on_both_brokers() {
    for broker in BROKERS {
        for profiles in [&[][..], &PROFILES[..1], &PROFILES[1..], &PROFILES] {
            let profiles = profiles.iter().flat_map(|profile| ["--profile", profile]);
            let words: Vec<_> = broker.iter().copied().chain(profiles).chain(["config", "-q"]).collect();
            run(compose(&words));
        }
    }
    let dir = Scratch::new("compose");
    let file = dir.join("docker-compose.yml");
    for (right, wrong) in [
        ("    healthcheck:", "    healthchecks:"),
        ("condition: service_healthy", "condition: healthy"),
        ("ports: [\"127.0.0.1:9090:9090\"]", "ports: 9090"),
        ("\nvolumes:\n", "\nvolume:\n"),
    ] {
        let bad = text("docker-compose.yml").replacen(right, wrong, 1);
        assert_ne!(bad, text("docker-compose.yml"), "no {right}");
        fs::write(&file, bad).unwrap();
        let output = compose(&["-f", file.to_str().unwrap(), "config", "-q"]).output().unwrap();
        assert!(!output.status.success(), "{wrong} is taken");
    }
}

#[test]
fn every_image_port_volume_and_command_in_it_is_run_here_or_told_by_the_readme() {
    let readme = text("README.md");
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).ok();
    let mut mounted = BTreeSet::new();
    for broker in BROKERS {
        let services = services(broker);
        assert!(TOLD.iter().all(|name| services.contains_key(*name)), "{:?}", services.keys());
        for (name, service) in &services {
            let image = service.0["image"].as_str().unwrap();
            assert!(readme.contains(&format!("`{image}`")), "README does not name the image {image} of {name}");
            if let (Some(target), Some(dockerfile)) = (service.0["build"]["target"].as_str(), &dockerfile) {
                assert!(dockerfile.contains(&format!(" AS {target}\n")), "{name}: no target {target}");
            }
            if service.0["build"].is_null() {
                assert!(image.split_once(':').is_some_and(|(_, tag)| tag != "latest"), "{name}: {image} is not pinned");
            }
            for address in service.ports() {
                assert!(address.starts_with("127.0.0.1:"), "{name}: {address} is open to others");
                assert!(readme.contains(&address), "README does not say what is at {address}");
            }
            for (source, target) in service.mounts() {
                if source.starts_with('/') {
                    assert!(fs::metadata(&source).is_ok(), "{name}: there is no {source} for {target}");
                    mounted.insert(source);
                } else {
                    assert!(readme.contains(&format!("`{source}`")), "README does not say what is in {source}");
                }
            }
            let commands = [service.words("entrypoint"), service.words("command")].concat();
            let is_run = TOLD.contains(&name.as_str());
            assert!(is_run || commands.is_empty(), "nobody runs {commands:?} of {name}");
            let restart = service.0["restart"].as_str().unwrap_or("no");
            // Logging in is done once; all else comes back, such as a worker that was recycled.
            assert_eq!(restart, if name.starts_with("login") { "no" } else { "unless-stopped" }, "{name}");
        }
    }
    // And the other way round: no settings lie about that nothing reads.
    let mut found = 0;
    for entry in files_below("config/compose") {
        let is_mounted = mounted.iter().any(|source| entry.starts_with(source));
        assert!(is_mounted || entry.ends_with("redis.env"), "nothing mounts {entry}");
        found += 1;
    }
    assert!(found >= 9, "{found}");
}

#[test]
fn grafana_finds_its_data_source_and_the_dashboard() {
    let services = services(BROKERS[0]);
    let grafana = &services["grafana"];
    let provisioned = |folder: &str| {
        let file = grafana.mounted(&format!("/etc/grafana/provisioning/{folder}/worker-gate.yml"));
        files::yaml(&fs::read_to_string(file).unwrap()).remove(0)
    };
    let source = &provisioned("datasources")["datasources"][0];
    assert_eq!(source["type"], "prometheus");
    assert_eq!(source["isDefault"], true, "the dashboard takes the first one");
    let (host, port) = source["url"].as_str().unwrap().strip_prefix("http://").unwrap().split_once(':').unwrap();
    assert!(services.contains_key(host), "{host}");
    assert!(services[host].ports().iter().any(|address| address.ends_with(&format!(":{port}"))), "{port}");
    let folder = provisioned("dashboards")["providers"][0]["options"]["path"].as_str().unwrap().to_owned();
    assert_eq!(grafana.mounted(&format!("{folder}/worker-gate.json")), root().join("config/grafana/worker-gate.json"));
}

/// Paths of all files of the project in a folder, without what Python leaves behind.
fn files_below(folder: &str) -> Vec<String> {
    let mut command = Command::new("find");
    command.arg(root().join(folder)).args(["-type", "f", "-not", "-path", "*/__pycache__/*"]);
    run(command).lines().map(str::to_owned).collect()
}
