//! The processes of a pod, seen from the node that it runs on.

use std::fs;

use rustix::process::Pid;

/// Those of the pod with this uid that run this program, by the control group that the kubelet put them into.
pub fn of_pod(uid: &str, program: &str) -> Vec<Pid> {
    let group = format!("/pod{uid}/");
    let folders = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let of_pod = folders.filter(|folder| {
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        read("comm").trim() == program && read("cgroup").contains(&group)
    });
    of_pod.filter_map(|folder| Pid::from_raw(folder.file_name().to_str()?.parse().ok()?)).collect()
}
