//! What the operator is told at its start.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, ValueEnum};

use crate::{decide::allowed::PoolAllowList, inject::InjectionSettings, telemetry::LogFormat};

/// Flags of `sluice operator`; each has an environment variable.
#[derive(Args, Clone, Debug)]
pub struct OperatorArgs {
    /// Namespace that the operator runs in: its Lease, its certificates.
    #[arg(long, env = "POD_NAMESPACE", default_value = "sluice-system")]
    pub namespace: String,
    /// Name of this pod: its identity in the leader election.
    #[arg(long, env = "POD_NAME", default_value = "sluice-operator")]
    pub pod_name: String,
    /// Service account of the operator: the only one that may write `sluice.dev/*` on pods.
    #[arg(long, env = "SLUICE_SERVICE_ACCOUNT", default_value = "sluice-operator")]
    pub service_account: String,
    /// File that says where Prometheus is and how to log in there. Without it pools hold their size.
    #[arg(long, env = "SLUICE_PROMETHEUS_CONFIG", value_name = "FILE")]
    pub prometheus_config: Option<PathBuf>,
    /// Image that sluice-agent is copied from.
    #[arg(long, env = "SLUICE_AGENT_IMAGE", default_value = "sluice:latest")]
    pub agent_image: String,
    /// Image of PgBouncer for pools that name none.
    #[arg(long, env = "SLUICE_PGBOUNCER_IMAGE", default_value = "ghcr.io/cloudnative-pg/pgbouncer:1.26.1")]
    pub pgbouncer_image: String,
    /// Pull policy of both images.
    #[arg(long, env = "SLUICE_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Numeric user of the injected containers, or `platform` where the platform assigns one (OpenShift).
    #[arg(long, env = "SLUICE_SIDECAR_USER", default_value = "65532", value_name = "UID|platform")]
    pub sidecar_user: SidecarUser,
    /// Pull secrets for injected pods, by comma; each must exist in the namespaces of the pods.
    #[arg(
        long,
        env = "SLUICE_SIDECAR_PULL_SECRETS",
        default_value = "",
        value_name = "NAMES",
        hide_default_value = true
    )]
    pub sidecar_pull_secrets: String,
    /// Repositories of images that a pool may name for its pooler beside that of --pgbouncer-image, by comma; one that ends with `/` stands
    /// for all beneath it.
    #[arg(
        long,
        env = "SLUICE_POOL_IMAGES",
        default_value = "",
        value_name = "REPOSITORIES",
        hide_default_value = true
    )]
    pub pool_images: String,
    /// Environment variables that a pool may set in applications beside those by which they find a database, by comma.
    #[arg(long, env = "SLUICE_POOL_ENVIRONMENT", default_value = "", value_name = "NAMES", hide_default_value = true)]
    pub pool_environment: String,
    /// Whether pools of topology Gateway get their poolers: it takes rights on Deployments and Services.
    #[arg(long, env = "SLUICE_GATEWAYS", value_enum, default_value_t = Gateways::Disabled)]
    pub gateways: Gateways,
    /// Address of `/metrics`, `/healthz` and `/readyz`.
    #[arg(long, env = "SLUICE_HTTP_BIND", default_value = "0.0.0.0:8080")]
    pub http_bind: SocketAddr,
    /// Address of the webhook.
    #[arg(long, env = "SLUICE_WEBHOOK_BIND", default_value = "0.0.0.0:9443")]
    pub webhook_bind: SocketAddr,
    /// Service in front of the webhook: the name in its certificate.
    #[arg(long, env = "SLUICE_WEBHOOK_SERVICE", default_value = "sluice-webhook")]
    pub webhook_service: String,
    /// Secret that keeps the webhook's certificates.
    #[arg(long, env = "SLUICE_WEBHOOK_SECRET", default_value = "sluice-webhook-tls")]
    pub webhook_secret: String,
    /// Name of the MutatingWebhookConfiguration whose caBundle is kept.
    #[arg(long, env = "SLUICE_WEBHOOK_CONFIGURATION", default_value = "sluice")]
    pub webhook_configuration: String,
    /// Name of the Lease of the leader election.
    #[arg(long, env = "SLUICE_LEASE_NAME", default_value = "sluice-operator")]
    pub lease_name: String,
    /// Seconds between two readings of Prometheus.
    #[arg(long, env = "SLUICE_TICK_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=300))]
    pub tick_seconds: u64,
    /// Seconds for which requests are still answered after SIGTERM: so long the cluster may take to lead them to other replicas.
    #[arg(long, env = "SLUICE_DRAIN_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=120))]
    pub drain_seconds: u64,
    /// Shape of the log lines.
    #[arg(long, env = "SLUICE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged: a level, or target=level pairs.
    #[arg(long, env = "SLUICE_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// What a list by comma names.
fn listed(names: &str) -> Vec<String> {
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl OperatorArgs {
    /// What is the same for all injected pods.
    pub fn injection(&self) -> InjectionSettings {
        InjectionSettings {
            agent_image: self.agent_image.clone(),
            pgbouncer_image: self.pgbouncer_image.clone(),
            image_pull_policy: Some(self.image_pull_policy.clone()),
            image_pull_secrets: listed(&self.sidecar_pull_secrets),
            run_as_user: match self.sidecar_user {
                SidecarUser::Uid(uid) => Some(uid.into()),
                SidecarUser::Platform => None,
            },
            allowed: PoolAllowList { images: listed(&self.pool_images), variables: listed(&self.pool_environment) },
        }
    }

    /// For how long requests are still answered after SIGTERM.
    pub const fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }

    /// Time between two readings of Prometheus.
    pub const fn tick(&self) -> Duration {
        Duration::from_secs(self.tick_seconds)
    }
}

/// Whether pools of topology Gateway get their poolers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gateways {
    /// They do.
    Enabled,
    /// They are told that they do not.
    Disabled,
}

/// Who the injected containers run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidecarUser {
    /// This user.
    Uid(u32),
    /// Whom the platform assigns.
    Platform,
}

impl FromStr for SidecarUser {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "platform" => Ok(Self::Platform),
            Ok(0) => Err("the sidecar must not run as root; give another user, or `platform`".to_owned()),
            Ok(uid) => Ok(Self::Uid(uid)),
            Err(_) => Err("give the number of a user, or `platform`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::OperatorArgs;

    #[derive(Parser)]
    struct Started {
        #[command(flatten)]
        with: OperatorArgs,
    }

    #[test]
    fn without_flags_the_operator_runs_the_pooler_and_keeps_the_secret_of_the_chart_and_its_guide() {
        let OperatorArgs { pgbouncer_image, webhook_secret, .. } = Started::parse_from(["sluice"]).with;
        let root = env!("CARGO_MANIFEST_DIR");
        let text = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).expect("a text");
        assert!(
            text("charts/sluice/values.yaml").contains(&format!("  image: {pgbouncer_image}\n")),
            "{pgbouncer_image}"
        );
        assert!(text("docs/operations.md").contains(&format!("secret/{webhook_secret} ")), "{webhook_secret}");
    }
}
