//! PURE: what a pool may ask of the pods that it selects.
//!
//! Whoever may create a ConnectionPool need not be allowed to create pods, and is not to get there by way of one: its image runs in
//! pods of others, and its environment reaches their applications. Classes are the cluster administrator's, and what one of them
//! says may be said by a pool that names it; what else pools may say is an argument of the operator.

use crate::{
    api::{ConnectionPoolClass, ConnectionPoolSpec, Mode},
    decide::effective::PoolRefusal,
};

/// What pools may say beyond what every pool may: lists of the operator's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolAllowList {
    /// Images of the pooler, by repository; one that ends with `/` stands for all beneath it.
    pub images: Vec<String>,
    /// Environment variables of applications, by name.
    pub variables: Vec<String>,
}

impl PoolAllowList {
    /// Whether a pool may say what it says. `own_image` is the operator's image of the pooler: another tag of it may always be named.
    ///
    /// # Errors
    /// [`PoolRefusal`] says what is not allowed, and who can allow it.
    pub fn check(
        &self,
        pool: &ConnectionPoolSpec,
        class: Option<&ConnectionPoolClass>,
        own_image: &str,
    ) -> Result<(), PoolRefusal> {
        let class = class.map(|class| &class.spec);
        let bound = |scaling: Option<&crate::api::ScalingSpec>| scaling.and_then(|scaling| scaling.max_allowed);
        let bounds = bound(pool.scaling.as_ref()).or(bound(class.and_then(|class| class.scaling.as_ref())));
        if pool.mode == Mode::Apply && bounds.is_none() {
            return Err(PoolRefusal {
                reason: "MaxAllowedMissing",
                message: "neither the pool nor its class says how many server connections all its pods together may open: set \
                          spec.scaling.maxAllowed to what the database can spare for it"
                    .to_owned(),
            });
        }
        let image = pool.pgbouncer.as_ref().and_then(|pgbouncer| pgbouncer.image.as_deref());
        let of_class = class.and_then(|class| class.pgbouncer.as_ref()?.image.as_deref());
        if let Some(image) = image.filter(|image| of_class != Some(image) && !self.has_image(image, own_image)) {
            return Err(PoolRefusal {
                reason: "ImageNotAllowed",
                message: format!(
                    "spec.pgbouncer.image {image:?} is of another repository than {:?}, the operator's own; whoever installed Sluice can \
                     allow it for all pools (pools.images of the chart) or in a class",
                    repository(own_image)
                ),
            });
        }
        let variables = pool.client.as_ref().and_then(|client| client.env.as_deref()).unwrap_or_default();
        let of_class = class.and_then(|class| class.client.as_ref()?.env.as_deref()).unwrap_or_default();
        let is_allowed = |name: &str| {
            names_a_database(name)
                || self.variables.iter().any(|allowed| allowed == name)
                || of_class.iter().any(|variable| variable.name == name)
        };
        if let Some(variable) = variables.iter().find(|variable| !is_allowed(&variable.name)) {
            return Err(PoolRefusal {
                reason: "EnvironmentNotAllowed",
                message: format!(
                    "spec.client.env may set what says where a database is (PGHOST, DATABASE_URL, ORDERS_DB_PORT), and {:?} does not \
                     look so; whoever installed Sluice can allow it for all pools (pools.environment of the chart) or in a class",
                    variable.name
                ),
            });
        }
        Ok(())
    }

    fn has_image(&self, image: &str, own_image: &str) -> bool {
        let wanted = repository(image);
        wanted == repository(own_image)
            || self.images.iter().any(|allowed| match allowed.strip_suffix('/') {
                Some(beneath) => wanted.strip_prefix(beneath).is_some_and(|rest| rest.starts_with('/')),
                None => wanted == repository(allowed),
            })
    }
}

/// An image without tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(repository, _)| repository);
    match image.rsplit_once(':') {
        // the port of a registry is followed by a path
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

/// What libpq reads and takes no file or program from.
const OF_LIBPQ: [&str; 19] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGSSLMODE",
    "PGSSLNEGOTIATION",
    "PGSSLROOTCERT",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGREQUIREAUTH",
    "PGAPPNAME",
    "PGCONNECT_TIMEOUT",
    "PGTARGETSESSIONATTRS",
    "PGOPTIONS",
    "PGTZ",
    "PGCLIENTENCODING",
    "PGLOADBALANCEHOSTS",
];
/// Words of a name that say that it is about a database.
const DATABASE: [&str; 14] = [
    "DB",
    "DATABASE",
    "PG",
    "POSTGRES",
    "POSTGRESQL",
    "PGBOUNCER",
    "SQL",
    "SQLALCHEMY",
    "JDBC",
    "R2DBC",
    "DATASOURCE",
    "DSN",
    "CONNECTIONSTRING",
    "CONNECTIONSTRINGS",
];

/// Whether an environment variable is one by which applications find their database. Nothing that a shell, a language's runtime or
/// the loader reads is.
fn names_a_database(name: &str) -> bool {
    let mut words = name.split('_').map(str::to_ascii_uppercase);
    OF_LIBPQ.contains(&name) || (!name.starts_with('_') && words.any(|word| DATABASE.contains(&word.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "ghcr.io/cloudnative-pg/pgbouncer:1.26.1";

    fn pool(extra: &str) -> ConnectionPoolSpec {
        let text = format!(
            "workload: {{selector: {{matchLabels: {{app: shop}}}}}}\n\
             upstream: {{host: pg, database: shop, credentialsRef: {{name: shop-db}}}}\n{extra}"
        );
        serde_yaml::from_str(&text).expect("the fixture is a pool")
    }

    fn class(spec: &str) -> ConnectionPoolClass {
        let text =
            format!("apiVersion: sluice.dev/v1alpha1\nkind: ConnectionPoolClass\nmetadata: {{name: c}}\nspec: {spec}");
        serde_yaml::from_str(&text).expect("the fixture is a class")
    }

    fn reason(allowed: &PoolAllowList, extra: &str, class: Option<&ConnectionPoolClass>) -> Option<&'static str> {
        allowed.check(&pool(extra), class, OWN).err().map(|refusal| refusal.reason)
    }

    #[test]
    fn a_pool_that_changes_sizes_has_a_bound_of_its_own_or_of_its_class() {
        let none = PoolAllowList::default();
        assert_eq!(reason(&none, "mode: Apply", None), Some("MaxAllowedMissing"));
        assert_eq!(reason(&none, "scaling: {minAllowed: 3}", Some(&class("{}"))), Some("MaxAllowedMissing"));
        assert_eq!(reason(&none, "scaling: {maxAllowed: 30}", None), None);
        assert_eq!(reason(&none, "mode: Apply", Some(&class("{scaling: {maxAllowed: 30}}"))), None);
        assert_eq!(
            reason(&none, "mode: Recommend\nscaling: {fixedLimitPerPod: 5}", None),
            None,
            "it puts nothing into force"
        );
    }

    #[test]
    fn an_image_is_of_the_operators_own_repository_or_allowed_by_whoever_installed_it() {
        let image = |image: &str| format!("scaling: {{maxAllowed: 9}}\npgbouncer: {{image: '{image}'}}");
        let none = PoolAllowList::default();
        let digest = format!("ghcr.io/cloudnative-pg/pgbouncer@sha256:{}", "0".repeat(64));
        for own in [OWN, "ghcr.io/cloudnative-pg/pgbouncer:1.25.2", "ghcr.io/cloudnative-pg/pgbouncer", &digest] {
            assert_eq!(reason(&none, &image(own), None), None, "{own}");
        }
        let others = [
            "evil/pgbouncer:1.26.1",
            "pgbouncer",
            "ghcr.io/cloudnative-pg/pgbouncer-evil:1",
            "ghcr.io:443/cloudnative-pg/pgbouncer",
        ];
        for other in others {
            assert_eq!(reason(&none, &image(other), None), Some("ImageNotAllowed"), "{other}");
        }
        let some = PoolAllowList {
            images: vec!["mirror:5000/db/".to_owned(), "quay.io/x/pgbouncer".to_owned()],
            ..none.clone()
        };
        for other in ["mirror:5000/db/pgbouncer:1", "mirror:5000/db/a/b", "quay.io/x/pgbouncer:7"] {
            assert_eq!(reason(&some, &image(other), None), None, "{other}");
        }
        for other in ["mirror:5000/dbx/pgbouncer:1", "quay.io/x/pgbouncer2:7"] {
            assert_eq!(reason(&some, &image(other), None), Some("ImageNotAllowed"), "{other}");
        }
        let class = class("{pgbouncer: {image: 'quay.io/special:1'}}");
        assert_eq!(reason(&none, &image("quay.io/special:1"), Some(&class)), None, "its class says so");
        assert_eq!(reason(&none, &image("quay.io/special:2"), Some(&class)), Some("ImageNotAllowed"));
    }

    #[test]
    fn the_environment_says_where_a_database_is_and_nothing_that_runs_code() {
        let env = |name: &str| format!("scaling: {{maxAllowed: 9}}\nclient: {{env: [{{name: {name}, template: x}}]}}");
        let none = PoolAllowList::default();
        for name in [
            "PGHOST",
            "PGSSLMODE",
            "DATABASE_URL",
            "DB_HOST",
            "ORDERS_DB_PORT",
            "SPRING_DATASOURCE_URL",
            "POSTGRES_PRISMA_URL",
            "ConnectionStrings__Default",
            "SQLALCHEMY_DATABASE_URI",
            "jdbc_url",
            "DSN",
        ] {
            assert_eq!(reason(&none, &env(name), None), None, "{name}");
        }
        for name in [
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "PATH",
            "HOME",
            "BASH_ENV",
            "ENV",
            "PYTHONSTARTUP",
            "PYTHONPATH",
            "NODE_OPTIONS",
            "JAVA_TOOL_OPTIONS",
            "_JAVA_OPTIONS",
            "RUBYOPT",
            "PERL5OPT",
            "PERL5DB",
            "GIT_SSH_COMMAND",
            "HTTP_PROXY",
            "PGSYSCONFDIR",
            "PGSERVICEFILE",
            "PGPASSFILE",
            "PGSSLKEY",
            "PSQLRC",
            "PSQL_PAGER",
            "SSL_CERT_FILE",
        ] {
            assert_eq!(reason(&none, &env(name), None), Some("EnvironmentNotAllowed"), "{name}");
        }
        let some = PoolAllowList { variables: vec!["UPSTREAM_HOST".to_owned()], ..none.clone() };
        assert_eq!(reason(&some, &env("UPSTREAM_HOST"), None), None);
        let class = class("{client: {env: [{name: UPSTREAM_HOST, template: '{host}'}]}}");
        assert_eq!(reason(&none, &env("UPSTREAM_HOST"), Some(&class)), None, "its class says so");
        assert_eq!(
            reason(&none, "scaling: {maxAllowed: 9}", Some(&class)),
            None,
            "what a class says is the administrator's"
        );
    }
}
