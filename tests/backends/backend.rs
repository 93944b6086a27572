//! Starts what answers like Prometheus, on free ports of loopback.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use sluice::signals::{PrometheusServer, ServerConfiguration};
use tempfile::TempDir;

use super::{
    server::{Agents, http_get},
    until,
};

/// What answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Prometheus,
    /// One that keeps classic histograms as native ones.
    PrometheusNative,
    VictoriaMetrics,
    /// In front of two Prometheus that scrape the same agents.
    Thanos,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Prometheus, Self::VictoriaMetrics, Self::Thanos];

    /// How many scrape each agent.
    pub const fn scrapers(self) -> u32 {
        match self {
            Self::Thanos => 2,
            Self::Prometheus | Self::PrometheusNative | Self::VictoriaMetrics => 1,
        }
    }
}

/// A program of the lab that ends with it.
struct Process(Child);

impl Process {
    fn start(directory: &Path, log: &str, program: &str, arguments: &[String]) -> Self {
        let bin: PathBuf = env::var_os("SLUICE_LAB_BIN")
            .expect("SLUICE_LAB_BIN is not set: eval \"$(tests/lab/lab env backends)\"")
            .into();
        let log = fs::File::create(directory.join(log)).unwrap();
        let child = Command::new(bin.join(program))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; eval \"$(tests/lab/lab env backends)\""));
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One that runs and scrapes.
pub struct Backend {
    address: SocketAddr,
    _processes: Vec<Process>,
    _directory: TempDir,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Backend {
    /// Starts one that scrapes these agents, and waits until it answers.
    pub async fn start(kind: Kind, agents: &Agents) -> Self {
        let directory = TempDir::new().unwrap();
        let mut processes = Vec::new();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let mut start = |log: &str, program: &str, arguments: &[String]| {
            processes.push(Process::start(directory.path(), log, program, arguments));
        };
        let configuration = |name: &str, replica: Option<u32>, native: bool| {
            let mut configuration = agents.configuration();
            if let Some(replica) = replica {
                configuration["global"]["external_labels"] = serde_json::json!({"replica": replica.to_string()});
            }
            if native {
                configuration["global"]["convert_classic_histograms_to_nhcb"] = true.into();
            }
            fs::write(directory.path().join(name), configuration.to_string()).unwrap();
        };
        let prometheus = |name: &str, address: SocketAddr| {
            vec![
                format!("--config.file={}", path(&format!("{name}.yml"))),
                format!("--storage.tsdb.path={}", path(name)),
                format!("--web.listen-address={address}"),
                // what a sidecar asks for
                "--storage.tsdb.min-block-duration=2h".to_owned(),
                "--storage.tsdb.max-block-duration=2h".to_owned(),
            ]
        };
        let address = free_address();
        match kind {
            Kind::Prometheus | Kind::PrometheusNative => {
                configuration("p.yml", None, kind == Kind::PrometheusNative);
                let mut arguments = prometheus("p", address);
                if kind == Kind::PrometheusNative {
                    arguments.push("--enable-feature=native-histograms".to_owned());
                }
                start("log", "prometheus", &arguments);
            }
            Kind::VictoriaMetrics => {
                configuration("p.yml", None, false);
                let arguments = [
                    format!("-promscrape.config={}", path("p.yml")),
                    format!("-storageDataPath={}", path("data")),
                    format!("-httpListenAddr={address}"),
                    // it evaluates no rules, and ends at a configuration that names some
                    "-promscrape.config.strictParse=false".to_owned(),
                ];
                start("log", "victoria-metrics", &arguments);
            }
            Kind::Thanos => {
                let mut query = vec![
                    "query".to_owned(),
                    format!("--http-address={address}"),
                    format!("--grpc-address={}", free_address()),
                    "--query.replica-label=replica".to_owned(),
                ];
                for replica in [1, 2] {
                    let (name, web, grpc) = (format!("p{replica}"), free_address(), free_address());
                    configuration(&format!("{name}.yml"), Some(replica), false);
                    start(&format!("log-{name}"), "prometheus", &prometheus(&name, web));
                    let arguments = [
                        "sidecar".to_owned(),
                        format!("--prometheus.url=http://{web}"),
                        format!("--grpc-address={grpc}"),
                        format!("--http-address={}", free_address()),
                        format!("--tsdb.path={}", path(&name)),
                    ];
                    start(&format!("log-sidecar{replica}"), "thanos", &arguments);
                    query.push(format!("--endpoint={grpc}"));
                }
                start("log", "thanos", &query);
            }
        }
        let backend = Self { address, _processes: processes, _directory: directory };
        let url = format!("http://{address}/api/v1/query?query=1");
        until(&format!("{kind:?} answers"), async || {
            http_get(&url).await.ok().filter(|response| response.status().is_success())
        })
        .await;
        backend
    }

    /// How to read it.
    pub fn server(&self) -> PrometheusServer {
        PrometheusServer::new("default", ServerConfiguration::new(format!("http://{}", self.address)))
    }
}
