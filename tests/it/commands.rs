//! What a command says that fails: what is wrong, and what to do.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use larder::store::Holder;

use crate::support::{
    certificates, eventually,
    fixtures::files,
    larder::{command, finish, run, run_json},
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

/// A program of this name, in a folder that is made for it.
fn program(folder: &Path, name: &str, text: &str, mode: u32) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(name), text).unwrap();
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_time_out_covers_a_credential_helper() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("bin");
    program(&folder, "docker-credential-hung", "#!/bin/sh\nexec sleep 60\n", 0o755);
    fs::create_dir(home.path().join(".docker")).unwrap();
    fs::write(home.path().join(".docker/config.json"), r#"{"credsStore": "hung"}"#).unwrap();
    let mut command = command(home.path());
    let search = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{search}", folder.display()));
    command.args(["list", "oci://127.0.0.1:1/x", "--timeout", "1500ms"]);
    let begun = Instant::now();
    let output = finish(command);
    let (told, took) = (String::from_utf8(output.stderr).unwrap(), begun.elapsed());
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("docker-credential-hung: no answer within 1.5 s"), "{told}");
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_password_in_a_reference_is_not_repeated() {
    let home = tempfile::tempdir().unwrap();
    let (with, out) = ("oci://user:hunter2@host.example/x:v1", home.path().join("out"));
    for arguments in [
        &["list", with][..],
        &["pull", with, "--output", out.to_str().unwrap()],
        &["push", with, "--path", "."],
        &["tag", with, "v2"],
        &["tag", "host.example/x:v1", with],
        &["mirror", "forget", with],
        &["mirror", "prefetch", with],
        &["mirror", "pin", with],
        &["mirror", "check", "--upstream", "host.example=https://host.example", "--image", with],
    ] {
        let output = run(home.path(), arguments);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
        assert!(told.contains("oci://[redacted]@host.example/x:v1"), "{arguments:?}: {told}");
        assert!(!told.contains("hunter2"), "{arguments:?}: {told}");
    }
}

#[test]
fn a_configuration_is_held_against_what_it_names() {
    let home = tempfile::tempdir().unwrap();
    let (file, none) = (home.path().join("larder.yaml"), home.path().join("none").display().to_string());
    let text = format!("objects: {none}\nadminTokenFile: {none}\nupstreams:\n- host: a.b\n- host: a.b\n");
    fs::write(&file, text).unwrap();
    let told = failure(home.path(), &["config", "check", file.to_str().unwrap()]);
    for part in ["upstreams: a.b is there twice", "objects: cannot read", "adminTokenFile: cannot read"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    fs::write(&file, "data: ''\n").unwrap();
    let told = failure(home.path(), &["config", "check", file.to_str().unwrap()]);
    assert!(told.contains("data: the path is empty"), "{told}");
    let data = home.path().join("data");
    fs::write(&file, format!("data: {}\nobjects: {}\n", data.display(), home.path().display())).unwrap();
    let told = run_json(home.path(), ["config", "check", file.to_str().unwrap(), "-o", "json"]);
    assert_eq!((&told["valid"], told["errors"].as_array().map(Vec::len)), (&true.into(), Some(0)));
}

#[test]
fn a_rendering_program_that_cannot_be_executed_is_told_at_the_start() {
    let home = tempfile::tempdir().unwrap();
    program(&home.path().join("venv"), "kubectl", "#!/bin/sh\n", 0o644);
    let mut command = serve(home.path());
    command.current_dir(home.path()).args(["--kustomize-program", "./venv/kubectl"]);
    let output = finish(command);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("venv/kubectl cannot be executed"), "{told}");
}

/// `larder serve` with free ports.
fn serve(home: &Path) -> Command {
    let mut command = command(home);
    command.arg("serve").arg("--data").arg(home.join("data"));
    for listener in ["--registry-listen", "--artifact-listen", "--admin-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    command
}

#[test]
fn a_daemon_whose_output_nobody_reads_serves_and_ends_in_order() {
    for format in ["text", "json"] {
        let home = tempfile::tempdir().unwrap();
        let mut command = serve(home.path());
        command.args(["--log-format", format]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        let admin = eventually("the admin listener", || {
            let holder = Holder::of(&home.path().join("data"));
            holder.and_then(|holder| holder.admin).ok_or_else(|| format!("{:?}", child.try_wait()))
        });
        eventually("a ready daemon", || {
            let answer = crate::support::http::send("GET", &format!("http://{admin}/readyz"), &[], b"");
            match answer.map(|answer| answer.status) {
                Ok(200) => Ok(()),
                other => Err(format!("{other:?}, {:?}", child.try_wait())),
            }
        });
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
        let ended: ExitStatus =
            eventually("the end", || child.try_wait().unwrap().ok_or_else(|| "it runs on".to_owned()));
        assert_eq!(ended.code(), Some(0), "{format}");
    }
}

#[test]
fn a_story_that_nobody_reads_to_its_end_is_told_all_the_same_and_a_full_disk_is_no_panic() {
    let home = tempfile::tempdir().unwrap();
    let mut command = command(home.path());
    let mut child = command.arg("quickstart").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    let ended: ExitStatus = eventually("the end", || child.try_wait().unwrap().ok_or_else(|| "it runs on".to_owned()));
    assert_eq!(ended.code(), Some(0));
    for (arguments, told) in [
        (&["quickstart"][..], "error: cannot write to stdout: No space left on device"),
        (&["config", "schema"], "error: cannot write to stdout: No space left on device"),
    ] {
        let full = || fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = self::command(home.path());
        let output = command.args(arguments).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.starts_with(told), "{arguments:?}: {said}");
        let mut command = self::command(home.path());
        let status = command.args(arguments).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{arguments:?}");
    }
}
