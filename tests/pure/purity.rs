//! Pure code stays pure: an allow-list of what it may name.
//!
//! What decides must give the same answer in the operator, in the agent, in a backtest and in a property test, so it may
//! not know the time, the network, a file or a client. The list says what it may name; whatever is not on it fails.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::source::{Token, paths, sources, tokens, without_tests};

/// Pure code, and the crates that it may use beside the [`ALLOWED`] ones.
const PURE: [(&str, &[&str]); 21] = [
    ("src/certificate.rs", &[]),
    ("src/domain", &[]),
    ("src/fingerprint.rs", &["sha2"]),
    ("src/contract", &[]),
    ("src/decide", &["k8s_openapi", "schemars"]),
    ("src/webhook/admission.rs", &["k8s_openapi", "json_patch"]),
    ("src/webhook/review.rs", &["k8s_openapi", "json_patch", "base64"]),
    ("src/inject", &["k8s_openapi", "json_patch"]),
    ("src/controller/gateway/render.rs", &["k8s_openapi"]),
    ("src/webhook/certificates/plan.rs", &["k8s_openapi"]),
    ("src/agent/decide", &["jiff", "rustls"]),
    ("src/agent/apply/resolver/packet.rs", &[]),
    ("src/pooler/pgbouncer/render.rs", &[]),
    ("src/pooler/pgbouncer/ini.rs", &[]),
    ("src/pooler/pgbouncer/parameters.rs", &[]),
    ("src/pooler/pgbouncer/limits.rs", &[]),
    ("src/pooler/pgbouncer/log.rs", &[]),
    ("src/pooler/pgbouncer/tables.rs", &[]),
    ("src/pooler/pgbouncer/version.rs", &[]),
    ("src/pooler/pgbouncer/changes.rs", &[]),
    ("src/cli/plugin/view", &["k8s_openapi", "rustls", "clap", "serde_yaml"]),
];
/// `clippy` stands in attributes.
const ALLOWED: [&str; 7] = ["std", "core", "alloc", "serde", "serde_json", "thiserror", "clippy"];
/// Our own modules that pure code may name: pure themselves, or types without behaviour.
const ALLOWED_MODULES: [&str; 16] = [
    "certificate",
    "domain",
    "fingerprint",
    "agent::decide",
    "agent::apply::last_good::LastGood",
    "agent::observe::sockets",
    "cli::plugin::view",
    "contract",
    "decide",
    "api",
    "inject",
    "pooler::pgbouncer::log",
    "pooler::pgbouncer::parameters",
    "pooler::pgbouncer::render",
    "pooler::pgbouncer::tables",
    "pooler::pgbouncer::version",
];
/// Which module of `src` may name which others. Each stands below those that it may name, so that no arrow points back.
const ARROWS: [(&str, &[&str]); 18] = [
    ("causes", &[]),
    ("certificate", &[]),
    ("fingerprint", &[]),
    ("telemetry", &[]),
    ("serving", &[]),
    ("domain", &[]),
    ("contract", &[]),
    ("api", &[]),
    ("objects", &["contract", "api"]),
    ("decide", &["fingerprint", "domain", "contract", "api"]),
    ("pooler", &["contract"]),
    ("inject", &["fingerprint", "contract", "api", "decide", "pooler"]),
    ("signals", &["domain", "contract", "api", "decide"]),
    ("http", &["api", "serving"]),
    ("webhook", &["contract", "api", "objects", "decide", "pooler", "inject", "http", "serving"]),
    (
        "controller",
        &[
            "causes",
            "fingerprint",
            "telemetry",
            "domain",
            "contract",
            "api",
            "objects",
            "decide",
            "pooler",
            "inject",
            "signals",
            "serving",
            "http",
            "webhook",
        ],
    ),
    ("agent", &["certificate", "fingerprint", "domain", "contract", "decide", "pooler", "serving"]),
    (
        "cli",
        &[
            "causes",
            "certificate",
            "telemetry",
            "domain",
            "contract",
            "api",
            "decide",
            "pooler",
            "inject",
            "signals",
            "controller",
            "agent",
        ],
    ),
];
/// Parts of the standard library that reach the world.
const FORBIDDEN_STD: [&str; 9] = ["time", "net", "fs", "process", "thread", "env", "io", "os", "path"];
/// Words that no pure code needs, wherever they come from.
const FORBIDDEN_WORDS: [&str; 8] =
    ["async", "await", "unsafe", "static_mut", "println", "eprintln", "dbg", "thread_local"];
/// Functions that ask the clock.
const FORBIDDEN_CALLS: [&str; 3] = ["::now", "::elapsed", "::system"];

/// Names that a path may begin with because the file itself brings them: what it imports, declares, or what is built in.
fn is_local(first: &str, imported: &BTreeSet<String>) -> bool {
    let built_in = ["self", "super", "Self", "crate"].contains(&first);
    let primitive = ["bool", "char", "str", "f64", "f32", "usize", "isize"].contains(&first)
        || first.strip_prefix(['u', 'i']).is_some_and(|bits| bits.parse::<u8>().is_ok());
    built_in || primitive || imported.contains(first) || first.starts_with(char::is_uppercase)
}

fn violations(source: &str, extra: &[&str]) -> Vec<String> {
    let tokens = without_tests(&tokens(source));
    let mut wrong = Vec::new();
    for token in &tokens {
        if let Token::Word(word) = token
            && FORBIDDEN_WORDS.contains(&word.as_str())
        {
            wrong.push(format!("the word {word}"));
        }
    }
    let paths = paths(&tokens);
    let last = |path: &String| Some(path.trim_end_matches("::self").rsplit_once("::")?.1.to_owned());
    let mut imported: BTreeSet<String> = paths.iter().filter_map(last).collect();
    for pair in tokens.windows(2) {
        if let [Token::Word(keyword), Token::Word(name)] = pair
            && (keyword == "mod" || keyword == "as")
        {
            imported.insert(name.clone());
        }
    }
    for path in paths {
        let mut segments = path.split("::");
        let first = segments.next().unwrap_or_default();
        let allowed = match first {
            "std" | "core" => {
                let part = segments.next().unwrap_or_default();
                !FORBIDDEN_STD.contains(&part) || path == "std::time::Duration"
            }
            "crate" => ALLOWED_MODULES.iter().any(|module| path.starts_with(&format!("crate::{module}"))),
            _ => ALLOWED.contains(&first) || extra.contains(&first) || is_local(first, &imported),
        };
        if !allowed || FORBIDDEN_CALLS.iter().any(|call| path.ends_with(call)) {
            wrong.push(path);
        }
    }
    wrong
}

#[test]
fn pure_code_names_nothing_that_is_not_on_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (place, extra) in PURE {
        let files = sources(&root.join(place));
        assert!(!files.is_empty(), "{place} is empty");
        // a file of tests is declared under #[cfg(test)] by the module that it belongs to
        for file in files.into_iter().filter(|file| file.file_stem().is_none_or(|stem| stem != "tests")) {
            let source = fs::read_to_string(&file).expect("a file");
            let file = file.strip_prefix(root).expect("inside").display().to_string();
            wrong.extend(violations(&source, extra).into_iter().map(|what| format!("{file}: {what}")));
        }
    }
    assert!(
        wrong.is_empty(),
        "pure code names what reaches the world, or what nobody has put on the list:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn no_module_names_one_that_stands_above_it() {
    let places: Vec<&str> = ARROWS.iter().map(|(module, _)| *module).collect();
    for (at, (module, named)) in ARROWS.iter().enumerate() {
        let back: Vec<_> = named.iter().filter(|named| !places[..at].contains(named)).collect();
        assert!(back.is_empty(), "the list itself lets {module} name what does not stand before it: {back:?}");
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = BTreeSet::new();
    for file in sources(&src).into_iter().filter(|file| file.file_stem().is_none_or(|stem| stem != "tests")) {
        let inside = file.strip_prefix(&src).expect("inside");
        let first = inside.iter().next().and_then(|first| first.to_str()).expect("a name");
        let module = first.trim_end_matches(".rs");
        // what puts the modules together
        if ["lib", "main", "bin"].contains(&module) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(known, _)| *known == module).map(|(_, named)| *named);
        let Some(allowed) = allowed else {
            wrong.insert(format!("{module} is not on the list"));
            continue;
        };
        for path in paths(&without_tests(&tokens(&fs::read_to_string(&file).expect("a file")))) {
            let mut segments = path.split("::");
            let (Some("crate"), Some(named)) = (segments.next(), segments.next()) else { continue };
            if named != module && !allowed.contains(&named) {
                wrong.insert(format!("{}: {path}", inside.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that point where the list does not let them:\n{}",
        Vec::from_iter(wrong).join("\n")
    );
}

#[test]
fn the_check_sees_through_groups_aliases_comments_and_literals() {
    let clean = "use std::{collections::{BTreeMap, BTreeSet as Set}, fmt};\nuse crate::contract::Settings;\n\
                 /* std::fs::read */ // tokio::spawn\nfn f<'a>(x: &'a str) -> f64 { let c = '\"'; let s = \"std::net::TcpStream\"; f64::from(1.0) }\n\
                 #[cfg(test)]\nmod tests { use std::fs; fn g() { std::process::exit(1) } }";
    assert_eq!(violations(clean, &[]), Vec::<String>::new());
    for dirty in [
        "use std::{collections::BTreeMap, time::Instant};",
        "use std::{fmt, net::{IpAddr, TcpStream}};",
        "use tokio as t;",
        "fn f() { std::fs::read(\"x\"); }",
        "fn f() -> Result<(), reqwest::Error> { Ok(()) }",
        "async fn f() {}",
        "use k8s_openapi::jiff::Timestamp;",
        "use crate::controller::tick;",
        "use crate::webhook::server;",
        "fn f() { let now = Timestamp::now(); }",
        "#[cfg(test)]\nmod tests {}\nuse std::process;",
        "const S: &str = r#\"\"\"#; use std::env;",
    ] {
        assert!(!violations(dirty, &[]).is_empty(), "{dirty}");
    }
}

#[test]
fn the_sidecar_measures_time_by_a_clock_that_does_not_jump() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asks = |file: &PathBuf| {
        let source = fs::read_to_string(file).expect("a file");
        ["SystemTime::now", "Timestamp::now"].iter().any(|word| source.contains(word))
    };
    let files = ["src/agent", "src/pooler"].iter().flat_map(|place| sources(&root.join(place))).filter(asks);
    let files: BTreeSet<String> =
        files.map(|file| file.strip_prefix(root).expect("inside").display().to_string()).collect();
    // beside what PgBouncer prints, and a metric that tells when the last reading was
    let known = ["src/agent/commands/clients.rs", "src/agent/run/figures.rs"].map(str::to_owned);
    assert_eq!(files, BTreeSet::from(known), "what asks the wall clock for the time");
}
