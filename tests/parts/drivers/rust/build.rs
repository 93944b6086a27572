//! The versions of the drivers, as the lock file has them.

fn main() {
    let lock = std::fs::read_to_string("Cargo.lock").expect("the lock file");
    for name in ["sqlx", "tokio-postgres"] {
        let version = lock
            .split("[[package]]")
            .find(|package| package.contains(&format!("name = \"{name}\"\n")))
            .and_then(|package| package.split("version = \"").nth(1)?.split('"').next())
            .expect("a version");
        println!("cargo:rustc-env={}_VERSION={version}", name.to_uppercase().replace('-', "_"));
    }
    println!("cargo:rerun-if-changed=Cargo.lock");
}
