//! Keeps the webhook's certificate alive: minted and rotated by the operator itself, no other controller is needed.
//!
//! Every replica does the same, every half minute by the wall clock: it reads the Secret, does what is due
//! ([`plan`]), writes with the resourceVersion that it read (of two that race one wins, and the other reads again), serves
//! the certificate, and puts the authorities into the `MutatingWebhookConfiguration`.

mod material;
pub mod plan;

use std::{collections::BTreeMap, future::Future, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, TestOperation, jsonptr::PointerBuf};
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use self::material::{Material, SECRET_KEY};
use crate::{
    api::FIELD_MANAGER,
    serving::{TlsIdentity, TlsIdentityError},
};

/// Longest time for one request to the API server.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// Shortest time between two looks after a failure; it doubles up to [`INTERVAL`].
const SHORTEST_RETRY: Duration = Duration::from_secs(1);
/// How often a lost race is tried again at once.
const RACES: usize = 5;

/// Where the certificates are kept, and whom they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSettings {
    /// The operator's namespace.
    pub namespace: String,
    /// Secret that keeps them.
    pub secret: String,
    /// Name of the `MutatingWebhookConfiguration` whose caBundle is kept.
    pub configuration: String,
    /// Names of the server, the first as the API server calls it: `SERVICE.NAMESPACE.svc`.
    pub names: Vec<String>,
}

impl CertificateSettings {
    /// For a webhook behind a Service.
    pub fn for_service(namespace: &str, service: &str, secret: &str, configuration: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            configuration: configuration.to_owned(),
            names: vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")],
        }
    }
}

/// Why the certificate could not be kept. What is served stays; the next look tries again.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The API server refused, or could not be reached.
    #[error("{operation} {name}")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        name: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("{operation} {name}: no answer within {}s", CALL_DEADLINE.as_secs())]
    Deadline {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        name: String,
    },
    /// Another replica wrote first, again and again.
    #[error("write Secret {0}: lost to another replica {RACES} times")]
    Races(String),
    /// A certificate could not be minted.
    #[error("mint a certificate")]
    Mint(#[from] rcgen::Error),
    /// Certificate and key do not fit together.
    #[error("load the certificate of Secret {name}; delete the Secret and new ones are minted")]
    Load {
        /// The Secret.
        name: String,
        /// What the TLS library said.
        #[source]
        source: TlsIdentityError,
    },
    /// The chart's `MutatingWebhookConfiguration` is not there.
    #[error("MutatingWebhookConfiguration {0} does not exist: no pod gets a pooler; install it with the chart")]
    NoConfiguration(String),
}

/// What is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// When it ends.
    pub not_after: Timestamp,
}

/// Whether the API server can call the webhook, as far as certificates go.
#[derive(Debug)]
pub enum CertificateTrust<'a> {
    /// What is served is trusted. A look that failed since then, because the API server restarts, say, changes nothing
    /// about that.
    Trusted(Serving),
    /// It never was, or what is served has expired.
    Untrusted(&'a CertificateError),
}

/// Keeps one webhook's certificate.
pub struct CertificateKeeper {
    client: Client,
    settings: CertificateSettings,
    tls: TlsIdentity,
    served: String,
}

impl CertificateKeeper {
    /// Reads or mints the certificate; the server can start with [`Self::tls`] then.
    ///
    /// # Errors
    /// [`CertificateError`]: there is no certificate to serve yet; try again.
    pub async fn start(client: Client, settings: CertificateSettings) -> Result<Self, CertificateError> {
        let material = read_or_renew(&client, &settings, Timestamp::now()).await?;
        let (certificate, key) = material.server_pem();
        let tls = TlsIdentity::from_pem(certificate, key)
            .map_err(|source| CertificateError::Load { name: settings.secret.clone(), source })?;
        let served = certificate.to_owned();
        Ok(Self { client, settings, tls, served })
    }

    /// What the server proves itself with; exchanged while it serves.
    pub fn tls(&self) -> TlsIdentity {
        self.tls.clone()
    }

    /// One look: renews what is due, serves it, and has the API server trust it.
    ///
    /// # Errors
    /// [`CertificateError`]: something of it failed; what is served stays.
    pub async fn look(&mut self, now: Timestamp) -> Result<Serving, CertificateError> {
        let material = read_or_renew(&self.client, &self.settings, now).await?;
        let (certificate, key) = material.server_pem();
        if self.served != certificate {
            let loaded = self.tls.exchange(certificate, key);
            loaded.map_err(|source| CertificateError::Load { name: self.settings.secret.clone(), source })?;
            certificate.clone_into(&mut self.served);
            info!(not_after = %material.not_after(), "serving a new webhook certificate");
        }
        trust(&self.client, &self.settings.configuration, &material.bundle()).await?;
        Ok(Serving { not_after: material.not_after() })
    }

    /// Looks for ever. `report` is called after every look with how things stand: readiness and metrics follow it.
    pub async fn run(mut self, report: impl Fn(CertificateTrust<'_>) + Send) {
        let mut retry = SHORTEST_RETRY;
        let mut trusted = None;
        loop {
            let now = Timestamp::now();
            let pause = match self.look(now).await {
                Ok(serving) => {
                    trusted = Some(serving);
                    report(CertificateTrust::Trusted(serving));
                    retry = SHORTEST_RETRY;
                    INTERVAL
                }
                Err(error) => {
                    let standing = trusted.filter(|serving: &Serving| now < serving.not_after);
                    report(standing.map_or(CertificateTrust::Untrusted(&error), CertificateTrust::Trusted));
                    error!(error = &error as &dyn std::error::Error, "the webhook's certificate could not be kept");
                    retry = (retry * 2).min(INTERVAL);
                    retry
                }
            };
            sleep(pause).await;
        }
    }
}

/// The certificates of the Secret, renewed where that is due.
async fn read_or_renew(
    client: &Client,
    settings: &CertificateSettings,
    now: Timestamp,
) -> Result<Material, CertificateError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    let name = &settings.secret;
    for _ in 0..RACES {
        let found = call("read Secret", name, secrets.get_opt(name)).await?;
        let document = found.as_ref().and_then(|secret| secret.data.as_ref()?.get(SECRET_KEY));
        let held = match document.and_then(|ByteString(document)| Material::read(document)) {
            Some(material) if loads(&material) => Some(material),
            _ => None,
        };
        let Some((material, step)) = Material::renewed(held.as_ref(), &settings.names, now)? else {
            match held {
                Some(material) => return Ok(material),
                None => continue,
            }
        };
        let data = BTreeMap::from([(SECRET_KEY.to_owned(), ByteString(material.write()))]);
        let options = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let written = match found {
            None => {
                let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                call("create Secret", name, secrets.create(&options, &secret)).await
            }
            // With the resourceVersion that was read: whoever wrote since then wins.
            Some(secret) => {
                let secret = Secret { data: Some(data), ..secret };
                call("write Secret", name, secrets.replace(name, &options, &secret)).await
            }
        };
        match written {
            Ok(_) => {
                info!(?step, not_after = %material.not_after(), secret = name, "webhook certificates renewed");
                return Ok(material);
            }
            Err(CertificateError::Api { source, .. }) if lost_race(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Err(CertificateError::Races(name.clone()))
}

fn lost_race(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() || status.is_not_found())
}

/// Whether the TLS library takes certificate and key: somebody may have edited the Secret.
fn loads(material: &Material) -> bool {
    let (certificate, key) = material.server_pem();
    TlsIdentity::from_pem(certificate, key).is_ok()
}

/// Puts the bundle into every webhook of the configuration that has another.
async fn trust(client: &Client, name: &str, bundle: &str) -> Result<(), CertificateError> {
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let found = call("read MutatingWebhookConfiguration", name, configurations.get_opt(name)).await?;
    let configuration = found.ok_or_else(|| CertificateError::NoConfiguration(name.to_owned()))?;
    let webhooks = configuration.webhooks.unwrap_or_default();
    let stale = webhooks.iter().enumerate().filter(|(_, webhook)| {
        webhook.client_config.ca_bundle.as_ref().is_none_or(|ByteString(trusted)| trusted != bundle.as_bytes())
    });
    let encoded = BASE64_STANDARD.encode(bundle);
    let operations: Vec<PatchOperation> = stale
        .flat_map(|(index, webhook)| {
            let index = index.to_string();
            let at = |tokens: &[&str]| PointerBuf::from_tokens(["webhooks", &index].iter().chain(tokens).copied());
            [
                // The list may have changed since it was read.
                PatchOperation::Test(TestOperation { path: at(&["name"]), value: webhook.name.clone().into() }),
                PatchOperation::Add(AddOperation {
                    path: at(&["clientConfig", "caBundle"]),
                    value: encoded.clone().into(),
                }),
            ]
        })
        .collect();
    if operations.is_empty() {
        return Ok(());
    }
    let patch = Patch::<()>::Json(JsonPatch(operations));
    let options = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    call("patch MutatingWebhookConfiguration", name, configurations.patch(name, &options, &patch)).await?;
    info!(configuration = name, "the API server trusts the webhook's authorities");
    Ok(())
}

async fn call<T>(
    operation: &'static str,
    name: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, CertificateError> {
    match timeout(CALL_DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(CertificateError::Api { operation, name: name.to_owned(), source: Box::new(source) }),
        Err(_) => Err(CertificateError::Deadline { operation, name: name.to_owned() }),
    }
}
