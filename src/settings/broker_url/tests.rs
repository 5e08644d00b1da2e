use proptest::prelude::*;

use super::*;

fn amqp(host: &str, port: u16, user: &str, password: &str, vhost: &str, tls: bool) -> BrokerUrl {
    BrokerUrl::Amqp(AmqpUrl {
        host: host.to_owned(),
        port,
        user: user.to_owned(),
        password: Secret::new(password),
        vhost: vhost.to_owned(),
        tls,
    })
}

fn redis(endpoint: RedisEndpoint, user: Option<&str>, password: Option<&str>, db: u32) -> BrokerUrl {
    let (user, password) = (user.map(str::to_owned), password.map(Secret::new));
    BrokerUrl::Redis(RedisUrl { endpoint, user, password, db })
}

fn tcp(host: &str, port: u16, tls: bool) -> RedisEndpoint {
    RedisEndpoint::Tcp { host: host.to_owned(), port, tls }
}

fn sentinel(host: &str) -> RedisEndpoint {
    RedisEndpoint::Sentinel { host: host.to_owned(), port: 26379 }
}

#[test]
fn amqp_urls_mean_what_kombu_reads_in_them() {
    let guest = |vhost| amqp("h", 5672, "guest", "guest", vhost, false);
    for (text, expected) in [
        ("amqp://h//", guest("/")),
        ("amqp://h", guest("/")),
        ("amqp://h/", guest("/")),
        ("amqp://h/foo", guest("foo")),
        ("amqp://h//foo", guest("/foo")),
        ("amqp://h/%2ffoo", guest("/foo")),
        ("amqp://h/%2F", guest("/")),
        ("amqp://h/a/b", guest("a/b")),
        ("amqp://h:/", guest("/")),
        ("pyamqp://h//", guest("/")),
        ("AMQP://H//", guest("/")),
        ("amqp://", amqp("localhost", 5672, "guest", "guest", "/", false)),
        ("amqp://:5673", amqp("localhost", 5673, "guest", "guest", "/", false)),
        ("amqp://guest:guest@localhost:5672//", amqp("localhost", 5672, "guest", "guest", "/", false)),
        ("amqp://u%40x:p%2F%23%3a@h:5673/v", amqp("h", 5673, "u@x", "p/#:", "v", false)),
        ("amqp://u:p:q@h", amqp("h", 5672, "u", "p:q", "/", false)),
        ("amqp://u:p@q@h", amqp("h", 5672, "u", "p@q", "/", false)),
        ("amqp://u@h", amqp("h", 5672, "u", "guest", "/", false)),
        ("amqp://u:100%@h", amqp("h", 5672, "u", "100%", "/", false)),
        ("amqp://u:p@[::1]:5673/v", amqp("::1", 5673, "u", "p", "v", false)),
        ("amqp://[FE80::1]", amqp("fe80::1", 5672, "guest", "guest", "/", false)),
        ("amqps://u:p@h/v", amqp("h", 5671, "u", "p", "v", true)),
        ("amqps://h?ssl_cert_reqs=required", amqp("h", 5671, "guest", "guest", "/", true)),
        (
            "amqps://h//?ssl_cert_reqs=CERT_REQUIRED&ssl_check_hostname=True",
            amqp("h", 5671, "guest", "guest", "/", true),
        ),
        ("amqp://h/v?heartbeat=", guest("v")),
    ] {
        assert_eq!(BrokerUrl::parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn redis_urls_mean_what_kombu_reads_in_them() {
    for (text, expected) in [
        ("redis://:pw@h:6380/3", redis(tcp("h", 6380, false), None, Some("pw"), 3)),
        ("redis://h", redis(tcp("h", 6379, false), None, None, 0)),
        ("redis://h/", redis(tcp("h", 6379, false), None, None, 0)),
        ("redis://h//", redis(tcp("h", 6379, false), None, None, 0)),
        ("redis://h//7", redis(tcp("h", 6379, false), None, None, 7)),
        ("redis://", redis(tcp("127.0.0.1", 6379, false), None, None, 0)),
        ("redis://[::1]:6380/1", redis(tcp("::1", 6380, false), None, None, 1)),
        ("rediss://u:p@h/0?ssl_cert_reqs=required", redis(tcp("h", 6379, true), Some("u"), Some("p"), 0)),
        ("redis+socket:///path?virtual_host=2", redis(RedisEndpoint::Socket("/path".into()), None, None, 2)),
        ("redis+socket:///run/r%20s.sock", redis(RedisEndpoint::Socket("/run/r s.sock".into()), None, None, 0)),
        ("redis+socket://:pw@/run/r.sock", redis(RedisEndpoint::Socket("/run/r.sock".into()), None, Some("pw"), 0)),
        ("sentinel://a:26379/0", redis(sentinel("a"), None, None, 0)),
        ("sentinel://:pw@a/4", redis(sentinel("a"), None, Some("pw"), 4)),
    ] {
        assert_eq!(BrokerUrl::parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn alternatives_keep_their_order() {
    let read = parse_list("sentinel://a:26379/0;sentinel://b:26379/0").unwrap();
    assert_eq!(read, [redis(sentinel("a"), None, None, 0), redis(sentinel("b"), None, None, 0)]);
    assert_eq!(parse_list("amqp://a").unwrap().len(), 1);
    for text in [";", "amqp://a;", ";amqp://a", "amqp://a;;amqp://b"] {
        assert_eq!(parse_list(text), Err(UrlProblem::EmptyAlternative), "{text}");
    }
}

#[test]
fn what_the_gate_would_not_honour_is_refused() {
    use UrlProblem::*;
    for (text, expected) in [
        ("guest:guest@localhost", NoScheme),
        ("://h", NoScheme),
        ("http://h", UnknownScheme(None)),
        ("sqs://", UnknownScheme(Some("sqs"))),
        ("amqp://h:0", BadPort),
        ("amqp://h:65536", BadPort),
        ("amqp://h:+80", BadPort),
        ("amqp://h:http", BadPort),
        ("amqp://::1/", BadPort),
        ("amqp://u:hunter/2@h", BadPort),
        ("amqp://[::1", BadIpv6),
        ("amqp://[h]", BadIpv6),
        ("amqp://[::1]5672", BadPort),
        ("amqp://a,b", BadHost),
        ("amqp://u:%ff@h", NotUtf8),
        ("amqp://u:p#x@h", Fragment),
        ("amqp://h /", WhiteSpace),
        ("amqp://h/\n", WhiteSpace),
        ("redis://h/x", BadDatabase),
        ("redis://h/-1", BadDatabase),
        ("redis://h/4294967296", BadDatabase),
        ("redis+socket://", BadSocket),
        ("redis+socket://h/path", BadSocket),
        ("redis+socket:///path?virtual_host=x", BadDatabase),
        ("redis://h?virtual_host=2", UnknownOption),
        ("amqps://h?ssl_cert_reqs=none", Unverified("ssl_cert_reqs")),
        ("amqps://h?ssl_cert_reqs=optional", Unverified("ssl_cert_reqs")),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", Unverified("ssl_cert_reqs")),
        ("rediss://h?ssl_check_hostname=false", Unverified("ssl_check_hostname")),
        ("amqp://h?ssl_cert_reqs=required", TlsOnPlain),
        ("amqp://h?heartbeat=10", OwnSetting("heartbeat", "broker.heartbeat")),
        ("rediss://h?ssl_ca_certs=/ca.pem", OwnSetting("ssl_ca_certs", "broker.ca_file")),
        ("amqp://h?login_method=EXTERNAL", UnknownOption),
    ] {
        assert_eq!(BrokerUrl::parse(text), Err(expected), "{text}");
    }
}

#[test]
fn a_url_is_shown_without_its_password() {
    for (text, shown) in [
        ("amqp://u:geheim@h//", "amqp://u:***@h:5672//"),
        ("amqps://u:geheim@[::1]/a%2Fb", "amqps://u:***@[::1]:5671/a%2Fb"),
        ("redis://:geheim@h/3", "redis://:***@h:6379/3"),
        ("redis://geheim@h", "redis://***@h:6379/0"),
        ("rediss://u:geheim@h", "rediss://u:***@h:6379/0"),
        ("redis://h", "redis://h:6379/0"),
        ("redis+socket://:geheim@/run/r.sock?virtual_host=2", "redis+socket://:***@/run/r.sock?virtual_host=2"),
        ("sentinel://:geheim@a/1", "sentinel://:***@a:26379/1"),
    ] {
        let url = BrokerUrl::parse(text).unwrap();
        assert_eq!(url.to_string(), shown);
        assert!(!format!("{url:?}").contains("geheim") || text == "redis://geheim@h", "{url:?}");
    }
}

proptest! {
    #[test]
    fn no_error_and_no_shown_url_has_the_password_in_it(
        scheme in "amqps?|pyamqp|rediss?|redis\\+socket|sentinel|x?",
        before in "[a-z:@]{0,6}",
        after in "[a-z0-9@:/?#;=&%\\[\\] .]{0,12}",
        mark in "[/?#;:@ =&]{0,2}",
    ) {
        let password = format!("QZJ{mark}XKW");
        let text = format!("{scheme}://{before}:{password}{after}@h/1");
        match parse_list(&text) {
            Ok(urls) => for url in urls {
                let (shown, secret) = (url.to_string(), match &url {
                    BrokerUrl::Amqp(url) => Some(&url.password),
                    BrokerUrl::Redis(url) => url.password.as_ref(),
                });
                if let Some(secret) = secret.filter(|secret| secret.reveal().contains("QZJ")) {
                    prop_assert!(!shown.contains(secret.reveal()), "{shown}");
                }
            },
            Err(problem) => {
                let shown = problem.to_string();
                prop_assert!(!shown.contains("QZJ") && !shown.contains("XKW"), "{shown}");
            }
        }
    }

    #[test]
    fn a_shown_url_is_the_same_url_with_another_password(
        user in "[a-zA-Z0-9@:/%]{1,8}", vhost in "[a-z/%#?]{1,8}", port in 1_u16.., tls: bool,
    ) {
        let url = amqp("h", port, &user, "***", &vhost, tls);
        prop_assert_eq!(BrokerUrl::parse(&url.to_string()), Ok(url));
    }

    #[test]
    fn no_text_at_all_makes_the_reading_of_urls_panic(text in "\\PC{0,60}", scheme in "(amqp://|redis://|redis\\+socket://|sentinel://)?") {
        let _ = parse_list(&format!("{scheme}{text}"));
    }
}
