//! The configuration file: which Prometheus servers there are, and how to log in.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use thiserror::Error;

/// The server of pools that name none.
pub const DEFAULT_SERVER: &str = "default";
/// Stands for every namespace in [`ServerConfiguration::allowed_namespaces`].
pub const EVERY_NAMESPACE: &str = "*";
/// Largest configuration file, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// How to reach one Prometheus, or whatever speaks its HTTP API. Holds no secret: only the names of the files they are in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerConfiguration {
    /// Base URL, without `/api/v1`.
    pub url: String,
    /// File with a bearer token.
    pub bearer_token_file: Option<PathBuf>,
    /// Files with user name and password.
    pub basic_auth: Option<BasicAuthFiles>,
    /// File with the CA bundle that verifies the server; in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Further request headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Longest time for one query, in seconds.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u32,
    /// A reading older than this is not used, in seconds.
    #[serde(default = "default_stale_after_seconds")]
    pub stale_after_seconds: u32,
    /// Largest answer that is read, in bytes.
    #[serde(default = "default_max_response_bytes")]
    pub max_response_bytes: usize,
    /// Namespaces whose pools may have queries of their own asked here, with the login above; [`EVERY_NAMESPACE`] for all.
    #[serde(default)]
    pub allowed_namespaces: BTreeSet<String>,
}

/// Files with user name and password.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicAuthFiles {
    /// File with the user name.
    pub username_file: PathBuf,
    /// File with the password.
    pub password_file: PathBuf,
}

const fn default_timeout_seconds() -> u32 {
    5
}

/// Three scrapes of 30 s: one that is late is not a hole.
const fn default_stale_after_seconds() -> u32 {
    90
}

/// About 50,000 pods with all the labels that a scrape job of prometheus-operator adds. It bounds what is read, not what is
/// kept in memory.
const fn default_max_response_bytes() -> usize {
    256 << 20
}

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("reading the Prometheus configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be one.
    #[error("reading the Prometheus configuration {}: it has more than {LARGEST_FILE} bytes", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not YAML of the expected shape.
    #[error("the Prometheus configuration {} is not valid: {source}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What the YAML reader said, with line and column.
        #[source]
        source: serde_yaml::Error,
    },
    /// A value that cannot work.
    #[error("the Prometheus configuration {}, servers.{server}.{field}: {message}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which server.
        server: String,
        /// Which field.
        field: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    servers: BTreeMap<String, ServerConfiguration>,
}

/// Reads and checks the servers of a configuration file.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, ServerConfiguration>, ConfigurationError> {
    let failed = |source| ConfigurationError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(failed)?.len() > LARGEST_FILE {
        return Err(ConfigurationError::TooLarge { path: path.to_owned() });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&text, path)
}

pub(super) fn parse(text: &str, path: &Path) -> Result<BTreeMap<String, ServerConfiguration>, ConfigurationError> {
    let File { servers } =
        serde_yaml::from_str(text).map_err(|source| ConfigurationError::Malformed { path: path.to_owned(), source })?;
    for (server, configuration) in &servers {
        configuration.check().map_err(|(field, message)| ConfigurationError::Invalid {
            path: path.to_owned(),
            server: server.clone(),
            field,
            message,
        })?;
    }
    Ok(servers)
}

impl ServerConfiguration {
    /// A server at a URL, without login.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            bearer_token_file: None,
            basic_auth: None,
            ca_file: None,
            headers: BTreeMap::new(),
            timeout_seconds: default_timeout_seconds(),
            stale_after_seconds: default_stale_after_seconds(),
            max_response_bytes: default_max_response_bytes(),
            allowed_namespaces: BTreeSet::new(),
        }
    }

    /// Longest time for one query.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeout_seconds))
    }

    /// Seconds after which a reading is too old, for [`LoadInput`](crate::decide::load::LoadInput).
    pub fn stale_after_seconds(&self) -> f64 {
        f64::from(self.stale_after_seconds)
    }

    /// Whether pools of this namespace may have queries of their own asked.
    pub fn allows_overrides_of(&self, namespace: &str) -> bool {
        let allowed = &self.allowed_namespaces;
        allowed.contains(namespace) || allowed.contains(EVERY_NAMESPACE)
    }

    /// True when the server is asked over TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.url.starts_with("https:")
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let url = reqwest::Url::parse(&self.url).map_err(|error| ("url", format!("{:?}: {error}", self.url)))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(("url", format!("{:?} must begin with http:// or https:// and name a host", self.url)));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(("url", "must not hold a password: it would appear in logs; use basicAuth".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(("url", format!("{:?} must end with the path", self.url)));
        }
        if self.bearer_token_file.is_some() && self.basic_auth.is_some() {
            return Err(("bearerTokenFile", "excludes basicAuth: both set the header Authorization".to_owned()));
        }
        if (self.bearer_token_file.is_some() || self.basic_auth.is_some())
            && self.headers.keys().any(|name| name.eq_ignore_ascii_case("authorization"))
        {
            return Err(("headers", "Authorization is set by bearerTokenFile or basicAuth".to_owned()));
        }
        if self.ca_file.is_some() && !self.is_tls() {
            return Err(("caFile", "needs a url that begins with https://".to_owned()));
        }
        for (name, value) in &self.headers {
            HeaderName::try_from(name).map_err(|_| ("headers", format!("{name:?} is not the name of a header")))?;
            // the value may be a secret, although it should not be
            HeaderValue::try_from(value)
                .map_err(|_| ("headers", format!("the value of {name:?} is not that of a header")))?;
        }
        if !(1..=60).contains(&self.timeout_seconds) {
            return Err(("timeoutSeconds", format!("{} must lie between 1 and 60", self.timeout_seconds)));
        }
        if !(15..=3600).contains(&self.stale_after_seconds) {
            return Err(("staleAfterSeconds", format!("{} must lie between 15 and 3600", self.stale_after_seconds)));
        }
        if let Some(name) = self.allowed_namespaces.iter().find(|name| !is_namespace(name)) {
            return Err((
                "allowedNamespaces",
                format!("{name:?} is not the name of a namespace; \"*\" alone stands for every one"),
            ));
        }
        if !(1024..=1 << 30).contains(&self.max_response_bytes) {
            return Err((
                "maxResponseBytes",
                format!("{} must lie between 1024 and 1073741824", self.max_response_bytes),
            ));
        }
        Ok(())
    }
}

/// Whether this can be the name of a namespace, or stands for all.
fn is_namespace(name: &str) -> bool {
    let is_inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = (1..=63).contains(&name.len()) && name.chars().all(is_inside);
    name == EVERY_NAMESPACE || is_name && !name.starts_with('-') && !name.ends_with('-')
}
