//! PURE: the files that PgBouncer reads, from the settings of a revision, the limits of a grant and the credentials.
//!
//! The password stands in the auth file alone: PgBouncer takes it from there for the forced user of the `[databases]`
//! entry as well as for the login of clients, a line break in it can be written there, and no message of PgBouncer's
//! about a line of its configuration can show it. Whatever PgBouncer cannot represent is refused with the field named,
//! and every rendered text is read back by PgBouncer's rules ([`super::ini`]) before it is handed out.

use std::fmt::{self, Write as _};

use thiserror::Error;

use super::{
    ini::{self, IniError},
    parameters::{self, PARAMETERS, ParameterError},
    version::{OLDEST, Version},
};
use crate::contract::{ClientTlsMode, Injection, PoolMode, ServerTlsMode, SessionAlias, Settings, names};

/// User name and password of the database, the same on both sides of the pooler.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password, in plain text.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// A certificate that the pooler shows, to its clients or to the database, and its key. Both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PoolerCertificate {
    /// The certificate first, then those that lead to the CA.
    pub chain: Vec<u8>,
    /// The key, not encrypted.
    pub key: Vec<u8>,
}

impl fmt::Debug for PoolerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolerCertificate").finish_non_exhaustive()
    }
}

/// A [`PoolerCertificate`] and the files that it will stand in.
#[derive(Clone, Debug)]
pub struct Shown<'a> {
    /// What clients are shown.
    pub certificate: &'a PoolerCertificate,
    /// The file of the certificate.
    pub certificate_file: String,
    /// The file of the key.
    pub key_file: String,
}

/// Where what the database is shown stands: a change of it is another file, so that none is read before it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// The file of the certificate.
    pub certificate_file: String,
    /// The file of the key.
    pub key_file: String,
}

/// The three bounds that PgBouncer is started with, in server connections; never 0 but for `min_pool_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `default_pool_size`: the limit.
    pub pool_size: u32,
    /// `min_pool_size`: kept open without clients.
    pub min_pool_size: u32,
    /// `max_db_connections`: the share.
    pub max_db_connections: u32,
}

/// Addresses and files of the machine that PgBouncer runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessPlace {
    /// Addresses to listen on for clients.
    pub listen_addresses: Vec<String>,
    /// Directory of the unix socket with the console.
    pub socket_dir: String,
    /// Where the auth file will stand.
    pub auth_file: String,
    /// Bundle that verifies the database's certificate, where the TLS mode verifies it.
    pub ca_file: Option<String>,
    /// What the database is shown, where the pool names a certificate for it.
    pub presented: Option<Presented>,
    /// Configuration of the resolver; None: that of the system.
    pub resolver: Option<String>,
    /// The processes that cancel requests are passed on to; empty: only those of its own clients are known.
    pub peers: Vec<Peer>,
    /// Which of them this process is; 0 without peers.
    pub peer: u16,
    /// Milliseconds between two attempts to log in to a database that refused one; spread over the pods.
    pub login_retry_milliseconds: u32,
}

/// A process that knows clients of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number, from 1.
    pub number: u16,
    /// Directory of its console's socket.
    pub socket_dir: String,
}

/// What is rendered from.
#[derive(Clone, Debug)]
pub struct RenderInput<'a> {
    /// What is fixed for the pod.
    pub injection: &'a Injection,
    /// The revision.
    pub settings: &'a Settings,
    /// The bounds in force.
    pub limits: Limits,
    /// User and password.
    pub credentials: &'a Credentials,
    /// What clients are shown; None without TLS.
    pub shown: Option<&'a Shown<'a>>,
    /// Where it runs.
    pub place: &'a ProcessPlace,
    /// Who reads it; None: any version, and what only some have is left out.
    pub version: Option<Version>,
}

/// The rendered files.
#[derive(Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The configuration. Holds no password.
    pub ini: String,
    /// The auth file. Secret.
    pub auth_file: String,
    /// Paths and contents of the certificate and key that clients are shown. The key is secret.
    pub certificates: Vec<(String, Vec<u8>)>,
    /// Every parameter of `[pgbouncer]` with its value, for the comparison with what `SHOW CONFIG` answers.
    pub parameters: Vec<(String, String)>,
    /// The second entry of `[databases]`.
    pub session_alias: Option<SessionAlias>,
    /// User and password that both files name. Secret.
    pub credentials: Credentials,
}

impl fmt::Debug for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendered").field("ini", &self.ini).finish_non_exhaustive()
    }
}

/// Why nothing was rendered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RenderError {
    /// PgBouncer has no way to write this value.
    #[error("{field}: {reason}")]
    Unrepresentable {
        /// Path of the field.
        field: &'static str,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// A parameter is not allowed, or of the wrong type.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The database's certificate must be verified and there is nothing to verify it with.
    #[error(
        "upstream.tls: mode {mode} needs a CA bundle; name one in upstream.tls.caRef or use an image with a trust store"
    )]
    NoCa {
        /// The mode.
        mode: &'static str,
    },
    /// The database is to be shown a certificate, and there is none.
    #[error(
        "upstream.tls: there is no certificate to show to the database; see the Secret that upstream.tls.clientCertRef names"
    )]
    NoUpstreamCertificate,
    /// Clients are to be met with TLS, and there is no certificate.
    #[error(
        "client.tls: there is no certificate to show to clients; see the Secret that client.tls.certificateRef names"
    )]
    NoClientCertificate,
    /// A limit of 0 would mean "without limit" to PgBouncer.
    #[error("a limit of 0 cannot be rendered: PgBouncer reads it as no limit; pause the database instead")]
    ZeroLimit,
    /// PgBouncer would not read back what was meant.
    #[error("the rendered configuration does not read back: {0}")]
    ReadBack(#[from] IniError),
    /// PgBouncer would read something else than what was meant.
    #[error("the rendered configuration reads back differently at {what}")]
    Different {
        /// Where.
        what: String,
    },
}

/// The longest database name in bytes (PgBouncer's `MAX_DBNAME` and PostgreSQL's `NAMEDATALEN`, less the final NUL).
const LONGEST_DATABASE: usize = 63;
/// The longest user name in bytes (PgBouncer's `MAX_USERNAME` less the final NUL).
const LONGEST_USER: usize = 127;
/// The longest password in bytes, counted as it stands in the auth file (PgBouncer's `MAX_PASSWORD` less the final NUL).
const LONGEST_PASSWORD: usize = 2047;

/// On every server connection: PostgreSQL 14 and later then notice that the pooler is gone while a query runs, instead of
/// running it on behind a slot that the pooler has already given to the next client. Earlier versions select no row.
const CONNECT_QUERY: &str =
    "select set_config(name, '5000', false) from pg_settings where name = 'client_connection_check_interval'";

/// How many cancel requests may be on their way to another process. Left out, it is the limit: a process with a limit of 1 passes on
/// one at a time, and PgBouncer looks at one that waited only when a further request comes.
const CANCELS_PASSED_ON: u32 = 100;

/// What `ignore_startup_parameters` ends in: a guard against a hang of PgBouncer before a login (CVE-2026-107349, mended in 1.26.1).
const END_OF_IGNORED: &str = ",";

/// The parameter with the file of what the database is shown.
const CERTIFICATE_PARAMETER: &str = "server_tls_cert_file";
/// The parameter with the file of its key.
const KEY_PARAMETER: &str = "server_tls_key_file";

/// What a process that was given this configuration shows the database; None: nothing, or it does not read.
pub fn presented(ini: &str) -> Option<Presented> {
    let entries = ini::parse(ini).ok()?;
    let given = |name: &str| entries.iter().find(|entry| entry.section == "pgbouncer" && entry.key == name);
    let value = |name: &str| given(name).map(|entry| entry.value.clone());
    Some(Presented { certificate_file: value(CERTIFICATE_PARAMETER)?, key_file: value(KEY_PARAMETER)? })
}

fn refuse<T>(field: &'static str, reason: &'static str) -> Result<T, RenderError> {
    Err(RenderError::Unrepresentable { field, reason })
}

/// Checks that PgBouncer can represent a database name.
///
/// # Errors
/// [`RenderError::Unrepresentable`].
pub fn check_database(name: &str) -> Result<(), RenderError> {
    check_database_of("upstream.database", name)
}

fn check_database_of(field: &'static str, name: &str) -> Result<(), RenderError> {
    if name.is_empty() || name.len() > LONGEST_DATABASE {
        return refuse(field, "must have 1 to 63 bytes");
    }
    if name == "pgbouncer" {
        return refuse(field, "PgBouncer reserves this name for its console");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
        return refuse(field, "PgBouncer 1.24 can only name databases of ASCII letters, digits, '_', '.' and '-'");
    }
    Ok(())
}

/// Checks that PgBouncer can tell a session alias from the database itself.
fn check_alias(alias: &SessionAlias, database: &str) -> Result<(), RenderError> {
    check_database_of("pgbouncer.sessionAlias.database", &alias.database)?;
    if alias.database == database {
        return refuse("pgbouncer.sessionAlias.database", "must be another name than upstream.database");
    }
    if alias.connections == 0 {
        return Err(RenderError::ZeroLimit);
    }
    Ok(())
}

/// Checks that PgBouncer can represent a host.
///
/// # Errors
/// [`RenderError::Unrepresentable`].
pub fn check_host(host: &str) -> Result<(), RenderError> {
    let field = "upstream.host";
    if host.is_empty() || host.len() > 253 {
        return refuse(field, "must have 1 to 253 characters");
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b':')) {
        return refuse(field, "must be one host name or address: letters, digits, '_', '.', '-' and ':'");
    }
    Ok(())
}

/// Checks that PgBouncer can represent user name and password.
///
/// # Errors
/// [`RenderError::Unrepresentable`].
pub fn check_credentials(credentials: &Credentials) -> Result<(), RenderError> {
    let Credentials { username, password } = credentials;
    let doubled = |text: &str, quote: char| text.len() + text.matches(quote).count();
    let (user_field, password_field) = ("credentials/username", "credentials/password");
    for (field, text) in [(user_field, username), (password_field, password)] {
        // it is nobody's intent, and the database would only say that the password is wrong
        if text.ends_with(['\n', '\r']) {
            return refuse(
                field,
                "ends with a line break, as `echo` adds one; make the Secret with `kubectl create secret generic --from-literal`, \
                 or encode what `printf %s` prints",
            );
        }
    }
    if username.is_empty() || doubled(username, '"') > LONGEST_USER {
        return refuse(user_field, "must have 1 to 127 bytes, each '\"' counted twice");
    }
    if username.contains(['\n', '\0']) {
        return refuse(user_field, "PgBouncer cannot write a line break or a NUL in a user name");
    }
    if password.is_empty() || doubled(password, '"') > LONGEST_PASSWORD {
        return refuse(password_field, "must have 1 to 2047 bytes, each '\"' counted twice");
    }
    if password.contains('\0') {
        return refuse(password_field, "PgBouncer cannot write a NUL in a password");
    }
    if looks_hashed(password) {
        return refuse(
            password_field,
            "PgBouncer would take it for a hash (md5... or SCRAM-SHA-256$...); choose another one",
        );
    }
    Ok(())
}

/// Whether PgBouncer would take a password for a stored secret instead of plain text.
fn looks_hashed(password: &str) -> bool {
    let md5 = password.strip_prefix("md5");
    md5.is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        || password.starts_with("SCRAM-SHA-256$")
}

fn quote(text: &str, with: char) -> String {
    let doubled: String = [with, with].iter().collect();
    format!("{with}{}{with}", text.replace(with, &doubled))
}

/// Renders the settings as the agent will, with a user of nobody's: what cannot work is refused before any pod is told.
/// None: it works.
pub fn cannot_render(settings: &Settings, injection: &Injection) -> Option<String> {
    let input = RenderInput {
        injection,
        settings,
        limits: Limits { pool_size: 1, min_pool_size: 0, max_db_connections: 1 },
        credentials: &Credentials { username: "user".to_owned(), password: "password".to_owned() },
        // whether the pod has it shows in the pod
        shown: Some(&Shown {
            certificate: &PoolerCertificate { chain: Vec::new(), key: Vec::new() },
            certificate_file: format!("{}/tls.crt", names::RUN_DIR),
            key_file: format!("{}/tls.key", names::RUN_DIR),
        }),
        place: &ProcessPlace {
            listen_addresses: vec!["127.0.0.1".to_owned()],
            socket_dir: names::RUN_DIR.to_owned(),
            auth_file: format!("{}/users", names::RUN_DIR),
            resolver: None,
            peers: Vec::new(),
            peer: 0,
            // whether the pod has a bundle shows in the pod
            ca_file: Some(format!("{}/{}", names::CONFIG_DIR, names::SERVER_CA_FILE)),
            presented: Some(Presented {
                certificate_file: format!("{}/{}", names::CONFIG_DIR, names::UPSTREAM_CERTIFICATE_FILE),
                key_file: format!("{}/{}", names::CONFIG_DIR, names::UPSTREAM_KEY_FILE),
            }),
            login_retry_milliseconds: 1000,
        },
        version: None,
    };
    render(&input).err().map(|error| format!("PgBouncer cannot be given these settings: {error}"))
}

/// Renders the files.
///
/// # Errors
/// [`RenderError`]; nothing is rendered then.
pub fn render(input: &RenderInput<'_>) -> Result<Rendered, RenderError> {
    let RenderInput { injection, settings, limits, credentials, .. } = *input;
    check_database(&injection.upstream.database)?;
    check_host(&injection.upstream.host)?;
    check_credentials(credentials)?;
    if let Some(alias) = &settings.session_alias {
        check_alias(alias, &injection.upstream.database)?;
    }
    parameters::check_all(&settings.parameters, input.version)?;
    if limits.pool_size == 0 || limits.max_db_connections == 0 {
        return Err(RenderError::ZeroLimit);
    }

    let databases = databases_of(input);
    let parameters = parameters_of(input)?;

    let mut ini = String::from("[databases]\n");
    for (name, connection_string) in &databases {
        let pairs: Vec<String> =
            connection_string.iter().map(|(key, value)| format!("{key}={}", quote(value, '\''))).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(ini, "{name} = {}", pairs.join(" "));
    }
    ini.push('\n');
    if !input.place.peers.is_empty() {
        ini.push_str("[peers]\n");
        for (number, address) in peers_of(input) {
            let _ = writeln!(ini, "{number} = {address}");
        }
        ini.push('\n');
    }
    ini.push_str("[pgbouncer]\n");
    for (name, value) in &parameters {
        let _ = writeln!(ini, "{name} = {value}");
    }
    let auth_file = format!("{} {}\n", quote(&credentials.username, '"'), quote(&credentials.password, '"'));
    let session_alias = settings.session_alias.clone();
    let (certificates, credentials) = (certificates_of(input), credentials.clone());
    let rendered = Rendered { ini, auth_file, certificates, parameters, session_alias, credentials };
    read_back(&rendered, input, &databases)?;
    Ok(rendered)
}

/// Keys and values of a connection string.
type ConnectionString = Vec<(&'static str, String)>;

/// Names and connection strings of `[databases]`: the pool itself, and its session alias with bounds of its own.
fn databases_of(input: &RenderInput<'_>) -> Vec<(String, ConnectionString)> {
    let RenderInput { injection, settings, credentials, .. } = *input;
    let pool = vec![
        ("host", injection.upstream.host.clone()),
        ("port", injection.upstream.port.to_string()),
        ("dbname", injection.upstream.database.clone()),
        ("user", credentials.username.clone()),
        ("connect_query", CONNECT_QUERY.to_owned()),
    ];
    let mut databases = vec![(injection.upstream.database.clone(), pool.clone())];
    if let Some(alias) = &settings.session_alias {
        let connections = alias.connections.to_string();
        let own = [
            ("pool_mode", "session".to_owned()),
            ("pool_size", connections.clone()),
            ("min_pool_size", "0".to_owned()),
            ("max_db_connections", connections),
        ];
        databases.push((alias.database.clone(), pool.into_iter().chain(own).collect()));
    }
    databases
}

/// The files that hold what clients are shown.
fn certificates_of(input: &RenderInput<'_>) -> Vec<(String, Vec<u8>)> {
    let shown = input.shown.filter(|_| input.injection.client.tls != ClientTlsMode::Disabled);
    shown.map_or_else(Vec::new, |Shown { certificate, certificate_file, key_file }| {
        vec![(certificate_file.clone(), certificate.chain.clone()), (key_file.clone(), certificate.key.clone())]
    })
}

/// Keys and values of `[peers]`.
fn peers_of(input: &RenderInput<'_>) -> impl Iterator<Item = (u16, String)> {
    let port = input.injection.client.port;
    let peers = input.place.peers.iter();
    peers.map(move |peer| {
        let host = quote(&peer.socket_dir, '\'');
        (peer.number, format!("host={host} port={port} pool_size={CANCELS_PASSED_ON}"))
    })
}

fn parameters_of(input: &RenderInput<'_>) -> Result<Vec<(String, String)>, RenderError> {
    let RenderInput { injection, settings, limits, place, .. } = *input;
    let mut parameters: Vec<(String, String)> = Vec::with_capacity(PARAMETERS.len() + 24);
    let mut set = |name: &str, value: String| parameters.push((name.to_owned(), value));

    set("listen_addr", place.listen_addresses.join(","));
    set("listen_port", injection.client.port.to_string());
    set("unix_socket_dir", place.socket_dir.clone());
    set("unix_socket_mode", "0600".to_owned());
    if !place.peers.is_empty() {
        set("peer_id", place.peer.to_string());
    }
    set("auth_type", "scram-sha-256".to_owned());
    set("auth_file", place.auth_file.clone());
    set(
        "pool_mode",
        match settings.pool_mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        }
        .to_owned(),
    );
    set("default_pool_size", limits.pool_size.to_string());
    set("min_pool_size", limits.min_pool_size.min(limits.pool_size).to_string());
    set("max_db_connections", limits.max_db_connections.to_string());
    set("max_user_connections", "0".to_owned());
    set("reserve_pool_size", "0".to_owned());
    set("max_client_conn", injection.client.max_connections.to_string());
    set("query_wait_timeout", settings.health.query_wait_timeout_seconds.to_string());
    let retry = place.login_retry_milliseconds;
    set("server_login_retry", format!("{}.{:03}", retry / 1000, retry % 1000));
    if let Some(resolver) = &place.resolver {
        set("resolv_conf", resolver.clone());
    }
    let mode = match injection.upstream.tls.mode {
        ServerTlsMode::Disabled => "disable",
        ServerTlsMode::Require => "require",
        ServerTlsMode::VerifyCa => "verify-ca",
        ServerTlsMode::VerifyFull => "verify-full",
    };
    set("server_tls_sslmode", mode.to_owned());
    if matches!(injection.upstream.tls.mode, ServerTlsMode::VerifyCa | ServerTlsMode::VerifyFull) {
        set("server_tls_ca_file", place.ca_file.clone().ok_or(RenderError::NoCa { mode })?);
    }
    if injection.upstream.tls.own_certificate {
        let presented = place.presented.clone().ok_or(RenderError::NoUpstreamCertificate)?;
        set(CERTIFICATE_PARAMETER, presented.certificate_file);
        set(KEY_PARAMETER, presented.key_file);
    }
    let mode = match injection.client.tls {
        ClientTlsMode::Disabled => "disable",
        ClientTlsMode::Allow => "allow",
        ClientTlsMode::Require => "require",
    };
    set("client_tls_sslmode", mode.to_owned());
    if injection.client.tls != ClientTlsMode::Disabled {
        let shown = input.shown.ok_or(RenderError::NoClientCertificate)?;
        set("client_tls_cert_file", shown.certificate_file.clone());
        set("client_tls_key_file", shown.key_file.clone());
        // PgBouncer asks every client for a certificate, needs none, and names the CAs that it would accept. By default that
        // is the image's whole trust store: some 140 names in each handshake.
        set("client_tls_ca_file", shown.certificate_file.clone());
    }
    // before it tells its version, the oldest is all that can be counted on
    let version = input.version.unwrap_or(OLDEST);
    for (name, value) in parameters::fixed(version) {
        set(name, value.to_owned());
    }
    for parameter in PARAMETERS.iter().filter(|parameter| parameters::exists(parameter.name, version)) {
        let end = if parameter.name == parameters::IGNORED { END_OF_IGNORED } else { "" };
        set(parameter.name, format!("{}{end}", parameters::in_force(parameter, &settings.parameters, version)));
    }
    Ok(parameters)
}

/// Reads the rendered texts by PgBouncer's rules and compares them with what was meant.
fn read_back(
    rendered: &Rendered,
    input: &RenderInput<'_>,
    meant: &[(String, ConnectionString)],
) -> Result<(), RenderError> {
    let credentials = input.credentials;
    let different = |what: &str| Err(RenderError::Different { what: what.to_owned() });
    let entries = ini::parse(&rendered.ini)?;
    let (databases, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.section == "databases");
    if databases.len() != meant.len() {
        return different("[databases]");
    }
    for (entry, (name, connection_string)) in databases.iter().zip(meant) {
        let pairs = ini::parse_connection_string(&entry.key, &entry.value)?;
        let meant = connection_string.iter().map(|(key, value)| (*key, value.as_str()));
        if entry.key != *name || !meant.eq(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))) {
            return different("[databases]");
        }
    }
    let (peers, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|entry| entry.section == "peers");
    let meant = peers_of(input).map(|(number, address)| (number.to_string(), address));
    if !meant.eq(peers.into_iter().map(|entry| (entry.key, entry.value))) {
        return different("[peers]");
    }
    let read = others.iter().map(|entry| (entry.section.as_str(), entry.key.as_str(), entry.value.as_str()));
    if !read.eq(rendered.parameters.iter().map(|(name, value)| ("pgbouncer", name.as_str(), value.as_str()))) {
        return different("[pgbouncer]");
    }
    match ini::parse_auth_file(&rendered.auth_file)?.as_slice() {
        [(user, password)] if *user == credentials.username && *password == credentials.password => Ok(()),
        _ => different("the auth file"),
    }
}

#[cfg(test)]
mod tests;
