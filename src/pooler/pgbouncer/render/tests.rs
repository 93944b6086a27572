use proptest::prelude::*;

use super::*;
use crate::contract::{Document as _, ServerTls};

fn injection() -> Injection {
    Injection::parse(
        r#"{"v":1,"pool":"shop","namespace":"shop",
            "upstream":{"host":"pg-main-rw.db.svc","port":5432,"database":"shop","tls":{"mode":"Disabled","ownCa":false}},
            "client":{"port":5432,"maxConnections":1000}}"#,
    )
    .unwrap()
}

fn settings() -> Settings {
    serde_json::from_str(
        r#"{"poolMode":"Transaction","parameters":{"server_round_robin":"1"},
            "health":{"validationQuery":"select 1","periodSeconds":10,"queryWaitTimeoutSeconds":30,"leakThresholdSeconds":300},
            "scaling":{"algorithm":"Adaptive","limitSource":"Share","objective":{"waitMilliseconds":20,"maxWaitingPercent":1.0},
              "targetUtilizationPercent":70,"behavior":{
                "scaleUp":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.0},
                "scaleDown":{"stabilizationWindowSeconds":0,"selectPolicy":"Max","policies":[],"tolerance":0.05}}}}"#,
    )
    .unwrap()
}

fn place() -> ProcessPlace {
    ProcessPlace {
        peers: Vec::new(),
        peer: 0,
        listen_addresses: vec!["127.0.0.1".into(), "::1".into()],
        socket_dir: "/sluice/run".into(),
        auth_file: "/sluice/run/users.txt".into(),
        ca_file: None,
        presented: None,
        resolver: None,
        login_retry_milliseconds: 1250,
    }
}

const LIMITS: Limits = Limits { pool_size: 4, min_pool_size: 1, max_db_connections: 10 };

fn render_with(injection: &Injection, username: &str, password: &str) -> Result<Rendered, RenderError> {
    let credentials = Credentials { username: username.into(), password: password.into() };
    render(&RenderInput {
        injection,
        settings: &settings(),
        limits: LIMITS,
        credentials: &credentials,
        shown: None,
        place: &place(),
        version: Some(OLDEST),
    })
}

#[test]
fn cancel_requests_for_another_process_are_passed_on_whatever_the_limit_is() {
    let mut place = place();
    place.peers = vec![Peer { number: 2, socket_dir: "/sluice/run/b".to_owned() }];
    place.peer = 1;
    let input = RenderInput {
        injection: &injection(),
        settings: &settings(),
        limits: Limits { pool_size: 1, min_pool_size: 0, max_db_connections: 1 },
        credentials: &Credentials { username: "shop".into(), password: "secret".into() },
        shown: None,
        place: &place,
        version: None,
    };
    let ini = render(&input).unwrap().ini;
    assert!(ini.contains("\n[peers]\n2 = host='/sluice/run/b' port=5432 pool_size=100\n"), "{ini}");
}

#[test]
fn the_rendered_configuration_is_as_reviewed() {
    let rendered = render_with(&injection(), "shop", "secret").unwrap();
    insta::assert_snapshot!(rendered.ini);
    assert_eq!(rendered.auth_file, "\"shop\" \"secret\"\n");
}

fn render_alias(database: &str, connections: u32) -> Result<Rendered, RenderError> {
    let session_alias = Some(SessionAlias { database: database.into(), connections });
    render(&RenderInput {
        injection: &injection(),
        settings: &Settings { session_alias, ..settings() },
        limits: LIMITS,
        credentials: &Credentials { username: "shop".into(), password: "secret".into() },
        shown: None,
        place: &place(),
        version: Some(OLDEST),
    })
}

#[test]
fn a_session_alias_is_the_same_database_with_a_mode_and_bounds_of_its_own() {
    let rendered = render_alias("shop_session", 2).unwrap();
    let line = |name: &str| {
        let line = rendered.ini.lines().find_map(|line| line.strip_prefix(&format!("{name} = "))).unwrap();
        ini::parse_connection_string(name, line).unwrap()
    };
    let (pool, alias) = (line("shop"), line("shop_session"));
    let own = [("pool_mode", "session"), ("pool_size", "2"), ("min_pool_size", "0"), ("max_db_connections", "2")];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(alias, [pool, own.to_vec()].concat());
    assert_eq!(rendered.session_alias.unwrap().database, "shop_session");
}

#[test]
fn a_session_alias_that_is_the_database_or_cannot_be_one_is_refused_with_its_field() {
    for name in ["shop", "pgbouncer", "", "a b", "a'b", "*"] {
        let error = render_alias(name, 2).unwrap_err().to_string();
        assert!(error.starts_with("pgbouncer.sessionAlias.database: "), "{name:?}: {error}");
    }
    assert_eq!(render_alias("shop_session", 0).unwrap_err(), RenderError::ZeroLimit);
}

#[test]
fn the_password_stands_in_the_auth_file_alone() {
    let rendered = render_with(&injection(), "shop", "hush-hush").unwrap();
    assert!(!rendered.ini.contains("hush"));
    assert!(!format!("{rendered:?}").contains("hush"));
}

#[test]
fn what_pgbouncer_cannot_represent_is_refused_with_its_field() {
    let field = |result: Result<Rendered, RenderError>| match result {
        Err(RenderError::Unrepresentable { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    for name in ["", "pgbouncer", "a b", "caf\u{e9}", "a'b", "a\nb", "*", &"x".repeat(64)] {
        let mut injection = injection();
        injection.upstream.database = name.into();
        assert_eq!(field(render_with(&injection, "u", "p")), "upstream.database", "{name:?}");
    }
    for host in ["", "a,b", "a b", "/tmp", "a'b", "a\nb"] {
        let mut injection = injection();
        injection.upstream.host = host.into();
        assert_eq!(field(render_with(&injection, "u", "p")), "upstream.host", "{host:?}");
    }
    for user in ["", "a\nb", "shop\n", "shop\r", &"\"".repeat(64), &"x".repeat(128)] {
        assert_eq!(field(render_with(&injection(), user, "p")), "credentials/username", "{user:?}");
    }
    let hash = format!("md5{}", "0123456789abcdef".repeat(2));
    for password in ["", "a\0b", "hush\n", "hush\r\n", &hash, "SCRAM-SHA-256$4096:x$y:z", &"x".repeat(2048)] {
        assert_eq!(field(render_with(&injection(), "u", password)), "credentials/password", "{password:?}");
    }
}

#[test]
fn a_password_may_have_line_breaks_but_none_at_its_end() {
    assert!(render_with(&injection(), "shop", "\nhush\nhush").is_ok());
}

#[test]
fn verification_without_a_ca_is_refused() {
    let mut injection = injection();
    injection.upstream.tls.mode = ServerTlsMode::VerifyFull;
    assert_eq!(render_with(&injection, "u", "p"), Err(RenderError::NoCa { mode: "verify-full" }));
}

#[test]
fn the_database_is_shown_a_certificate_where_the_pool_names_one_and_there_must_be_one() {
    let mut injection = injection();
    injection.upstream.tls = ServerTls { mode: ServerTlsMode::Require, own_ca: false, own_certificate: true };
    assert_eq!(render_with(&injection, "u", "p"), Err(RenderError::NoUpstreamCertificate));
    let shown = Presented { certificate_file: "/run/u.crt".into(), key_file: "/run/u.key".into() };
    let place = ProcessPlace { presented: Some(shown.clone()), ..place() };
    let of = |injection: &Injection| {
        let input = RenderInput {
            injection,
            settings: &settings(),
            limits: LIMITS,
            credentials: &Credentials { username: "u".into(), password: "p".into() },
            shown: None,
            place: &place,
            version: Some(OLDEST),
        };
        render(&input).unwrap().ini
    };
    let ini = of(&injection);
    let expected =
        "server_tls_sslmode = require\nserver_tls_cert_file = /run/u.crt\nserver_tls_key_file = /run/u.key\n";
    assert!(ini.contains(expected), "{ini}");
    assert_eq!(presented(&ini), Some(shown));
    injection.upstream.tls.own_certificate = false;
    let ini = of(&injection);
    assert!(!ini.contains("/run/u.") && presented(&ini).is_none(), "{ini}");
}

#[test]
fn clients_are_shown_a_certificate_where_tls_is_asked_for_and_there_must_be_one() {
    let mut injection = injection();
    injection.client.tls = ClientTlsMode::Require;
    assert_eq!(render_with(&injection, "u", "p"), Err(RenderError::NoClientCertificate));
    let certificate = PoolerCertificate { chain: b"chain".to_vec(), key: b"hush".to_vec() };
    let shown =
        Shown { certificate: &certificate, certificate_file: "/run/c.crt".into(), key_file: "/run/c.key".into() };
    let rendered = render(&RenderInput {
        injection: &injection,
        settings: &settings(),
        limits: LIMITS,
        credentials: &Credentials { username: "u".into(), password: "p".into() },
        shown: Some(&shown),
        place: &place(),
        version: Some(OLDEST),
    });
    let rendered = rendered.unwrap();
    let expected = "client_tls_sslmode = require\nclient_tls_cert_file = /run/c.crt\n\
                    client_tls_key_file = /run/c.key\nclient_tls_ca_file = /run/c.crt\n";
    assert!(rendered.ini.contains(expected), "{}", rendered.ini);
    assert_eq!(rendered.certificates[1], ("/run/c.key".to_owned(), b"hush".to_vec()));
    assert!(!format!("{rendered:?} {shown:?}").contains("hush"));
}

#[test]
fn names_are_looked_up_every_few_seconds_and_where_the_agent_answers_for_them() {
    let of = |place: &ProcessPlace, name: &str| {
        let credentials = Credentials { username: "u".into(), password: "p".into() };
        let (injection, settings) = (injection(), settings());
        let input = RenderInput {
            injection: &injection,
            settings: &settings,
            limits: LIMITS,
            credentials: &credentials,
            shown: None,
            place,
            version: Some(OLDEST),
        };
        let parameters = render(&input).unwrap().parameters;
        parameters.into_iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value)
    };
    let system = place();
    assert_eq!(of(&system, "resolv_conf"), None);
    let ours = ProcessPlace { resolver: Some("/sluice/run/resolv.conf".into()), ..place() };
    assert_eq!(of(&ours, "resolv_conf").as_deref(), Some("/sluice/run/resolv.conf"));
    for parameter in ["dns_max_ttl", "dns_nxdomain_ttl"] {
        assert_eq!(of(&ours, parameter).as_deref(), Some("5"), "{parameter}");
    }
}

#[test]
fn the_parameters_that_are_ignored_hold_what_drivers_send_and_end_in_the_guard_whoever_names_them() {
    for (given, rendered) in [
        (None, "extra_float_digits,"),
        (Some("geqo"), "geqo,extra_float_digits,"),
        (Some("geqo, options"), "geqo, options,extra_float_digits,"),
        (Some("Extra_Float_Digits , geqo"), "Extra_Float_Digits , geqo,"),
    ] {
        let mut settings = settings();
        let named = given.map(|names| ("ignore_startup_parameters".to_owned(), names.to_owned()));
        settings.parameters.extend(named);
        let parameters = render(&RenderInput {
            injection: &injection(),
            settings: &settings,
            limits: LIMITS,
            credentials: &Credentials { username: "u".into(), password: "p".into() },
            shown: None,
            place: &place(),
            version: Some(OLDEST),
        })
        .unwrap()
        .parameters;
        assert!(parameters.contains(&("ignore_startup_parameters".to_owned(), rendered.to_owned())), "{given:?}");
    }
}

#[test]
fn a_limit_of_zero_is_never_rendered() {
    let credentials = Credentials { username: "u".into(), password: "p".into() };
    let limits = Limits { max_db_connections: 0, ..LIMITS };
    let (injection, settings, place) = (injection(), settings(), place());
    let input = RenderInput {
        injection: &injection,
        settings: &settings,
        limits,
        credentials: &credentials,
        shown: None,
        place: &place,
        version: Some(OLDEST),
    };
    assert_eq!(render(&input), Err(RenderError::ZeroLimit));
}

proptest! {
    #[test]
    fn any_credentials_are_read_back_as_they_are_or_refused(
        username in prop_oneof![any::<String>(), "[a'\";%=\\\\ \n\r\t\\[\\]#]{1,20}"],
        password in prop_oneof![any::<String>(), "[a'\";%=\\\\ \n\r\t\\[\\]#]{1,40}"],
    ) {
        match render_with(&injection(), &username, &password) {
            Ok(rendered) => {
                let entries = ini::parse(&rendered.ini).unwrap();
                prop_assert_eq!(entries.len(), 1 + rendered.parameters.len());
                let pairs = ini::parse_connection_string("shop", &entries[0].value).unwrap();
                prop_assert_eq!(&pairs[3], &("user".to_owned(), username.clone()));
                prop_assert_eq!(ini::parse_auth_file(&rendered.auth_file).unwrap(), vec![(username, password)]);
            }
            Err(error) => prop_assert!(matches!(error, RenderError::Unrepresentable { .. }), "{}", error),
        }
    }
}

#[test]
fn what_a_version_lacks_is_not_rendered_for_it_and_what_versions_disagree_about_is() {
    let of = |text: &str| {
        let credentials = Credentials { username: "u".into(), password: "p".into() };
        let version = Version::find(text);
        let rendered = render(&RenderInput {
            injection: &injection(),
            settings: &settings(),
            limits: LIMITS,
            credentials: &credentials,
            shown: None,
            place: &place(),
            version,
        });
        let new = [
            "pool_idle_timeout",
            "query_wait_notify",
            "scram_iterations",
            "server_check_delay",
            "server_check_query",
            "transaction_timeout",
        ];
        let parameters = rendered.unwrap().parameters;
        parameters
            .into_iter()
            .filter(|(name, _)| new.contains(&name.as_str()))
            .map(|(_, value)| value)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("PgBouncer 1.24.1"), ["reset search_path", "0"]);
    assert_eq!(of("PgBouncer 1.25.2"), ["4096", "reset search_path", "0", "0", "0"]);
    assert_eq!(of("PgBouncer 1.26.1"), ["0", "4096", "select 1", "0", "30", "0"]);
}
