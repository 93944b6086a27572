//! What a PgBouncer does that is told nothing, or something that it does not understand: the program itself is asked.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sluice::pooler::pgbouncer::{
    console::Console,
    parameters::{Changed, HISTORY},
};
use tempfile::TempDir;

use super::{
    faults::script_in,
    rig::{Agent, Postgres, free_port, pooler_version, program, settings, until},
    value,
};

/// Every parameter of PgBouncer 1.24.1 with its default, as `SHOW CONFIG` prints it.
const OLDEST_DEFAULTS: &[(&str, &str)] = &[
    ("admin_users", ""),
    ("application_name_add_host", "0"),
    ("auth_dbname", ""),
    ("auth_file", ""),
    ("auth_hba_file", ""),
    ("auth_ident_file", ""),
    (
        "auth_query",
        "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin",
    ),
    ("auth_type", "md5"),
    ("auth_user", ""),
    ("autodb_idle_timeout", "3600"),
    ("client_idle_timeout", "0"),
    ("client_login_timeout", "60"),
    ("client_tls_ca_file", ""),
    ("client_tls_cert_file", ""),
    ("client_tls_ciphers", "default"),
    ("client_tls_dheparams", "auto"),
    ("client_tls_ecdhcurve", "auto"),
    ("client_tls_key_file", ""),
    ("client_tls_protocols", "secure"),
    ("client_tls_sslmode", "disable"),
    ("conffile", ""),
    ("default_pool_size", "20"),
    ("disable_pqexec", "0"),
    ("dns_max_ttl", "15"),
    ("dns_nxdomain_ttl", "15"),
    ("dns_zone_check_period", "0"),
    ("idle_transaction_timeout", "0"),
    ("ignore_startup_parameters", ""),
    ("job_name", "pgbouncer"),
    ("listen_addr", ""),
    ("listen_backlog", "128"),
    ("listen_port", "6432"),
    ("log_connections", "1"),
    ("log_disconnections", "1"),
    ("log_pooler_errors", "1"),
    ("log_stats", "1"),
    ("logfile", ""),
    ("max_client_conn", "100"),
    ("max_db_connections", "0"),
    ("max_db_client_connections", "0"),
    ("max_packet_size", "2147483647"),
    ("max_prepared_statements", "200"),
    ("max_user_connections", "0"),
    ("max_user_client_connections", "0"),
    ("min_pool_size", "0"),
    ("peer_id", "0"),
    ("pidfile", ""),
    ("pkt_buf", "4096"),
    ("pool_mode", "session"),
    ("query_timeout", "0"),
    ("query_wait_timeout", "120"),
    ("cancel_wait_timeout", "10"),
    ("reserve_pool_size", "0"),
    ("reserve_pool_timeout", "5"),
    ("resolv_conf", ""),
    ("sbuf_loopcnt", "5"),
    ("server_check_delay", "30"),
    ("server_check_query", "select 1"),
    ("server_connect_timeout", "15"),
    ("server_fast_close", "0"),
    ("server_idle_timeout", "600"),
    ("server_lifetime", "3600"),
    ("server_login_retry", "15"),
    ("server_reset_query", "DISCARD ALL"),
    ("server_reset_query_always", "0"),
    ("server_round_robin", "0"),
    ("server_tls_ca_file", ""),
    ("server_tls_cert_file", ""),
    ("server_tls_ciphers", "default"),
    ("server_tls_key_file", ""),
    ("server_tls_protocols", "secure"),
    ("server_tls_sslmode", "prefer"),
    ("so_reuseport", "0"),
    ("stats_period", "60"),
    ("stats_users", ""),
    ("suspend_timeout", "10"),
    ("syslog", "0"),
    ("syslog_facility", "daemon"),
    ("syslog_ident", "pgbouncer"),
    ("tcp_defer_accept", "1"),
    ("tcp_keepalive", "1"),
    ("tcp_keepcnt", "0"),
    ("tcp_keepidle", "0"),
    ("tcp_keepintvl", "0"),
    ("tcp_socket_buffer", "0"),
    ("tcp_user_timeout", "0"),
    ("track_extra_parameters", "IntervalStyle"),
    ("unix_socket_dir", "/tmp"),
    ("unix_socket_group", ""),
    ("unix_socket_mode", "0777"),
    ("user", ""),
    ("verbose", ""),
];

/// A process that ends with the test.
struct Pooler(Child);

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(ini: &Path) -> Pooler {
    let child = Command::new(program("pgbouncer")).arg(ini).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    Pooler(child.unwrap())
}

#[tokio::test]
#[ignore = "needs PgBouncer: tests/run parts"]
async fn all_that_versions_disagree_about_is_known() {
    let (directory, port) = (TempDir::new().unwrap(), free_port());
    let ini = directory.path().join("pgbouncer.ini");
    let text =
        format!("[databases]\n[pgbouncer]\nlisten_port = {port}\nunix_socket_dir = {}\n", directory.path().display());
    fs::write(&ini, text).unwrap();
    let _pooler = started(&ini);
    let mut console = Console::new(directory.path(), port, Duration::from_secs(2));
    let table = until("its console answers", async || console.run("SHOW CONFIG").await.ok()).await;
    let column = |name: &str| table.columns.iter().position(|column| column == name).unwrap();
    let (key, default) = (column("key"), column("default"));
    let cell = |row: &[Option<String>], index: usize| row[index].clone().unwrap_or_default();
    let told: BTreeMap<String, String> = table.rows.iter().map(|row| (cell(row, key), cell(row, default))).collect();
    let mut known: BTreeMap<String, String> =
        OLDEST_DEFAULTS.iter().map(|(name, default)| ((*name).to_owned(), (*default).to_owned())).collect();
    for change in HISTORY.iter().filter(|change| change.since <= pooler_version()) {
        match change.changed {
            Changed::Added(default) | Changed::Default(default) => {
                known.insert(change.name.to_owned(), default.to_owned());
            }
            Changed::Removed => drop(known.remove(change.name)),
        }
    }
    assert_eq!(told, known);
}

#[tokio::test]
#[ignore = "needs PgBouncer and PostgreSQL: tests/run parts"]
async fn a_file_that_is_understood_only_up_to_a_line_is_not_in_force_and_told_and_the_next_one_is() {
    let (postgres, account) = Postgres::with_shop().await;
    // what PgBouncer reads is ours, behind a line that is there for a while
    let directory = TempDir::new().unwrap();
    let before = directory.path().join("before.ini");
    fs::write(&before, ";\n").unwrap();
    let script = format!(
        "#!/bin/sh\n[ -f \"$1\" ] || exec {real} \"$@\"\nprintf '%%include {before}\\n%%include %s\\n' \"$1\" > \"$1.read\"\nexec {real} \"$1.read\"\n",
        real = program("pgbouncer").display(),
        before = before.display(),
    );
    let agent = Agent::new(postgres.port, &account).with_pooler(&script_in(&directory, &script));
    let agent = agent.started(&settings(), 4).await;
    let client = agent.client().await;
    fs::write(&before, "[pgbouncer]\nno such line\n").unwrap();
    let mut changed = settings();
    changed.parameters.insert("server_idle_timeout".to_owned(), "33".to_owned());
    agent.revise(2, &changed);
    let status = agent.until("it is told", |status| status.message.contains("server_idle_timeout")).await;
    assert_eq!(status.revision, Some(1), "{}", status.message);
    agent
        .until("the limits are back", |status| {
            status.limits.is_some_and(|limits| limits.pool_size == 4 && limits.max_db_connections == 4)
        })
        .await;
    fs::write(&before, ";\n").unwrap();
    agent.until("it is in force", |status| status.revision == Some(2) && status.message.is_empty()).await;
    assert_eq!(value(&client, "select 'the same connection'").await, "the same connection");
}
