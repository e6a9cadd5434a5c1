use proptest::prelude::*;

use super::*;

const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[test]
fn parses_what_commands_are_given() {
    let digest = format!("@{D}");
    for (text, want) in [
        ("nginx", "docker.io/library/nginx".to_string()),
        ("nginx:1.27", "docker.io/library/nginx:1.27".to_string()),
        ("nginx:5000", "docker.io/library/nginx:5000".to_string()),
        ("user/app", "docker.io/user/app".to_string()),
        (
            "oci://your-dockerhub-username/my-app-config:v1.0.0",
            "docker.io/your-dockerhub-username/my-app-config:v1.0.0".to_string(),
        ),
        ("docker.io/nginx", "docker.io/library/nginx".to_string()),
        ("index.docker.io/user/app:x", "docker.io/user/app:x".to_string()),
        ("Docker.IO:443/user/app", "docker.io/user/app".to_string()),
        ("GHCR.io/org/app", "ghcr.io/org/app".to_string()),
        ("ghcr.io/org/app:v1", "ghcr.io/org/app:v1".to_string()),
        ("localhost/app", "localhost/app".to_string()),
        ("LOCALHOST/app", "localhost/app".to_string()),
        ("localhost:5000/a/b/c:t", "localhost:5000/a/b/c:t".to_string()),
        ("host:5000/app", "host:5000/app".to_string()),
        ("127.0.0.1:5000/app:t", "127.0.0.1:5000/app:t".to_string()),
        ("[::1]:5000/app:t", "[::1]:5000/app:t".to_string()),
        ("[0:0:0:0:0:0:0:1]/app", "[::1]/app".to_string()),
        ("oci://ghcr.io/a__b/c-----d/e.f_g", "ghcr.io/a__b/c-----d/e.f_g".to_string()),
        (&format!("ghcr.io/org/app{digest}"), format!("ghcr.io/org/app{digest}")),
        (&format!("ghcr.io/org/app:v1{digest}"), format!("ghcr.io/org/app{digest}")),
        (&format!("app{digest}"), format!("docker.io/library/app{digest}")),
    ] {
        let reference = Reference::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(reference.to_string(), want, "{text}");
        assert_eq!(Reference::parse(&want), Ok(reference), "{text}");
    }
}

#[test]
fn parses_the_urls_of_objects() {
    for (url, want) in [
        ("oci://ghcr.io/stefanprodan/manifests/podinfo", "ghcr.io/stefanprodan/manifests/podinfo"),
        ("oci://ghcr.io/stefanprodan/charts/", "ghcr.io/stefanprodan/charts"),
        ("oci://ghcr.io/stefanprodan/charts//", "ghcr.io/stefanprodan/charts"),
        ("oci://your-dockerhub-username/my-app-config", "docker.io/your-dockerhub-username/my-app-config"),
        ("oci://podinfo", "docker.io/library/podinfo"),
        ("oci://127.0.0.1:5000/podinfo", "127.0.0.1:5000/podinfo"),
        ("oci://[::1]:5000/podinfo", "[::1]:5000/podinfo"),
    ] {
        let reference = Reference::parse_object_url(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        assert_eq!(reference.to_string(), want, "{url}");
        assert_eq!(reference.object_url(), format!("oci://{want}"));
        assert_eq!(Reference::parse_object_url(&reference.object_url()), Ok(reference), "{url}");
    }
}

#[test]
fn refuses_the_urls_that_objects_must_not_have() {
    let long_host = format!("oci://{}.io/app", "a".repeat(4096));
    let host257 = format!("oci://{}.io/app", vec!["a".repeat(50); 5].join("."));
    let with_digest = format!("oci://ghcr.io/app@{D}");
    for (url, want) in [
        ("", "URL must be in format 'oci://<domain>/<org>/<repo>'"),
        ("http://ghcr.io/app", "URL must be in format"),
        ("OCI://ghcr.io/app", "URL must be in format"),
        ("ghcr.io/app", "URL must be in format"),
        ("oci://", "the reference is empty"),
        ("oci:///", "the reference is empty"),
        ("oci:///app", "\"\" is not a host name: it is empty"),
        ("oci://ghcr.io/app:v1", "URL must not contain a tag; remove ':v1'"),
        ("oci://ghcr.io/app:v1/", "URL must not contain a tag; remove ':v1'"),
        ("oci://app:v1", "URL must not contain a tag; remove ':v1'"),
        (&with_digest, "URL must not contain a digest; remove '@sha256:44136fa"),
        ("oci://ghcr.io/app?x=1", "a reference has no '?' part"),
        ("oci://ghcr.io/app#v1", "a reference has no '#' part"),
        ("oci://ghcr.io/app v1", "at byte 11"),
        ("oci://ghcr.io/app\n", "at byte 11"),
        ("oci://ghcr.io/äpp", "at byte 8"),
        ("oci://ghcr.io", "\"ghcr.io\" names a registry but no repository"),
        ("oci://ghcr.io/", "\"ghcr.io\" names a registry but no repository"),
        ("oci://localhost:5000", "\"localhost:5000\" names a registry but no repository"),
        ("oci://[::1]:5000", "\"[::1]:5000\" names a registry but no repository"),
        ("oci://ghcr.io/App", "it must be in lower case"),
        ("oci://ghcr.io/a//b", "begins and ends with a letter or digit"),
        ("oci://ghcr.io/../b", "begins and ends with a letter or digit"),
        ("oci://ghcr.io/a..b", "between letters and digits"),
        ("oci://ghcr.io/a___b", "between letters and digits"),
        ("oci://ghcr.io/a%2fb", "it may hold lower-case letters"),
        ("oci://ghcr.io:/app", "the port of host \"ghcr.io\""),
        ("oci://ghcr.io:0/app", "the port of host \"ghcr.io\""),
        ("oci://ghcr.io:65536/app", "the port of host \"ghcr.io\""),
        ("oci://ghcr.io:+80/app", "the port of host \"ghcr.io\""),
        ("oci://ghcr.io:80:80/app", "the port of host \"ghcr.io\""),
        ("oci://gh_cr.io/app", "it may hold letters"),
        ("oci://-ghcr.io/app", "begins or ends with '-'"),
        ("oci://ghcr.io./app", "a part between dots is empty"),
        ("oci://[::1/app", "the bracket is not closed"),
        ("oci://[::1%25eth0]/app", "without a zone"),
        ("oci://[::1]x/app", "only a port may follow"),
        ("oci://[127.0.0.1]/app", "in brackets stands an IPv6 address"),
        (&long_host, "at most 1024 make sense"),
        (&host257, "it is longer than 253 characters"),
    ] {
        let error = Reference::parse_object_url(url).expect_err(url);
        assert!(error.to_string().contains(want), "{url}: {error}");
        assert_eq!(error.class(), Class::Spec);
        assert!(error.to_string().len() < 400, "{error}");
    }
}

#[test]
fn refuses_addresses_in_odd_spelling() {
    for host in [
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "127.1",
        "127.0.1",
        "0x7f000001",
        "0x7F.0.0.1",
        "127.0.0.01",
        "1.2.3.4.5",
        "256.0.0.1",
        "127.0.0.0x1",
        "0x",
        "foo.1",
        "169.254.43518",
        "00.0.0.0",
    ] {
        for url in [format!("oci://{host}/app"), format!("oci://{host}/a/b")] {
            let error = Reference::parse_object_url(&url).expect_err(&url);
            assert!(matches!(error, ReferenceError::OddAddress(_)), "{url}: {error}");
            assert!(Reference::parse(&url).is_err(), "{url}");
        }
        assert!(host.parse::<Registry>().is_err(), "{host}");
        assert!(format!("{host}:5000").parse::<Registry>().is_err(), "{host}");
    }
    assert_eq!(Reference::parse("docker.io/123/app").unwrap().repository.as_str(), "123/app");
    assert_eq!(Reference::parse("1password/app").unwrap().repository.as_str(), "1password/app");
}

#[test]
fn never_repeats_userinfo() {
    for url in [
        "oci://user:hunter2@ghcr.io/app",
        "oci://user:hunter2@ghcr.io:5000/app:v1",
        "oci://hunter2@ghcr.io",
        "oci://user:hunter2@",
        "oci://user:a@hunter2@ghcr.io/app",
        "oci://user:a@hunter2:x",
        "oci://user:hunter2@ghcr.io/app?token=hunter2",
        "oci://ghcr.io/app?token=hunter2",
        "oci://ghcr.io/app#hunter2",
        "oci://user:hunter2@ghcr.io/app@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "oci://user:a@sha256:hunter2@ghcr.io/app",
        "https://user:hunter2@ghcr.io/app",
    ] {
        for error in [Reference::parse_object_url(url).expect_err(url), Reference::parse(url).expect_err(url)] {
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
    assert!("user:hunter2@ghcr.io".parse::<Registry>().is_err_and(|e| e == ReferenceError::UserInfo));
}

#[test]
fn refuses_bad_tags_and_digests() {
    let long = "a".repeat(129);
    for tag in ["", ".a", "-a", "a b", "a/b", "a@b", "ä", "a+b", &long] {
        assert!(tag.parse::<Tag>().is_err(), "{tag}");
    }
    for tag in ["a", "_", "A.b-c_d", "1", &"a".repeat(128)] {
        assert_eq!(tag.parse::<Tag>().unwrap().as_str(), tag);
    }
    for text in
        ["ghcr.io/app:", "ghcr.io/app:a+b", "ghcr.io/app@sha256:44", "ghcr.io/app@md5:aa", "ghcr.io/app:.x@sha256:1"]
    {
        assert!(Reference::parse(text).is_err(), "{text}");
    }
    assert!(Reference::parse(&format!("ghcr.io/app:+@{D}")).is_err());
    assert!("a".repeat(256).parse::<Repository>().is_err());
    assert!("a".repeat(255).parse::<Repository>().is_ok());
    assert_eq!(D.parse::<Selector>().unwrap(), Selector::Digest(D.parse().unwrap()));
    assert_eq!("v1".parse::<Selector>().unwrap(), Selector::Tag("v1".parse().unwrap()));
}

#[test]
fn docker_hub_has_one_name_and_another_host_for_its_api() {
    for (text, host, authority) in [
        ("docker.io", "docker.io", "registry-1.docker.io"),
        ("index.docker.io", "docker.io", "registry-1.docker.io"),
        ("registry-1.docker.io:443", "docker.io", "registry-1.docker.io"),
        ("docker.io:5000", "docker.io", "docker.io:5000"),
        ("ghcr.io", "ghcr.io", "ghcr.io"),
        ("Ghcr.IO:8443", "ghcr.io", "ghcr.io:8443"),
        ("[::1]:80", "[::1]", "[::1]:80"),
    ] {
        let registry: Registry = text.parse().unwrap();
        assert_eq!((registry.host(), registry.api_authority().as_str()), (host, authority), "{text}");
        assert_eq!(registry.to_string().parse(), Ok(registry));
    }
}

#[test]
fn tells_addresses_and_loopback() {
    for (text, ip, loopback) in [
        ("127.0.0.1:5000", Some("127.0.0.1"), true),
        ("127.255.0.1", Some("127.255.0.1"), true),
        ("[::1]", Some("::1"), true),
        ("[::ffff:127.0.0.1]", Some("::ffff:127.0.0.1"), true),
        ("10.0.0.1", Some("10.0.0.1"), false),
        ("[::]", Some("::"), false),
        ("0.0.0.0", Some("0.0.0.0"), false),
        ("localhost", None, false),
        ("ghcr.io", None, false),
    ] {
        let registry: Registry = text.parse().unwrap();
        assert_eq!(registry.ip_literal(), ip.map(|ip| ip.parse().unwrap()), "{text}");
        assert_eq!(registry.is_loopback_literal(), loopback, "{text}");
    }
}

#[test]
fn joins_a_chart_to_its_repository() {
    for (url, chart, want) in [
        ("oci://ghcr.io/org/charts", "podinfo", Some("ghcr.io/org/charts/podinfo")),
        ("oci://ghcr.io/org/charts/", "podinfo", Some("ghcr.io/org/charts/podinfo")),
        ("oci://127.0.0.1:5000", "podinfo", Some("127.0.0.1:5000/podinfo")),
        ("oci://127.0.0.1:5000/", "podinfo", Some("127.0.0.1:5000/podinfo")),
        ("oci://org", "podinfo", Some("docker.io/org/podinfo")),
        ("oci://2130706433", "podinfo", None),
        ("oci://ghcr.io/charts:v1", "podinfo", None),
        ("oci://ghcr.io/charts", "pod:v1", None),
        ("oci://ghcr.io/charts", "../podinfo", None),
        ("oci://ghcr.io/charts", "", None),
        ("oci://", "podinfo", None),
        ("https://ghcr.io/charts", "podinfo", None),
    ] {
        let got = Reference::parse_chart_url(url, chart).ok().map(|r| r.to_string());
        assert_eq!(got.as_deref(), want, "{url} {chart}");
    }
    let charts: Repository = "org/charts".parse().unwrap();
    assert_eq!(charts.join("podinfo").unwrap().as_str(), "org/charts/podinfo");
    assert!(charts.join("..").is_err());
}

#[test]
fn is_text_in_json() {
    let reference = Reference::parse("ghcr.io/org/app:v1").unwrap();
    let json = serde_json::to_string(&reference).unwrap();
    assert_eq!(json, "\"ghcr.io/org/app:v1\"");
    assert_eq!(serde_json::from_str::<Reference>(&json).unwrap(), reference);
    assert!(serde_json::from_str::<Tag>("\"a b\"").is_err());
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_itself(
        host in "([a-z][a-z0-9]{0,8}\\.){1,2}[a-z]{2,4}|localhost|127\\.0\\.0\\.1|\\[::[1-9a-f]{1,4}\\]",
        port in proptest::option::of(1u16..),
        repository in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,3}",
        tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
    ) {
        let port = port.map_or(String::new(), |p| format!(":{p}"));
        let tag = tag.map_or(String::new(), |t| format!(":{t}"));
        let text = format!("{host}{port}/{repository}{tag}");
        let reference = Reference::parse(&text).unwrap();
        prop_assert_eq!(reference.to_string(), text);
    }

    #[test]
    fn no_text_makes_the_parsers_panic_and_what_they_take_is_canonical(text in "(oci://)?[a-z0-9A-Z:@/.\\[\\]_?# é-]{0,40}") {
        for reference in [Reference::parse(&text), Reference::parse_object_url(&text)].into_iter().flatten() {
            prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
        }
    }
}
