//! docs/drivers.md names the versions that the lock files pin.

use std::{fs, path::Path};

fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between two texts, behind a third.
fn between<'a>(file: &'a str, behind: &str, from: &str, to: &str) -> &'a str {
    let (_, rest) = file.split_once(behind).unwrap_or_else(|| panic!("no {behind}"));
    rest.split_once(from)
        .and_then(|(_, rest)| rest.split_once(to))
        .unwrap_or_else(|| panic!("no version of {behind}"))
        .0
}

#[test]
fn the_guide_to_drivers_names_the_versions_that_their_lock_files_pin() {
    let guide = text("docs/drivers.md");
    let file = |name: &str| text(&format!("tests/parts/drivers/{name}"));
    let (go, java, node) = (file("go/go.mod"), file("java/pom.xml"), file("node/package-lock.json"));
    // a last line for what ends at the end of the file
    let python = file("python/requirements.txt") + "\n";
    let rust = file("rust/Cargo.lock");
    for (driver, version) in [
        ("asyncpg", between(&python, "asyncpg", "==", "\n")),
        ("django", between(&python, "Django", "==", "\n")),
        ("node-postgres", between(&node, "\"node_modules/pg\"", "\"version\": \"", "\"")),
        ("pgjdbc", between(&java, "<artifactId>postgresql</artifactId>", "<version>", "</version>")),
        ("pgx", between(&go, "require github.com/jackc/pgx/v5", "v", "\n")),
        ("postgres.js", between(&node, "\"node_modules/postgres\"", "\"version\": \"", "\"")),
        ("psycopg", between(&python, "psycopg", "==", "\n")),
        ("sqlalchemy", between(&python, "SQLAlchemy", "==", "\n")),
        ("sqlx", between(&rust, "name = \"sqlx\"", "version = \"", "\"")),
        ("tokio-postgres", between(&rust, "name = \"tokio-postgres\"", "version = \"", "\"")),
    ] {
        let row = format!("| `{driver}` | {version} |");
        assert!(
            guide.contains(&row),
            "docs/drivers.md has no row {row}: run tests/parts/drivers with SLUICE_UPDATE_DOCS=1"
        );
    }
    // a lock file with the address of a machine's own registry serves nobody else
    assert!(!node.contains("\"resolved\""), "npm install --package-lock-only --omit-lockfile-registry-resolved");
}
