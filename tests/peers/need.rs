//! Which peers a test needs, and what becomes of it without them.

use std::path::PathBuf;

use crate::support::announce;

/// Ends the test here, loudly, unless every named program is installed.
macro_rules! need {
    ($($program:expr),+ $(,)?) => {
        if !$crate::need::all_of(&[$($program),+]) {
            return;
        }
    };
}
pub(crate) use need;

/// Whether every named program is installed. If not, says so; panics where `LARDER_REQUIRE_PEERS=1`.
pub fn all_of(programs: &[&str]) -> bool {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| find(program).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    let why = format!("not installed: {}", missing.join(", "));
    assert!(std::env::var_os("LARDER_REQUIRE_PEERS").is_none_or(|value| value != "1"), "{why}");
    announce(&format!("SKIPPED: {}: {why}", std::thread::current().name().unwrap_or("a test")));
    false
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The program that builds a `kustomization.yaml`: what `LARDER_KUSTOMIZE_PROGRAM` names, else kubectl or kustomize.
pub fn kustomize() -> Option<PathBuf> {
    let named = std::env::var_os("LARDER_KUSTOMIZE_PROGRAM").map(PathBuf::from).filter(|file| file.is_file());
    named.or_else(|| find("kustomize")).or_else(|| find("kubectl"))
}
