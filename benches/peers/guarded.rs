//! Serving to whom it is allowed: local repositories with users and rules, and what a mirror holds for those who were
//! granted it. nginx serves the same files to everybody: it is asked nothing, so it is the harder peer.

use std::path::Path;

use base64::Engine as _;
use serde_json::json;

use crate::{
    Options,
    http::Client,
    programs::{Daemon, Nginx},
    serve::{Content, SIZES, wrk, wrk_with},
    table::{Ratio, Table, Target, Unit},
};

const UPSTREAM: &str = "upstream.example";

pub fn run(options: &Options, table: &mut Table, folder: &Path, content: &Content) {
    let mirror = mirror(folder, content);
    let (users, authorization) = users(folder, content);
    let Some(nginx) = Nginx::start(&folder.join("nginx-guarded"), &content.root) else { return };
    for (size, name, connections, wanted) in SIZES {
        let place = &content.places[&size.to_string()];
        let local = format!("http://{}/v2/bench/blobs/{}", users.registry, place.digest);
        let mirrored = format!("http://{}/v2/{UPSTREAM}/bench/blobs/{}", mirror.registry, place.digest);
        let other = format!("http://{}/{size}", nginx.host);
        let (mut locals, mut mirroreds, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.rounds(5) {
            locals.push(wrk_with(&local, connections, Some(&authorization)));
            others.push(wrk(&other, connections));
            mirroreds.push(wrk(&mirrored, connections));
        }
        for (what, figures) in [("blob, users on,", &locals), ("mirrored blob, granted,", &mirroreds)] {
            let what = format!("GET {what} {name}, {connections} connections");
            let target = Target::RatioAtLeast(wanted);
            table.compare(&what, Unit::PerSecond, figures, ("nginx", &others), Ratio::LarderByPeer, target);
        }
    }
}

/// A daemon that mirrors the content's repository and holds all that is asked for below, granted for five minutes: its
/// upstream has ended when this returns.
fn mirror(folder: &Path, content: &Content) -> Daemon {
    let origin = Daemon::start(&content.data, None);
    let config = folder.join("mirror.yaml");
    let upstreams = json!([{ "host": UPSTREAM, "url": format!("http://{}", origin.registry) }]);
    std::fs::write(&config, json!({ "upstreams": upstreams }).to_string()).expect("a configuration");
    let data = folder.join("mirror");
    std::fs::create_dir(&data).expect("folder");
    let daemon = Daemon::start_with(&data, None, Some(&config));
    let mut client = Client::new(&daemon.registry);
    for (size, ..) in SIZES {
        let digest = &content.places[&size.to_string()].digest;
        client.get(&format!("/v2/{UPSTREAM}/bench/manifests/{size}"));
        assert_eq!(client.get(&format!("/v2/{UPSTREAM}/bench/blobs/{digest}")).len(), size);
    }
    daemon
}

/// A daemon whose repositories have users and rules, and the header line of one who may read.
fn users(folder: &Path, content: &Content) -> (Daemon, String) {
    let password = "correct horse battery staple";
    let htpasswd = folder.join("htpasswd");
    // As costly as `htpasswd -B` makes it: that is paid once a minute, not once a request.
    std::fs::write(&htpasswd, format!("alice:{}\n", bcrypt::hash(password, 5).expect("a hash"))).expect("a file");
    let access = json!([
        { "match": "team/*", "read": ["*"], "write": ["alice"] },
        { "match": "public/*", "read": ["anonymous"] },
        { "match": "bench", "read": ["alice"] },
    ]);
    let config = folder.join("users.yaml");
    let settings = json!({ "registry": { "htpasswd": &htpasswd, "access": access } });
    std::fs::write(&config, settings.to_string()).expect("a configuration");
    let daemon = Daemon::start_with(&content.data, None, Some(&config));
    let login = base64::engine::general_purpose::STANDARD.encode(format!("alice:{password}"));
    let login = format!("Basic {login}");
    let mut client = Client::new(&daemon.registry);
    for place in content.places.values() {
        let path = format!("/v2/bench/blobs/{}", place.digest);
        assert_eq!(client.send("HEAD", &path, &[], &[]).status, 401, "whoever does not log in reads nothing");
        assert_eq!(client.send("HEAD", &path, &[("Authorization", &login)], &[]).status, 200);
    }
    (daemon, format!("Authorization: {login}"))
}
