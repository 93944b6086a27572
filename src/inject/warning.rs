//! PURE: what users are warned of, with the words by which docs/injection.md has it.

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The application listens where the pooler does.
    PoolerPort,
    /// The application listens where the agent does.
    AgentPort,
    /// A connection string that nobody but the application can read.
    Secret,
    /// The same, in a ConfigMap.
    ConfigMap,
    /// Variables that nobody but the application can read, whatever their names.
    EnvFrom,
    /// A connection that leads past the pooler.
    DatabaseHost,
    /// A file of connections that wins over the environment.
    ServiceFile,
    /// A setting of a session that a pool does not keep.
    StartupParameter,
    /// The pod may be killed while its clients still work.
    GracePeriod,
    /// A tool that transaction pooling breaks.
    SessionTool,
    /// What a bound on queries also cuts.
    QueryTimeout,
    /// Credentials that other containers can read.
    SharedProcesses,
    /// A limit that nobody has asked for.
    CpuLimit,
    /// A limit with less room than the pool may ask for.
    MemoryLimit,
    /// Queries of the pool's own that move no limit.
    Overrides,
    /// More text than is looked through.
    TooMuchText,
    /// More warnings than are told.
    Others,
    /// No pooler can be injected: the host's network.
    HostNetwork,
    /// No pooler can be injected: Windows.
    Windows,
}

/// A warning in words. Only a kind of warning makes one, so that the guide has them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarningText(String);

impl Warning {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::PoolerPort,
        Self::AgentPort,
        Self::Secret,
        Self::ConfigMap,
        Self::EnvFrom,
        Self::DatabaseHost,
        Self::ServiceFile,
        Self::StartupParameter,
        Self::GracePeriod,
        Self::SessionTool,
        Self::QueryTimeout,
        Self::SharedProcesses,
        Self::CpuLimit,
        Self::MemoryLimit,
        Self::Overrides,
        Self::TooMuchText,
        Self::Others,
        Self::HostNetwork,
        Self::Windows,
    ];

    /// What every warning of this kind says.
    pub const fn words(self) -> &'static str {
        match self {
            Self::PoolerPort => "is the pooler's port",
            Self::AgentPort => "is the agent's port",
            Self::Secret => "comes from a Secret and cannot be rewritten",
            Self::ConfigMap => "comes from a ConfigMap and is not looked into",
            Self::EnvFrom => "envFrom is not looked into",
            Self::DatabaseHost => "names the database's host",
            Self::ServiceFile => "names a connection service, whose file wins over PGHOST",
            Self::StartupParameter => "asks for the startup parameter",
            Self::GracePeriod => "is shorter than what a client may wait and work for",
            Self::SessionTool => "needs a session of its own",
            Self::QueryTimeout => "pgbouncer.parameters.query_timeout: before PgBouncer 1.26",
            Self::SharedProcesses => "shareProcessNamespace lets every container",
            Self::CpuLimit => "the pod is Guaranteed, so the container sluice gets a CPU limit",
            Self::MemoryLimit => "has room for",
            Self::Overrides => "scaling.metrics.overrides: they move the target alone, and no limit",
            Self::TooMuchText => "has more text than is looked through",
            Self::Others => "further warnings are left out",
            Self::HostNetwork => "no pooler was injected: the pod uses the host's network",
            Self::Windows => "no pooler was injected: PgBouncer does not run on Windows",
        }
    }

    /// The warning, with what stands before and behind its words.
    pub(super) fn text(self, before: &str, behind: &str) -> WarningText {
        WarningText(format!("{before}{}{behind}", self.words()))
    }
}

impl From<WarningText> for String {
    fn from(text: WarningText) -> Self {
        text.0
    }
}
