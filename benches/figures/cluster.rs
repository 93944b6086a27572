//! The API server that `tests/lab` has started, by `kubectl`.

use std::{path::Path, process::Command, time::Duration};

use crate::{
    Failure,
    process::{lab_program, output, wait_for},
};

/// Runs `kubectl` with these words; what it prints.
pub fn kubectl(words: &[&str]) -> Result<String, Failure> {
    output(Command::new(lab_program("kubectl")?).args(words))
}

/// Puts the definitions of these sources into force, whatever was there before.
pub fn define(tree: &Path) -> Result<(), Failure> {
    let crds = tree.join("crds").display().to_string();
    kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", &crds])?;
    // kubectl wait fails at once on a definition that has no conditions yet
    wait_for("the definitions to be served", Duration::from_mins(1), || {
        kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "connectionpools.sluice.dev"]).ok()
    })?;
    Ok(())
}

/// Creates a namespace, with the service account that pods in it need.
pub fn create_namespace(name: &str) -> Result<(), Failure> {
    kubectl(&["create", "namespace", name])?;
    // its controller does not run here
    kubectl(&["create", "serviceaccount", "default", "--namespace", name])?;
    Ok(())
}
