use clap::{CommandFactory, Parser};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    settings: Settings,
}

fn flags(arguments: &[&str]) -> Settings {
    Command::try_parse_from([&["larder"], arguments].concat()).unwrap_or_else(|e| panic!("{e}")).settings
}

fn resolve(arguments: &[&str], file: &str) -> Config {
    let file = parse_file(Path::new("c.yaml"), file).unwrap_or_else(|e| panic!("{e}"));
    Config::resolve(flags(arguments), file, &Surroundings::default()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_defaults_are_the_contracts() {
    let config = check("").unwrap();
    assert_eq!(config.registry_listen.to_string(), "127.0.0.1:5000");
    assert_eq!(config.artifact_listen.to_string(), "127.0.0.1:9790");
    assert_eq!(config.admin_listen.to_string(), "127.0.0.1:9440");
    assert_eq!((config.concurrency, config.artifact_retention_records), (16, 2));
    assert_eq!(config.artifact_retention_ttl.get().as_secs(), 60);
    assert!(config.local_repositories());
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!(check("# only a comment\n---\n").unwrap(), config);
}

#[test]
fn every_flag_has_its_variable_and_its_key() {
    let command = Command::command();
    let schema = schema();
    let mut seen = 0;
    for argument in command.get_arguments().filter(|a| a.get_id() != "help") {
        let flag = argument.get_long().unwrap();
        let variable = format!("LARDER_{}", flag.replace('-', "_").to_uppercase());
        assert_eq!(argument.get_env().and_then(|e| e.to_str()), Some(variable.as_str()));
        assert!(argument.get_help().is_some(), "{flag}");
        let mut parts = flag.split('-');
        let first = parts.next().unwrap().to_owned();
        let key = parts.fold(first, |key, part| key + &part[..1].to_uppercase() + &part[1..]);
        let known = schema["properties"].get(&key).is_some();
        assert_eq!(known, flag != "config", "{key}");
        seen += 1;
    }
    assert_eq!(seen, 31);
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["properties"]["upstreams"].is_object());
}

#[test]
fn a_flag_goes_before_the_file_and_that_before_the_default() {
    let file = "registryListen: 0.0.0.0:5001\nadminListen: ':9441'\nconcurrency: 4\ninsecureRegistry: [a:80, b]\nkubernetes: true\n";
    let config = resolve(&["--registry-listen", "[::1]:0", "--kubernetes=false", "--insecure-registry", "c"], file);
    assert_eq!(config.registry_listen.to_string(), "[::1]:0");
    assert_eq!(config.admin_listen.to_string(), "[::]:9441");
    assert_eq!(config.artifact_listen.to_string(), "127.0.0.1:9790");
    assert_eq!((config.concurrency, config.kubernetes), (4, false));
    assert_eq!(config.insecure_registries, ["c".parse().unwrap()]);
    assert!(resolve(&["--kubernetes"], "").kubernetes);
    assert_eq!(resolve(&["--kubernetes"], "").watch_kinds, Kind::ALL);
    let charts = resolve(&["--kubernetes", "--watch-kind", "hc,ks"], "").watch_kinds;
    assert_eq!(charts, [Kind::HelmRepository, Kind::HelmChart, Kind::Kustomization]);
}

#[test]
fn repeatable_flags_add_up() {
    let config = resolve(
        &[
            "--upstream",
            "docker.io=https://registry-1.docker.io",
            "--upstream",
            "ghcr.io=https://ghcr.io",
            "--mirror-listen",
            "127.0.0.1:5001=docker.io",
            "--egress-allow",
            "169.254.0.0/16",
            "--egress-deny",
            "10.0.0.0/8",
            "--egress-deny",
            "fd00::/8",
            "--token-realms",
            "ghcr.io",
        ],
        "upstreams:\n- host: ghcr.io\n  mode: shared\n- host: quay.io\n  tagTTL: 5m\n  tags: [{pattern: '^v', ttl: 24h}]\n",
    );
    let hosts: Vec<_> = config.upstreams.iter().map(|u| u.host.to_string()).collect();
    assert_eq!(hosts, ["quay.io", "docker.io", "ghcr.io"]);
    assert_eq!(config.upstreams[2].mode, UpstreamMode::Public, "the flag's takes the place of the file's");
    assert_eq!(config.egress_deny.len(), 2);
    assert!(!config.local_repositories());
}

#[test]
fn feature_gates_are_named_as_fluxs() {
    let gate = Feature::ObjectLevelWorkloadIdentity;
    assert!(!check("").unwrap().is_on(gate));
    assert!(resolve(&["--feature-gates", "ObjectLevelWorkloadIdentity=true"], "").is_on(gate));
    assert!(check("featureGates: [ObjectLevelWorkloadIdentity=true]\n").unwrap().is_on(gate));
    let off = ["--feature-gates", "ObjectLevelWorkloadIdentity=true,ObjectLevelWorkloadIdentity=false"];
    assert!(!resolve(&off, "").is_on(gate));
    for (text, says) in [
        ("Frobnicate=true", "is no feature gate here; there is ObjectLevelWorkloadIdentity"),
        ("ObjectLevelWorkloadIdentity", "write NAME=true or NAME=false"),
        ("ObjectLevelWorkloadIdentity=yes", "is true or false, not \"yes\""),
    ] {
        let error = text.parse::<FeatureGate>().unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_file_may_say_all_of_it() {
    let text = "kubernetes: true\nwatchLabelSelector: a=b\nupstreams: [{host: ghcr.io}]\nmirrorListen: [':1=ghcr.io']\n\
        store: {maxBytes: 10GiB, headroomBytes: 1000}\ntagTtl: 5s\nnegativeTtl: 5s\n\
        registry: {tls: {cert: a, key: b, clientCA: c}, htpasswd: h, token: t, localRepositories: true, \
        access: [{match: '*', read: [a], write: []}]}\n";
    let config = check(text).unwrap();
    assert_eq!((config.kubernetes, config.watch_label_selector.as_deref()), (true, Some("a=b")));
    assert_eq!(config.store_max_bytes, Some(ByteSize(10 << 30)));
    assert!(config.local_repositories());
}

#[test]
fn tells_what_is_wrong_where_and_what_was_meant() {
    let table = [
        ("data: /d\nregistryListn: x\n", "f:2: unknown key \"registryListn\"; did you mean \"registryListen\"?"),
        ("store:\n  maxByte: 1\n", "f:2: unknown key \"maxByte\"; did you mean \"maxBytes\"?"),
        (
            "store:\n  frobnicate: 1\n",
            "f:2: unknown key \"frobnicate\"; known here: maxBytes, headroomBytes, scrubBytesPerSecond",
        ),
        (
            "objects: a\nkubernetes: true\n",
            "f: objects and kubernetes exclude each other: the objects come from one of the two",
        ),
        ("watchKind: [OCIRepository]\nobjects: a\n", "f: watchKind is of effect only with kubernetes"),
        (
            "externalArtifacts: true\n",
            "f: externalArtifacts needs objects or kubernetes, for where the sources come from",
        ),
        (
            "externalArtifacts: true\nkubernetes: true\neventsAddr: http://h\n",
            "f: eventsAddr and externalArtifacts exclude each other: events are about objects that Larder writes",
        ),
        (
            "externalArtifacts: true\nkubernetes: true\nwatchKind: [Kustomization]\n",
            "f: watchKind: with externalArtifacts Kustomizations stay Flux's; name kinds of sources only",
        ),
        (
            "kubernetes: true\nwatchKind: [Bucket]\n",
            "f:2: \"Bucket\" is none of OCIRepository (ocirepo), GitRepository (gitrepo), HelmRepository (helmrepo), HelmChart (hc), Kustomization (ks)",
        ),
        (
            "mirrorListen: [':1=ghcr.io']\n",
            "f: mirrorListen: ghcr.io is no upstream; add it with upstream or upstreams",
        ),
        (
            "registry: {access: [{match: 'x/*', read: [anonymous], write: ['*']}]}\n",
            "f: registry: access: the rule for x/* names users, but there are none: set htpasswd or token, or write anonymous, which is everybody",
        ),
        ("upstreams: [{host: a.b}, {host: A.b}]\n", "f: upstreams: a.b is there twice"),
        (
            "upstreams: [{host: a.b, url: 'https://u:p@a.b'}]\n",
            "f: upstreams: upstream a.b: its url is not http://HOST[:PORT] or https://HOST[:PORT]",
        ),
        (
            "upstreams: [{host: a.b, mode: shared}]\n",
            "f: upstreams: upstream a.b: mode shared needs credentials: name a Docker configuration file that has them",
        ),
        (
            "upstreams: [{host: docker.io}, {host: index.docker.io}]\n",
            "f: upstreams: index.docker.io is another name for docker.io, which is there already",
        ),
        (
            "upstreams: [{host: a.b, listen: '127.0.0.1:5000'}]\n",
            "f: upstreams: a.b: listen: 127.0.0.1:5000 is the address of registryListen already; give each listener its own",
        ),
        (
            "upstreams: [{host: a.b}]\nmirrorListen: [':9440=a.b']\n",
            "f: mirrorListen for a.b: [::]:9440 is the address of adminListen already; give each listener its own",
        ),
        (
            "store: {maxBytes: 0}\n",
            "f: store: maxBytes: with 0 nothing is kept; leave it out for as much as the disk takes",
        ),
        (
            "upstream: [a.b=https://c/d]\n",
            "f: upstream: upstream a.b: its url is not http://HOST[:PORT] or https://HOST[:PORT]",
        ),
    ];
    for (text, message) in table {
        let file = Path::new("f");
        let error = parse_file(file, text)
            .and_then(|s| Config::resolve(Settings::default(), s, &Surroundings::default()).map_err(|e| e.of(file)))
            .unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    for (text, line, part) in [
        ("registry:\n  access:\n  - match: A\n", 3, "matches no repository"),
        ("registry:\n  access:\n  - match: a\n    read: ['b:c']\n", 4, "not a user's name"),
        ("data: /d\nadminListen: nowhere\n", 2, "nowhere"),
        ("data: /d\n\nconcurrency: 0\n", 3, "1 to 65535"),
        ("tagTtl: 5x\n", 1, "5x"),
        ("store: {maxBytes: 10XB}\n", 1, "10XB"),
        ("egressDeny: [10.0.0.0/33]\n", 1, "10.0.0.0/33"),
        ("data: /a\ndata: /b\n", 2, "data"),
        ("data: [\n", 1, ""),
    ] {
        let errors = check(text).unwrap_err();
        assert_eq!((errors.errors.len(), errors.errors[0].line), (1, Some(line)), "{text:?}: {errors}");
        assert!(errors.to_string().contains(part), "{text:?}: {errors}");
    }
}

#[test]
fn every_file_that_is_named_is_opened_and_each_that_is_of_no_use_is_told() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
    write("cert", &made.cert.pem());
    write("key", &made.signing_key.serialize_pem());
    write("docker", r#"{"auths":{"a.b":{"username":"u","password":"p"}}}"#);
    write("others", r#"{"auths":{"c.d":{"username":"u","password":"hunter2"}}}"#);
    write("token", "secret\n");
    write("users", "u:$2y$05$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu\n");
    write("bad", "u:hunter2\n");
    let yaml = |cert: &str, users: &str, docker: &str, token: &str| {
        format!(
            "data: {}\nadminTokenFile: {}\nregistry: {{tls: {{cert: {}, key: {}, clientCA: {}}}, htpasswd: {}, token: {}}}\n\
             upstreams: [{{host: a.b, mode: shared, credentials: {}, ca: {}}}]\n",
            at("data"),
            at(token),
            at(cert),
            at("key"),
            at(cert),
            at(users),
            at(token),
            at(docker),
            at(cert)
        )
    };
    check_with_files(&yaml("cert", "users", "docker", "token")).unwrap();
    for (yaml, expected) in [
        (
            yaml("none", "none", "none", "none"),
            &[
                "registry.htpasswd",
                "registry.token",
                "registry.tls.cert",
                "registry.tls.clientCA",
                "a.b: ca",
                "a.b: credentials",
                "adminTokenFile",
            ][..],
        ),
        (yaml("cert", "users", "others", "token"), &["have no entry under auths for a.b"]),
        (yaml("bad", "bad", "bad", "token"), &["line 1", "registry.tls: ", "a.b: ca: ", "a.b: credentials: "]),
    ] {
        let errors = check_with_files(&yaml).unwrap_err();
        assert_eq!(errors.errors.len(), expected.len(), "{errors}");
        for (error, part) in errors.errors.iter().zip(expected) {
            assert!(error.message.contains(part) && error.message.contains(&at("")), "{part}: {}", error.message);
            assert!(!error.message.contains("hunter2"), "{}", error.message);
        }
    }
    let errors = check_with_files("store: {headroomBytes: 8000000TB}").unwrap_err();
    assert!(errors.to_string().starts_with("store: headroomBytes: "), "{errors}");
}

#[test]
fn an_upstream_where_nothing_may_be_asked_is_told() {
    let at = |more: &str, host: &str, url: &str| {
        let url = if url.is_empty() { String::new() } else { format!(", url: '{url}'") };
        check(&format!("{more}\nupstreams: [{{host: '{host}'{url}}}]\n")).map(drop).map_err(|errors| errors.to_string())
    };
    let loopback = "cannot be asked: loopback is contacted only where";
    for (more, host, url, part) in [
        ("", "up.example", "http://localhost:23100", Some(loopback)),
        ("", "up.example", "https://x.localhost", Some(loopback)),
        ("", "localhost:5000", "", Some(loopback)),
        ("", "up.example", "http://169.254.169.254", Some("metadata")),
        ("egressDeny: [10.0.0.0/8]", "up.example", "http://10.1.2.3", Some("--egress-deny")),
        ("egressAllow: [127.0.0.0/8]", "up.example", "http://localhost:23100", None),
        ("", "up.example", "http://127.0.0.1:23100", None),
        ("", "localhost:5000", "http://127.0.0.1:23100", None),
    ] {
        match part {
            None => assert_eq!(at(more, host, url), Ok(())),
            Some(part) => {
                let said = at(more, host, url).unwrap_err();
                assert!(said.starts_with(&format!("upstreams: upstream {host}: ")) && said.contains(part), "{said}");
            }
        }
    }
}

#[test]
fn the_settings_mistakes_and_the_files_are_told_at_once() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name).display().to_string();
    std::fs::write(root.path().join("file"), "").unwrap();
    let text = format!(
        "data: {0}/data\nobjects: {1}\nkustomizeProgram: {0}\nadminTokenFile: {1}\nregistry: {{htpasswd: {1}}}\n\
         upstreams: [{{host: a.b}}, {{host: a.b}}]\nmirrorListen: [':1=ghcr.io']\n",
        at("file"),
        at("none")
    );
    let expected = [
        "upstreams: a.b is there twice".to_owned(),
        "mirrorListen: ghcr.io is no upstream".to_owned(),
        format!("data: {} is not a directory", at("file")),
        format!("objects: cannot read the objects in {}: No such file", at("none")),
        format!("cannot read registry.htpasswd from {}", at("none")),
        format!("adminTokenFile: cannot read {}", at("none")),
        format!("kustomizeProgram: {} cannot be executed", at("file")),
    ];
    let errors = check_with_files(&text).unwrap_err().errors;
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.message.starts_with(&expected), "{} for {expected}", error.message);
    }
    let errors = check_with_files("data: \"\"\nobjects: ''\n").unwrap_err().errors;
    let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
    let expected =
        ["data", "objects"].map(|name| format!("{name}: the path is empty: name a directory, or leave it out"));
    assert_eq!(messages, expected);
    let file = |name: &str| cannot_run(Path::new(name)).unwrap_or_default();
    assert!(file(&at("none")).starts_with("cannot find ") && file("/").ends_with("is not a file"));
    assert_eq!(file("/bin/sh"), "");
}

#[test]
fn a_program_is_named_from_the_working_directory() {
    let surroundings = Surroundings { directory: Some("/work".into()), ..Surroundings::default() };
    for (flag, file, program) in [
        (Some("venv/kubectl"), "", "/work/venv/kubectl"),
        (Some("/bin/kubectl"), "", "/bin/kubectl"),
        (None, "kustomizeProgram: venv/kubectl\n", "/work/venv/kubectl"),
    ] {
        let mut flags = flags(&flag.map_or(vec![], |flag| vec!["--kustomize-program", flag]));
        // Not what the environment of the tests names.
        flags.kustomize_program = flag.map(Into::into);
        let file = parse_file(Path::new("c.yaml"), file).unwrap();
        let config = Config::resolve(flags, file, &surroundings).unwrap();
        assert_eq!(config.kustomize_program.as_deref(), Some(Path::new(program)));
    }
}

#[test]
fn addresses_sizes_and_ranges_are_read_as_written() {
    for (text, shown) in [
        ("127.0.0.1:5000", Some("127.0.0.1:5000")),
        ("LOCALHOST:0", Some("localhost:0")),
        (":80", Some("[::]:80")),
        ("[::1]:80", Some("[::1]:80")),
        ("::1:80", None),
        ("127.0.0.1", None),
        ("h:65536", None),
        ("h:", None),
        ("a b:1", None),
        ("[x]:1", None),
        ("[::1]80", None),
        ("", None),
    ] {
        assert_eq!(text.parse::<Address>().ok().map(|a| a.to_string()).as_deref(), shown, "{text:?}");
    }
    for (text, bytes) in [
        ("0", Some(0)),
        ("10GiB", Some(10 << 30)),
        ("10Gi", Some(10 << 30)),
        ("1.5 Ki", Some(1536)),
        ("500MB", Some(500_000_000)),
        ("18446744073709551615", Some(u64::MAX)),
        ("18446744073709551616", None),
        ("17179869184Gi", None),
        ("-1", None),
        ("Gi", None),
        ("1.2.3", None),
        ("1 PB", None),
    ] {
        assert_eq!(text.parse::<ByteSize>().ok().map(|s| s.0), bytes, "{text:?}");
    }
    for (range, inside, outside) in [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "fd00::1"),
        ("0.0.0.0/0", "8.8.8.8", "::1"),
        ("169.254.169.254", "169.254.169.254", "169.254.169.253"),
        ("fd00::/8", "fdff::1", "fe80::1"),
        ("::/0", "::1", "1.1.1.1"),
    ] {
        let range: Cidr = range.parse().unwrap();
        assert!(range.contains(inside.parse().unwrap()), "{range} {inside}");
        assert!(!range.contains(outside.parse().unwrap()), "{range} {outside}");
    }
    for text in ["10.0.0.0/33", "::/129", "10.0.0/8", "x", "10.0.0.0/", "10.0.0.0/-1"] {
        assert!(text.parse::<Cidr>().is_err(), "{text}");
    }
}

#[test]
fn artifact_urls_begin_as_advertised() {
    for (advertise, listening, base) in [
        (None, "127.0.0.1:9790", "http://127.0.0.1:9790"),
        (None, "[::1]:9790", "http://[::1]:9790"),
        (None, "0.0.0.0:9790", "http://node-1:9790"),
        (None, "[::]:80", "http://node-1:80"),
        (Some("larder.flux-system.svc"), "0.0.0.0:9790", "http://larder.flux-system.svc"),
        (Some("larder:81"), "0.0.0.0:9790", "http://larder:81"),
        (Some("https://larder/base/"), "0.0.0.0:9790", "https://larder/base"),
    ] {
        let mut config = check("").unwrap();
        config.artifact_advertise = advertise.map(|a| a.parse().unwrap());
        assert_eq!(config.artifact_base(listening.parse().unwrap(), "node-1"), base);
    }
    for text in ["https://u:hunter2@h", "ftp://h", "a b", "http://", "https://h/?q=1"] {
        let error = text.parse::<Advertise>().unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn data_lies_where_the_user_may_write() {
    let user = |xdg: Option<&str>, home: Option<&str>| Surroundings {
        root: false,
        xdg_data_home: xdg.map(Into::into),
        home: home.map(Into::into),
        directory: None,
    };
    for (surroundings, data) in [
        (Surroundings { root: true, ..user(Some("/x"), Some("/h")) }, "/var/lib/larder"),
        (user(Some("/x"), Some("/h")), "/x/larder"),
        (user(Some("relative"), Some("/h")), "/h/.local/share/larder"),
        (user(None, Some("/h")), "/h/.local/share/larder"),
        (user(None, None), "/var/lib/larder"),
    ] {
        assert_eq!(surroundings.data(), Path::new(data));
    }
}
