//! The changes of a pool that `rollouts` makes: bad ones, good ones, and the pool that they are made to.

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::node::{NAMESPACE, ROLE};

/// What each pod may open of the whole pool.
pub const SHARE: u32 = 16;
/// Server connections of each pod that a bad change sets aside for a session alias: with what is kept free for a pod that surges,
/// two are left for everybody else, who need four.
const SET_ASIDE: u32 = 11;
/// Server connections that each pod has for its clients in session mode, at least.
const FOR_SESSIONS: u32 = 12;
/// Clients that a metric of the application's own may lose, as a part of their questions.
const TOLERATED_FAILURES: &str = "result < 0.02";
/// Seconds without progress after which a revision goes back: longer than an analysis takes.
const PROGRESS_DEADLINE_SECONDS: u32 = 300;

/// A bad change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bad {
    /// Transactions for an application that prepares by SQL.
    PoolMode,
    /// Nearly the whole share is for another name of the database.
    Ceiling,
    /// Questions may take half as long as one in two does.
    Timeout,
    /// Each server connection is asked before each transaction.
    Latency,
    /// What proves a new process does not come back, and one is needed.
    Validation,
    /// The same, and none is needed.
    ValidationAlone,
    /// A number that is none.
    Parameter,
    /// In the Secret.
    Password,
    /// A server that there is not.
    Host,
    /// TLS for a server that has none.
    Tls,
    /// A database that there is not.
    Database,
}

/// Where a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expressed {
    /// In the settings: a revision.
    Revision,
    /// In the Secret.
    Secret,
    /// In a field that is fixed when a pod is created.
    Creation,
}

impl Expressed {
    /// In samples.
    pub fn label(self) -> &'static str {
        match self {
            Self::Revision => "revision",
            Self::Secret => "secret",
            Self::Creation => "creation",
        }
    }
}

impl Bad {
    /// All of them, in their order.
    pub const ALL: [Self; 11] = [
        Self::PoolMode,
        Self::Ceiling,
        Self::Timeout,
        Self::Latency,
        Self::Validation,
        Self::ValidationAlone,
        Self::Parameter,
        Self::Password,
        Self::Host,
        Self::Tls,
        Self::Database,
    ];

    /// In figures.
    pub fn label(self) -> &'static str {
        match self {
            Self::PoolMode => "wrong pool mode",
            Self::Ceiling => "too small a ceiling",
            Self::Timeout => "too low a timeout",
            Self::Latency => "doubled latency",
            Self::Validation => "hanging validation",
            Self::ValidationAlone => "hanging validation alone",
            Self::Parameter => "unparsable parameter",
            Self::Password => "wrong password",
            Self::Host => "wrong host",
            Self::Tls => "TLS mismatch",
            Self::Database => "wrong database",
        }
    }

    /// Where it stands.
    pub fn expressed(self) -> Expressed {
        match self {
            Self::PoolMode
            | Self::Ceiling
            | Self::Timeout
            | Self::Latency
            | Self::Validation
            | Self::ValidationAlone
            | Self::Parameter => Expressed::Revision,
            Self::Password => Expressed::Secret,
            Self::Host | Self::Tls | Self::Database => Expressed::Creation,
        }
    }

    /// What it changes of the spec. What has failed once is not tried again: in further rounds something else, which harms nobody, is
    /// different too.
    pub fn patch(self, round: u32) -> Value {
        let mut patch = match self {
            Self::PoolMode => json!({"pgbouncer": {"poolMode": "transaction"}}),
            Self::Ceiling => {
                json!({"pgbouncer": {"sessionAlias": {"database": "figure_session", "connections": SET_ASIDE}}})
            }
            Self::Timeout => parameter("query_timeout", "0.05"),
            Self::Latency => parameter("server_check_delay", "0"),
            Self::Validation => json!({
                "health": {"validationQuery": "select pg_sleep(60)"},
                "pgbouncer": {"parameters": {"pkt_buf": "16384"}},
                "rollout": {"progressDeadlineSeconds": 30}
            }),
            Self::ValidationAlone => json!({"health": {"validationQuery": "select pg_sleep(61)"}}),
            Self::Parameter => parameter("server_lifetime", "soon"),
            Self::Password => json!({}),
            Self::Host => json!({"upstream": {"host": "nowhere.invalid"}}),
            Self::Tls => json!({"upstream": {"tls": {"mode": "Require"}}}),
            Self::Database => json!({"upstream": {"database": "nowhere"}}),
        };
        if round > 0 && self.expressed() == Expressed::Revision {
            json_patch::merge(&mut patch, &json!({"health": {"leakThresholdSeconds": 300 + round}}));
        }
        patch
    }

    /// Seconds that it takes, about.
    pub fn seconds(self) -> u32 {
        match self {
            // a pool of its own before it; and back, if it is promoted
            Self::PoolMode | Self::ValidationAlone => 180,
            Self::Ceiling | Self::Timeout | Self::Latency => 90,
            Self::Validation => 120,
            Self::Parameter => 20,
            Self::Password => 200,
            Self::Host | Self::Tls | Self::Database => 80,
        }
    }
}

/// A good change: what it is, what it takes, and what it changes of the spec that the one before left.
pub type Good = (&'static str, &'static str, Value);

/// Good changes in a row, no two of the same.
pub fn good() -> Vec<Good> {
    let (new, reload, agent) = ("a new process", "RELOAD", "the agent");
    let alias = |connections: u32| json!({"pgbouncer": {"sessionAlias": {"database": "figure_session", "connections": connections}}});
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    vec![
        ("health.queryWaitTimeoutSeconds", reload, json!({"health": {"queryWaitTimeoutSeconds": 25}})),
        ("pkt_buf", new, parameter("pkt_buf", "8192")),
        ("server_lifetime", reload, parameter("server_lifetime", "1800")),
        ("a session alias", new, alias(2)),
        ("scaling.objective", agent, json!({"scaling": {"objective": {"waitMilliseconds": 15}}})),
        ("behavior.scaleDown", agent, json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}})),
        ("listen_backlog", new, parameter("listen_backlog", "2048")),
        ("reconnectedAt", "RECONNECT", json!({"pgbouncer": {"reconnectedAt": now}})),
        ("health.validationQuery", agent, json!({"health": {"validationQuery": "select 2"}})),
        ("a larger session alias", new, alias(3)),
        ("upstream.role", agent, json!({"upstream": {"role": "Any"}})),
        ("max_prepared_statements", reload, parameter("max_prepared_statements", "500")),
        ("track_extra_parameters", new, parameter("track_extra_parameters", "IntervalStyle,search_path")),
        (
            "scaling.algorithm",
            agent,
            json!({"scaling": {"algorithm": "TargetUtilization", "targetUtilizationPercent": 40}}),
        ),
        ("rollout.blueGreen", agent, json!({"rollout": {"blueGreen": {"scaleDownDelaySeconds": 10}}})),
        (
            "scaling.algorithm, back",
            agent,
            json!({"scaling": {"algorithm": "Adaptive", "targetUtilizationPercent": null}}),
        ),
        ("no session alias", new, json!({"pgbouncer": {"sessionAlias": null}})),
        ("health.leakThresholdSeconds", agent, json!({"health": {"leakThresholdSeconds": 200}})),
        ("server_idle_timeout", reload, parameter("server_idle_timeout", "300")),
        ("pkt_buf, back", new, json!({"pgbouncer": {"parameters": {"pkt_buf": null}}})),
    ]
}

/// Seconds that a good change takes, about.
pub const GOOD_SECONDS: u32 = 80;

fn parameter(name: &str, value: &str) -> Value {
    json!({"pgbouncer": {"parameters": {name: value}}})
}

/// The pool before anything has changed, with a database at this address; `is_in_sessions`: a client keeps its server connection.
pub fn pool((host, port): (&str, u16), replicas: u32, is_in_sessions: bool) -> Value {
    let failures = |name: &str| format!("sum(rate({name}{{namespace=\"{NAMESPACE}\",pod=~\"$canaryPods\"}}[10s]))");
    let (failed, asked) = (failures(super::application::FAILURES), failures(super::application::QUESTIONS));
    let mut pool = json!({
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "ConnectionPool",
        "metadata": {"name": "shop", "namespace": NAMESPACE},
        "spec": {
            "workload": {"selector": {"matchLabels": {"app": "shop"}}},
            "upstream": {
                "host": host,
                "port": port,
                "database": ROLE,
                "credentialsRef": {"name": "shop-db"},
                "tls": {"mode": "Disabled"}
            },
            "client": {"port": 5432},
            "scaling": {"minAllowed": 2 * replicas, "maxAllowed": SHARE * replicas},
            // what PgBouncer before 1.26 is given by default would be the change that doubles the latency
            "pgbouncer": {"parameters": {"server_check_delay": "30"}},
            "rollout": {
                "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
                "analysis": {
                    "metrics": [
                        {"name": "TransactionTime"},
                        {"name": "WaitTime"},
                        {"name": "Errors"},
                        {"name": "LoginFailures", "limitCount": 0},
                        {
                            "name": "application",
                            "query": format!("{failed} / {asked}"),
                            "successCondition": TOLERATED_FAILURES
                        }
                    ]
                }
            }
        }
    });
    if is_in_sessions {
        let sessions = json!({"spec": {
            "pgbouncer": {"poolMode": "session"},
            // each client that is connected needs one
            "scaling": {"algorithm": "TargetUtilization", "minAllowed": FOR_SESSIONS * replicas, "floorPerPod": FOR_SESSIONS}
        }});
        json_patch::merge(&mut pool, &sessions);
    }
    pool
}

/// The pool with its spec changed.
pub fn changed(pool: &Value, patch: &Value) -> Value {
    let mut changed = pool.clone();
    json_patch::merge(&mut changed, &json!({"spec": patch}));
    changed
}
