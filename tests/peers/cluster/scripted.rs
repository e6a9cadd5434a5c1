//! The scripted API server of the other tests answers as a real one does.

use crate::{
    cluster::env::{Cluster, need_cluster},
    support::api_script,
};

#[test]
fn what_the_scripted_api_server_is_held_to_is_what_a_real_one_answers() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    let mut played = api_script::play(&|method, path, headers, body| {
        cluster.send_as("admin", method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    });
    if std::env::var_os("LARDER_RECORD").is_some_and(|value| value == "1") {
        let lines: Vec<String> = played.iter().map(|line| serde_json::to_string(line).expect("JSON")).collect();
        std::fs::write(api_script::RECORD, format!("[\n{}\n]\n", lines.join(",\n"))).expect("the record");
    }
    let (mut recorded, version) = (api_script::recorded(), cluster.version());
    // Over an etcd before 3.4.25 Kubernetes cannot list by watching, and at times not watch without a version to begin from.
    let unable = |line: &api_script::Line| {
        let (label, _, body) = line;
        matches!(label.as_str(), "a list by watching" | "watch from now") && body[0][0] == "ERROR"
    };
    let left_out: Vec<String> = played.iter().filter(|line| unable(line)).map(|line| line.0.clone()).collect();
    for lines in [&mut played, &mut recorded] {
        lines.retain(|(label, ..)| !left_out.contains(label));
    }
    let differ = api_script::differences((&version, &played), ("the record", &recorded));
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
