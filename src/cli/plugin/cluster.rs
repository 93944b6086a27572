//! The way to the API server: every request has a deadline, and an answer that is an error says what is wrong and what to do.

use std::{fmt::Debug, future::Future, time::Duration};

use k8s_openapi::{NamespaceResourceScope, api::authentication::v1::SelfSubjectReview};
use kube::{
    Api, Client, Config, Resource,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    config::{InferConfigError, KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    error::PluginError,
    options::ClusterOptions,
    view::{
        NotRead,
        document::{PoolDocument, UnreadablePool},
    },
};
use crate::{
    api::{ConnectionPool, GROUP},
    causes::with_causes,
};

/// Objects that are asked for at once.
const PAGE: u32 = 500;
/// Objects of one kind that are read at most.
const MOST_OBJECTS: usize = 20_000;
/// Names that are told where one was not found.
const MOST_NAMES: usize = 10;
/// A watch is quiet for a minute at most: the API server sends bookmarks, and ends it after five.
const LONGEST_SILENCE: Duration = Duration::from_mins(6);
/// Name under which changes are recorded.
pub const FIELD_MANAGER: &str = "kubectl-sluice";

/// Which pools are meant.
#[derive(Clone, Debug, Default)]
pub struct PoolScope {
    /// Those of every namespace.
    pub all_namespaces: bool,
    /// Those with these labels.
    pub selector: Option<String>,
}

/// Pools as they were listed.
#[derive(Debug, Default)]
pub struct PoolList {
    /// Those that this build understands.
    pub pools: Vec<PoolDocument>,
    /// The others.
    pub unreadable: Vec<UnreadablePool>,
}

/// The API server as one user sees it.
#[derive(Clone)]
pub struct ClusterAccess {
    client: Client,
    namespace: String,
    deadline: Duration,
}

impl ClusterAccess {
    /// Reads the kubeconfig and makes a client. Nothing is asked yet.
    ///
    /// # Errors
    /// [`PluginError`]: the configuration is missing or wrong.
    pub async fn connect(options: &ClusterOptions) -> Result<Self, PluginError> {
        let mut config = configuration(options).await?;
        // whoever waits decides whether to ask again
        config.default_retry = false;
        config.connect_timeout = Some(options.request_timeout);
        config.read_timeout = Some(LONGEST_SILENCE.max(options.request_timeout));
        if let Some(user) = &options.act_as {
            config.auth_info.impersonate = Some(user.clone());
        }
        let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string();
        let client =
            Client::try_from(config).map_err(|error| PluginError::Client { server, words: with_causes(&error) })?;
        Ok(Self { client, namespace, deadline: options.request_timeout })
    }

    /// The namespace that is meant where none is named.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The client, for requests that [`Self::ask`] is given.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The objects of a kind in a namespace.
    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The pools of a scope, as the API server says them.
    pub fn pools(&self, scope: &PoolScope) -> Api<DynamicObject> {
        let kind = ApiResource::erase::<ConnectionPool>(&());
        if scope.all_namespaces {
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind)
        }
    }

    /// Makes a request, within the deadline.
    ///
    /// # Errors
    /// [`PluginError`]: the API server refuses, cannot be reached, or does not answer in time.
    pub async fn ask<T>(
        &self,
        what: impl Into<String>,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PluginError> {
        let what = what.into();
        match timeout(self.deadline, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(PluginError::of(&what, &error)),
            Err(_) => Err(PluginError::Deadline { what, deadline: self.deadline }),
        }
    }

    /// All objects that a list selects, page by page.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn list<K>(&self, what: &str, api: &Api<K>, params: ListParams) -> Result<Vec<K>, PluginError>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut objects = Vec::new();
        let mut params = params.limit(PAGE);
        loop {
            let page = self.ask(what, api.list(&params)).await?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) if objects.len() < MOST_OBJECTS => params = params.continue_token(&token),
                _ => return Ok(objects),
            }
        }
    }

    /// One pool.
    ///
    /// # Errors
    /// [`PluginError`]: there is none, or it cannot be read.
    pub async fn pool(&self, name: &str) -> Result<PoolDocument, PluginError> {
        let what = format!("read ConnectionPool {}/{name}", self.namespace);
        let found = self.ask(&what, self.pools(&PoolScope::default()).get(name)).await;
        match found {
            Ok(found) => document(&found).map_err(|pool| PluginError::Unreadable(pool.words)),
            Err(PluginError::NotFound { what, .. }) => {
                Err(PluginError::NotFound { what, hint: self.which_there_are().await })
            }
            Err(error) => Err(self.with_versions(error).await),
        }
    }

    /// The pools of a scope, by namespace and name.
    ///
    /// # Errors
    /// [`PluginError`]: they cannot be listed.
    pub async fn list_pools(&self, scope: &PoolScope) -> Result<PoolList, PluginError> {
        let place = if scope.all_namespaces { "all namespaces" } else { &self.namespace };
        let what = format!("list ConnectionPools in {place}");
        let mut params = ListParams::default();
        if let Some(selector) = &scope.selector {
            params = params.labels(selector);
        }
        let found = match self.list(&what, &self.pools(scope), params).await {
            Ok(found) => found,
            Err(error) => return Err(self.with_versions(error).await),
        };
        let mut list = PoolList::default();
        for object in &found {
            match document(object) {
                Ok(pool) => list.pools.push(pool),
                Err(pool) => list.unreadable.push(pool),
            }
        }
        list.pools.sort_by_key(PoolDocument::key);
        Ok(list)
    }

    /// Changes a pool by a JSON patch, as the API server says it then.
    ///
    /// # Errors
    /// [`PluginError`]: refused, or nobody knows.
    pub async fn patch_pool(
        &self,
        what: &str,
        name: &str,
        operations: Value,
        is_dry_run: bool,
    ) -> Result<PoolDocument, PluginError> {
        let operations: json_patch::Patch = serde_json::from_value(operations)
            .map_err(|error| PluginError::Unreadable(format!("{what}: the patch is none: {error}")))?;
        let params = PatchParams {
            dry_run: is_dry_run,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let pools = self.pools(&PoolScope::default());
        let changed = self.ask(what, pools.patch(name, &params, &Patch::<()>::Json(operations))).await;
        let changed = changed.map_err(PluginError::of_change)?;
        document(&changed).map_err(|pool| PluginError::Unreadable(pool.words))
    }

    /// Whom the API server takes the user for; none where it does not say so: nothing depends on it.
    pub async fn who_asks(&self) -> Option<String> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let (params, review) = (PostParams::default(), SelfSubjectReview::default());
        let asked = self.ask("ask who you are", reviews.create(&params, &review)).await;
        asked.ok()?.status?.user_info?.username
    }

    /// The names of the pools there are, behind the message that one was not found.
    async fn which_there_are(&self) -> String {
        let Ok(list) = self.list_pools(&PoolScope::default()).await else { return String::new() };
        if list.pools.is_empty() {
            return format!("; {} has no pools: name another namespace with -n", self.namespace);
        }
        let names: Vec<&str> = list.pools.iter().map(PoolDocument::name).take(MOST_NAMES).collect();
        let more = if list.pools.len() > MOST_NAMES { " and more" } else { "" };
        format!("; there are {}{more}", names.join(", "))
    }

    /// Where the kinds are not served: which versions of them are.
    async fn with_versions(&self, error: PluginError) -> PluginError {
        let PluginError::NoKinds { what, .. } = error else { return error };
        let groups = self.ask("read the API groups", self.client.list_api_groups()).await;
        let groups = groups.map(|list| list.groups).unwrap_or_default();
        let ours = groups.into_iter().find(|group| group.name == GROUP);
        let served = ours.map(|group| group.versions.into_iter().map(|version| version.version).collect());
        PluginError::NoKinds { what, served: served.unwrap_or_default() }
    }
}

/// A pool as it was read.
///
/// # Errors
/// [`UnreadablePool`].
pub fn document(object: &DynamicObject) -> Result<PoolDocument, UnreadablePool> {
    let mut raw = serde_json::to_value(object).unwrap_or_default();
    // lists leave it to the list to say of which kind they are
    let kind = ApiResource::erase::<ConnectionPool>(&());
    raw["apiVersion"] = kind.api_version.into();
    raw["kind"] = kind.kind.into();
    PoolDocument::read(raw)
}

/// What could not be read and is not needed for an answer: said beside it.
pub fn beside<T>(outcome: Result<T, PluginError>) -> Result<T, NotRead> {
    outcome.map_err(|error| NotRead { words: error.to_string(), todo: error.todo() })
}

/// The configuration that the flags name.
async fn configuration(options: &ClusterOptions) -> Result<Config, PluginError> {
    let wrong = |error: &dyn std::error::Error| PluginError::Configuration { words: with_causes(error) };
    let which = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    if let Some(file) = &options.kubeconfig {
        let read = Kubeconfig::read_from(file).map_err(|error| PluginError::Configuration {
            words: format!("{}: {}", file.display(), with_causes(&error)),
        })?;
        return Config::from_custom_kubeconfig(read, &which).await.map_err(|error| wrong(&error));
    }
    if which.context.is_some() {
        return Config::from_kubeconfig(&which).await.map_err(|error| wrong(&error));
    }
    Config::infer().await.map_err(|error: InferConfigError| wrong(&error))
}
