//! What a command says that fails: what is wrong, and what to do.

use std::{fs, path::Path, process::Stdio, time::Duration};

use crate::support::{
    certificates, eventually,
    fixtures::files,
    larder::{command, finish, run},
    registry::{Fault, Kind, Options, of},
    upstream::{REPOSITORY, Upstream},
};

/// The command's message; it failed.
fn failure(home: &Path, arguments: &[&str]) -> String {
    let output = run(home, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn url(up: &Upstream) -> String {
    format!("oci://{}/{REPOSITORY}", up.authority())
}

#[test]
fn a_wrong_scheme_or_ca_is_told_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let own = certificates::self_signed(&["127.0.0.1"]);
    let tls = || Options { tls: Some(certificates::server(&own, None)), ..Options::default() };
    let (secure, plain) = (Upstream::start_with(tls()), Upstream::start());
    let (secure_url, plain_url) = (url(&secure), url(&plain));
    let no_pem = home.path().join("no.pem");
    fs::write(&no_pem, "no PEM").unwrap();
    let other = home.path().join("other.pem");
    fs::write(&other, &certificates::self_signed(&["127.0.0.1"]).certificate).unwrap();
    let (no_pem, other) = (no_pem.to_str().unwrap(), other.to_str().unwrap());
    for (arguments, hint) in [
        (vec!["list", &secure_url, "--plain-http"], "if TLS answers there, leave out --plain-http"),
        (vec!["list", &plain_url, "--ca", other], "if the registry speaks plain http, give --plain-http"),
        (vec!["list", &plain_url, "--ca", no_pem], "--ca takes a file of certificates in PEM"),
        (vec!["list", &secure_url, "--ca", other], "if it is the right one, give exactly it with --ca FILE"),
    ] {
        let told = failure(home.path(), &arguments);
        assert!(told.trim_end().ends_with(hint), "{arguments:?}: {told}");
        assert!(!told.contains("--creds"), "{arguments:?}: {told}");
    }
}

#[test]
fn a_docker_config_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    let up = Upstream::start();
    let url = url(&up);
    let config = home.path().join(".docker").join("config.json");
    fs::create_dir(config.parent().unwrap()).unwrap();
    for (text, what) in [
        (
            "{\"auths\": {\"hunter2",
            "the Docker config is not valid: unexpected end at line 1, column 19; mend the file",
        ),
        (r#"{"credsStore": "of-none"}"#, "docker-credential-of-none: cannot be run: No such file or directory"),
    ] {
        fs::write(&config, text).unwrap();
        let told = failure(home.path(), &["list", &url, "--plain-http"]);
        let begin = format!("error: cannot take credentials from {}: ", config.display());
        assert!(told.starts_with(&begin) && told.contains(what), "{told}");
        assert!(told.contains("give --creds or --creds-stdin"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    assert_eq!(up.requests(), 0);
}

#[test]
fn a_pull_leaves_a_file_that_comes_meanwhile() {
    let home = tempfile::tempdir().unwrap();
    let up = Upstream::start();
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    up.fault(of(Kind::BlobGet), 9, Fault::Delay(Duration::from_secs(3)));
    let (output, mine) = (home.path().join("out"), home.path().join("out/mine"));
    fs::create_dir(&output).unwrap();
    let mut pull = command(home.path());
    pull.args(["pull", &up.url(), "--plain-http", "--output"]).arg(&output);
    let pull = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the pull to ask for the blob", || match up.count(Kind::BlobGet) {
        0 => Err("not asked".into()),
        _ => Ok(()),
    });
    fs::write(&mine, "precious").unwrap();
    let ended = pull.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{told}");
    assert!(told.contains("is not empty and was not made by a pull"), "{told}");
    assert_eq!(fs::read_to_string(&mine).unwrap(), "precious");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_pull_says_before_it_asks_anybody_where_it_cannot_put_what_comes() {
    let home = tempfile::tempdir().unwrap();
    let up = Upstream::start();
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    let here = home.path().join("here");
    fs::create_dir_all(here.join("below")).unwrap();
    std::os::unix::fs::symlink(&here, home.path().join("link")).unwrap();
    let link = format!("{}/", home.path().join("link").display());
    for (output, force, said) in [
        (".", true, "is the working directory, or holds it"),
        ("../../here", false, "is the working directory, or holds it"),
        ("..", false, "not end in `..`"),
        (&link, true, "is a symbolic link; name the directory itself"),
    ] {
        let mut pull = command(home.path());
        pull.current_dir(here.join("below")).args(["pull", &up.url(), "--plain-http", "--output", output]);
        pull.args(force.then_some("--force"));
        let ended = finish(pull);
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{output}: {told}");
        assert!(told.contains(said), "{output}: {told}");
    }
    assert_eq!(up.requests(), 0);
    assert!(here.join("below").is_dir());
}
