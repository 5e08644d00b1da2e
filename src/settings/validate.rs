//! From settings as they are written to settings that the program may rely on.
//!
//! Each part gives `None` where it cannot be built, and has then noted why; the other parts are looked at all the same.

use std::path::PathBuf;

use super::{
    Broker, BrokerUrl, Control, Events, Fleet, Gate, Image, Package, Reach, Settings, Tls,
    broker_url::parse_list,
    path::Path,
    problem::{Findings, Places, quote},
    raw,
};

mod checks;
mod names;
mod profile;
mod workers;

/// Checks everything. `None` only after a problem was noted.
pub(super) fn settings(raw: raw::Raw, places: &Places, findings: &mut Findings) -> Option<Settings> {
    let mut look = Look { places, findings };
    let gate = gate(raw.gate, &mut look);
    let broker = broker(raw.broker, &mut look);
    let transport = broker.as_ref().map(Transport::of);
    let events = events(raw.events, transport, &mut look);
    let control = control(raw.control, &mut look);
    let fleet = fleet(&raw.fleet, &mut look);
    let raw::Evidence { max_age, flap_wait, flap_max } = raw.evidence;
    let checks = checks::checks(raw.checks, max_age, &mut look);
    let profile = profile::profile(raw.profile, &mut look);
    let image = image(raw.image, &mut look);
    let workers = workers::workers(raw.workers, transport, &events.exchange, &mut look);
    Some(Settings {
        gate,
        broker: broker?,
        events,
        control,
        evidence: super::Evidence { max_age, flap_wait, flap_max },
        fleet,
        checks: checks?,
        profile,
        image: image?,
        workers: workers?,
    })
}

/// Checks what leads to the gates and nothing else. `None` only after a problem was noted.
pub(super) fn reach(raw: raw::Raw, places: &Places, findings: &mut Findings) -> Option<Reach> {
    let mut look = Look { places, findings };
    let broker = broker(raw.broker, &mut look);
    let events = events(raw.events, broker.as_ref().map(Transport::of), &mut look);
    let control = control(raw.control, &mut look);
    Some(Reach { broker: broker?, events, control })
}

/// What the validators share: who said what, and where problems go.
struct Look<'a> {
    places: &'a Places,
    findings: &'a mut Findings,
}

impl Look<'_> {
    /// Notes a problem; `paths` are all that were looked at, the one to blame first. It is left out where one of them
    /// could not be read anyway.
    fn wrong<const N: usize>(&mut self, paths: [&Path; N], what: impl Into<String>, remedy: impl Into<String>) {
        self.findings.wrong(self.places, paths, what, remedy);
    }
}

/// What the broker speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Amqp,
    Redis,
}

impl Transport {
    fn of(broker: &Broker) -> Self {
        broker.urls.first().map_or(Self::Amqp, Self::of_url)
    }

    fn of_url(url: &BrokerUrl) -> Self {
        match url {
            BrokerUrl::Amqp(_) => Self::Amqp,
            BrokerUrl::Redis(_) => Self::Redis,
        }
    }
}

fn gate(raw: raw::Gate, look: &mut Look<'_>) -> Gate {
    let path = Path::of(["gate"]);
    if raw.name.is_empty() || raw.name.contains(char::is_control) {
        let what = format!("{} cannot name a gate", quote(&raw.name));
        look.wrong([&path.key("name")], what, "write a name that can be printed");
    }
    if raw.state_dir.is_empty() {
        look.wrong([&path.key("state_dir")], "there is no folder", "name one, such as \"/var/lib/worker-gate\"");
    }
    written_out(&path.key("state_dir"), &raw.state_dir, look);
    if !raw.listen.is_empty() && !is_host_and_port(&raw.listen) {
        let what = format!("{} is not a host and a port", quote(&raw.listen));
        look.wrong(
            [&path.key("listen")],
            what,
            "write for example \"127.0.0.1:9464\" or \"[::1]:9464\", or \"\" for none",
        );
    }
    Gate {
        name: raw.name,
        state_dir: PathBuf::from(raw.state_dir),
        listen: Some(raw.listen).filter(|listen| !listen.is_empty()),
    }
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '.' | '_')),
    };
    host && port
}

fn broker(raw: raw::Broker, look: &mut Look<'_>) -> Option<Broker> {
    let path = Path::of(["broker"]);
    let url = path.key("url");
    let urls = match parse_list(&raw.url) {
        Ok(urls) => urls,
        Err(problem) => {
            look.wrong([&url], problem.to_string(), "the URL is not shown, as it may hold a password");
            Vec::new()
        }
    };
    let mut transports: Vec<_> = urls.iter().map(Transport::of_url).collect();
    transports.dedup();
    if transports.len() > 1 {
        let remedy = "name brokers of one kind only: alternatives stand for the same queues";
        look.wrong([&url], "the alternatives are of RabbitMQ and of Redis", remedy);
    }
    if raw.heartbeat.subsec_nanos() != 0 || !(1..=65535).contains(&raw.heartbeat.as_secs()) {
        let what = format!("{} is not a heartbeat that AMQP can count", super::duration::text(raw.heartbeat));
        look.wrong([&path.key("heartbeat")], what, "write whole seconds, from \"1s\" to \"65535s\"");
    }
    let ascending = raw.priority_steps.iter().zip(raw.priority_steps.iter().skip(1)).all(|(low, high)| low < high);
    if raw.priority_steps.first() != Some(&0) || !ascending {
        let what = format!("the steps {:?} are not those of a Celery worker", raw.priority_steps);
        look.wrong(
            [&path.key("priority_steps")],
            what,
            "write them ascending and starting with 0, such as [0, 3, 6, 9]",
        );
    }
    if raw.master_name.is_empty() && urls.iter().any(BrokerUrl::is_sentinel) {
        let remedy = "write the name that sentinel.conf gives it, such as \"mymaster\"";
        look.wrong([&path.key("master_name"), &url], "sentinels are asked for a master, and it has no name", remedy);
    }
    for (this, other, given) in [
        ("cert_file", "key_file", (&raw.cert_file, &raw.key_file)),
        ("key_file", "cert_file", (&raw.key_file, &raw.cert_file)),
    ] {
        if !given.0.is_empty() && given.1.is_empty() {
            let what = format!("there is no {other} with it");
            look.wrong([&path.key(this), &path.key(other)], what, format!("give broker.{other} too, or neither"));
        }
    }
    for (name, text) in [("ca_file", &raw.ca_file), ("cert_file", &raw.cert_file), ("key_file", &raw.key_file)] {
        written_out(&path.key(name), text, look);
    }
    let tls = Tls { ca_file: file(raw.ca_file), cert_file: file(raw.cert_file), key_file: file(raw.key_file) };
    (!urls.is_empty()).then_some(Broker {
        urls,
        heartbeat: raw.heartbeat,
        global_keyprefix: raw.global_keyprefix,
        priority_steps: raw.priority_steps,
        master_name: raw.master_name,
        tls,
    })
}

/// No shell reads settings: a folder whose name is `~` would be made, or looked for, where the gate was started.
fn written_out(path: &Path, text: &str, look: &mut Look<'_>) {
    if text.starts_with('~') {
        let what = format!("{} begins with a \"~\", which stands for nobody's home here", quote(text));
        look.wrong([path], what, "write the path out, beginning with a \"/\"");
    }
}

fn file(text: String) -> Option<PathBuf> {
    Some(text).filter(|text| !text.is_empty()).map(PathBuf::from)
}

fn events(raw: raw::Events, transport: Option<Transport>, look: &mut Look<'_>) -> Events {
    let path = Path::of(["events", "exchange"]);
    names::name(&raw.exchange, "", transport, &path, look);
    Events { exchange: raw.exchange, mirror_celeryev: raw.mirror_celeryev }
}

fn control(raw: raw::Control, look: &mut Look<'_>) -> Control {
    written_out(&Path::of(["control", "key_file"]), &raw.key_file, look);
    Control { key_file: file(raw.key_file) }
}

fn fleet(raw: &raw::Fleet, look: &mut Look<'_>) -> Fleet {
    let text = raw.max_quarantined.as_str();
    let max_quarantined = percentage(text).filter(|share| (1..=99).contains(share));
    if max_quarantined.is_none() && !text.is_empty() {
        look.wrong(
            [&Path::of(["fleet", "max_quarantined"])],
            format!("{} is not a part of the workers", quote(text)),
            "write a percentage from \"1%\" to \"99%\", or \"\" for no limit",
        );
    }
    Fleet { max_quarantined }
}

fn percentage(text: &str) -> Option<u8> {
    let digits = text.strip_suffix('%')?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn image(raw: raw::Image, look: &mut Look<'_>) -> Option<Image> {
    let path = Path::of(["image", "manifest"]);
    if raw.required && raw.manifest.is_empty() {
        let remedy = "name it, such as \"/etc/worker-gate/image.json\", or set image.required to false";
        look.wrong([&path, &Path::of(["image", "required"])], "a manifest is required and not named", remedy);
    }
    written_out(&path, &raw.manifest, look);
    let mut package = |name: &str, text: &str| {
        let package = Package::parse(text);
        if package.is_none() {
            let what = format!("{} names no package", quote(text));
            look.wrong([&Path::of(["image", name])], what, "write npm:NAME or pypi:NAME");
        }
        package
    };
    let codex_cli = package("codex_cli_package", &raw.codex_cli_package);
    let spec_kit = package("spec_kit_package", &raw.spec_kit_package);
    if raw.smoke.iter().any(|command| command.first().is_none_or(String::is_empty)) {
        let remedy = "write the program and its arguments, such as [\"codex\", \"--version\"]";
        look.wrong([&Path::of(["image", "smoke"])], "a command has no program", remedy);
    }
    Some(Image {
        manifest: PathBuf::from(raw.manifest),
        required: raw.required,
        approved_base_images: raw.approved_base_images,
        codex_cli_package: codex_cli?,
        spec_kit_package: spec_kit?,
        smoke: raw.smoke,
    })
}
