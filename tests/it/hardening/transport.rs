//! The R rows: what a registry, or the way to it, may do.

use serde_json::json;

use super::{
    upstream::{REPOSITORY, Upstream},
    world::{AUTHENTICATION, NAMESPACE, Outcome, PULL, Row, SECRET, World, fails, object, run_rows},
};
use crate::support::{
    certificates::{self, Ca},
    fixtures::{files, gzip, sha256, tar_of},
    larder::condition_of,
    registry::{Auth, Fault, Kind, Options, of},
};

const MANY: usize = usize::MAX;

fn manifests(seen: &crate::support::registry::Seen) -> bool {
    matches!(seen.kind, Kind::ManifestHead | Kind::ManifestGet)
}

/// New content, whose layer is large enough to be cut.
fn new_files() -> crate::support::fixtures::Files {
    let noise: String = (0..40_000_u64).map(|n| format!("{:x}\n", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    files(&[("new", "content"), ("noise", &noise)])
}

fn push(up: &Upstream) -> usize {
    up.push_files(&new_files());
    gzip(&tar_of(&new_files())).len()
}

#[test]
fn a_registry_that_fails_takes_nothing_away() {
    let world = World::start(&[]);
    let honeypot = world.honeypot.address.clone();
    let elsewhere = Upstream::start();
    let elsewhere_origin = elsewhere.origin().to_owned();
    elsewhere.add_blob(REPOSITORY, &gzip(&tar_of(&new_files())));
    let docker_config = |up: &Upstream| json!({ ".dockerconfigjson": json!({ "auths": { up.authority(): { "username": "user", "password": SECRET } } }).to_string() });
    let with_secret = |name: &str, auth: Auth| {
        let up = Upstream::start_with(Options { auth, ..Options::default() });
        world.apply_secret(name, "kubernetes.io/dockerconfigjson", &docker_config(&up));
        up
    };
    let secret = |name: &str| json!({ "secretRef": { "name": name } });
    let open = || Auth::Token { user: None, realm: None, expires_in: None };
    let known = || Auth::Token { user: Some(("user", SECRET)), realm: None, expires_in: None };

    let rows = vec![
        Row::new("r1-refused-gone", |up| {
            let gone = std::mem::replace(up, Upstream::start());
            gone.stop();
            fails(PULL, "net", "refused")
        }),
        Row::new("r2-silent", |up| {
            up.fault(|_| true, MANY, Fault::Hang);
            fails(PULL, "net", "")
        })
        .spec(json!({ "timeout": "2s" })),
        Row::new("r3-body-stalls", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), MANY, Fault::Stall { after: 1000 });
            fails(PULL, "net", "")
        })
        .spec(json!({ "timeout": "2s" })),
        Row::new("r4-reset-then-resumed", |up| {
            let size = push(up);
            up.fault(of(Kind::BlobGet), 1, Fault::Cut { after: size / 2, reset: false });
            Outcome::Succeeds(new_files())
        })
        .check(|up, _| {
            let gets = up.seen_of(Kind::BlobGet);
            let ranges: Vec<bool> = gets[gets.len() - 2..].iter().map(|get| get.header("range").is_some()).collect();
            assert_eq!(ranges, [false, true]);
        }),
        Row::new("r4-by-rst", |up| {
            let size = push(up);
            up.fault(of(Kind::BlobGet), 1, Fault::Cut { after: size / 2, reset: true });
            Outcome::Succeeds(new_files())
        }),
        Row::new("r6-errors-thrice-then-good", |up| {
            push(up);
            for status in [500, 502, 503] {
                up.fault(of(Kind::ManifestHead), 1, Fault::status(status));
            }
            up.fault(of(Kind::BlobGet), 3, Fault::status(504));
            Outcome::Succeeds(new_files())
        })
        .check(|up, _| {
            assert_eq!(up.count(Kind::ManifestHead), 4);
            assert_eq!(up.count(Kind::BlobGet), 1 + 4, "one for the first artifact");
        }),
        Row::new("r6-errors-for-good", |up| {
            up.fault(|_| true, MANY, Fault::status(503));
            fails(PULL, "net", "503")
        }),
        Row::new("r7-length-too-small", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), MANY, Fault::Header("Content-Length", Some("5".into())));
            fails(PULL, "size", "5")
        }),
        Row::new("r8-endless", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), MANY, Fault::Endless);
            fails(PULL, "size", "")
        }),
        Row::new("r9-no-length", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), 1, Fault::NoLength);
            Outcome::Succeeds(new_files())
        }),
        Row::new("r9-chunked", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), 1, Fault::Chunked);
            Outcome::Succeeds(new_files())
        }),
        Row::new("r10-wrong-bytes", |up| {
            let size = push(up);
            up.fault(of(Kind::BlobGet), MANY, Fault::Body(vec![0x1f; size]));
            fails(PULL, "digest", "sha256:")
        }),
        Row::new("r11-header-lies", |up| {
            push(up);
            let other = sha256(b"other");
            up.fault(of(Kind::ManifestGet), MANY, Fault::Header("Docker-Content-Digest", Some(other.clone())));
            fails(PULL, "digest", other)
        }),
        Row::new("r11-manifest-is-another", |up| {
            push(up);
            up.fault(of(Kind::ManifestGet), MANY, Fault::Body(b"{}".to_vec()));
            fails(PULL, "digest", sha256(b"{}"))
        }),
        Row::new("r11-tag-moves-between", |up| {
            let used = up.push_files(&new_files());
            let used = used.manifest.to_string();
            let headers = vec![
                ("Docker-Content-Digest", used),
                ("Content-Type", super::upstream::MANIFEST.to_owned()),
                ("Content-Length", "400".to_owned()),
            ];
            up.fault(of(Kind::ManifestHead), 1, Fault::Answer { status: 200, headers, body: String::new() });
            up.push_files(&files(&[("moved", "on")]));
            Outcome::Succeeds(new_files())
        }),
        Row::new("r12-realm-elsewhere", {
            let honeypot = honeypot.clone();
            move |up| {
                up.fault(
                    manifests,
                    MANY,
                    Fault::challenge(format!(r#"Bearer realm="http://{honeypot}/token",service="x""#)),
                );
                fails(AUTHENTICATION, "policy", honeypot.clone())
            }
        })
        .with(with_secret("r12", Auth::Basic("user", SECRET)))
        .spec(secret("r12")),
        Row::new("r12-realm-link-local", |up| {
            let realm = r#"Bearer realm="http://169.254.169.254/token",service="x""#;
            up.fault(manifests, MANY, Fault::challenge(realm));
            fails(AUTHENTICATION, "policy", "169.254.169.254")
        }),
        Row::new("r13-token-never-accepted", |up| {
            let challenge = format!(
                r#"Bearer realm="{}/token",service="scripted",scope="repository:{REPOSITORY}:pull""#,
                up.origin()
            );
            up.fault(manifests, MANY, Fault::challenge(challenge));
            fails(PULL, "auth", "401")
        })
        .with(with_secret("r13a", known()))
        .spec(secret("r13a"))
        .check(|up, _| {
            let tokens = up.count(Kind::Token) - 1;
            assert!(tokens <= 2, "{tokens} token requests");
        }),
        Row::new("r13-token-body-endless", |up| {
            up.revoke_tokens();
            up.fault(of(Kind::Token), MANY, Fault::Endless);
            fails(AUTHENTICATION, "size", "")
        })
        .with(Upstream::start_with(Options { auth: open(), ..Options::default() })),
        Row::new("r13-no-token-field", |up| {
            up.revoke_tokens();
            up.fault(of(Kind::Token), MANY, Fault::Answer { status: 200, headers: vec![], body: "{}".into() });
            fails(AUTHENTICATION, "proto", "")
        })
        .with(with_secret("r13c", known()))
        .spec(secret("r13c")),
        Row::new("r13-token-service-refuses", |up| {
            up.revoke_tokens();
            up.fault(of(Kind::Token), MANY, Fault::status(401));
            fails(AUTHENTICATION, "auth", "401")
        })
        .with(with_secret("r13d", known()))
        .spec(secret("r13d")),
        Row::new("r14-403", |up| {
            up.fault(|_| true, MANY, Fault::status(403));
            fails(PULL, "auth", "403")
        }),
        Row::new("r14-404", |up| {
            up.fault(manifests, MANY, Fault::status(404));
            fails(PULL, "notfound", "404")
        }),
        Row::new("r14-login-page", |up| {
            let headers = vec![("Content-Type", "text/html; charset=utf-8".to_owned())];
            let body = "<html><body>Sign in</body></html>".to_owned();
            up.fault(|_| true, MANY, Fault::Answer { status: 200, headers, body });
            fails(PULL, "manifest", "web page")
        }),
        Row::new("r15-429-for-an-hour", |up| {
            up.fault(|_| true, MANY, Fault::too_many("3600"));
            fails(PULL, "rate", "")
        })
        .check(|up, world| {
            let asked = up.requests();
            for _ in 0..3 {
                world.larder.reconcile("OCIRepository", NAMESPACE, "r15-429-for-an-hour");
            }
            assert!(up.requests() <= asked + 1, "{} probes inside the window", up.requests() - asked);
        }),
        Row::new("r15-429-with-junk", |up| {
            up.fault(|_| true, MANY, Fault::too_many("soon"));
            fails(PULL, "rate", "")
        }),
        Row::new("r16-redirected", {
            let location = format!("{elsewhere_origin}/v2/{REPOSITORY}/blobs/{}", sha256(&gzip(&tar_of(&new_files()))));
            move |up| {
                push(up);
                up.fault(of(Kind::BlobGet), 1, Fault::redirect(location.clone()));
                Outcome::Succeeds(new_files())
            }
        })
        .with(with_secret("r16", Auth::Basic("user", SECRET)))
        .spec(secret("r16")),
        Row::new("r16-eleven-hops", |up| {
            push(up);
            let back = format!("{}/v2/{REPOSITORY}/blobs/{}", up.origin(), sha256(b"x"));
            up.fault(of(Kind::BlobGet), MANY, Fault::redirect(back));
            fails(PULL, "proto", "redirect")
        }),
        Row::new("r17-redirected-to-metadata", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), MANY, Fault::redirect("http://169.254.169.254/latest/meta-data"));
            fails(PULL, "policy", "169.254.169.254")
        }),
        Row::new("r17-redirected-to-what-is-denied", {
            let location = format!("http://{honeypot}/blob");
            move |up| {
                push(up);
                up.fault(of(Kind::BlobGet), MANY, Fault::redirect(location.clone()));
                fails(PULL, "policy", "127.0.0.3")
            }
        }),
        Row::new("r17-redirected-to-other-schemes", |up| {
            push(up);
            up.fault(of(Kind::BlobGet), MANY, Fault::redirect("file:///etc/passwd"));
            fails(PULL, "proto", "")
        }),
    ];
    run_rows(&world, rows);
    assert_eq!(elsewhere.count(Kind::BlobGet), 1);
    assert!(elsewhere.seen().iter().all(|seen| seen.header("authorization").is_none()), "R16: {:?}", elsewhere.seen());
    world.finish();
}

#[test]
fn tls_that_fails_never_becomes_cleartext() {
    let world = World::start(&[]);
    let (ca, stranger) = (Ca::new(), Ca::new());
    let tls = |identity: &certificates::Identity| Options {
        tls: Some(certificates::server(identity, None)),
        ..Options::default()
    };
    let expired = tls(&ca.issue_expired(&["127.0.0.1"]));
    let misnamed = tls(&ca.issue(&["127.0.0.9", "registry.example"]));
    let unknown = tls(&stranger.issue(&["127.0.0.1"]));
    world.apply_secret("ca", "Opaque", &json!({ "ca.crt": ca.pem() }));
    let spec = json!({ "insecure": false, "certSecretRef": { "name": "ca" } });
    let turned = |name: &'static str, options: Options, says: &'static str| {
        let after = std::sync::Mutex::new(Some(options));
        Row::new(name, move |up| {
            let old = std::mem::replace(up, Upstream::start());
            *up = Upstream::start_at(&old.stop(), after.lock().unwrap().take().unwrap());
            push(up);
            fails(PULL, "net", says)
        })
        .with(Upstream::start_with(tls(&ca.issue(&["127.0.0.1"]))))
        .spec(spec.clone())
        .check(|up, _| assert_eq!(up.requests(), 0, "a request got through"))
    };
    let rows = vec![
        turned("r19-expired-gone", expired, "xpired"),
        turned("r19-other-name-gone", misnamed, "not valid for"),
        turned("r19-unknown-ca-gone", unknown, "invalid peer certificate"),
        turned("r19-plain-http-gone", Options::default(), ""),
    ];
    run_rows(&world, rows);
    // By name, loopback is nothing that an object may reach, with or without TLS.
    let plain = Upstream::start();
    plain.push_files(&files(&[("a", "b")]));
    let url = plain.url().replace("127.0.0.1", "localhost");
    for (name, insecure) in [("r19-localhost", false), ("r19-localhost-insecure", true)] {
        world.apply(&object("OCIRepository", NAMESPACE, name, &url, &json!({ "insecure": insecure })));
        let object = world.larder.wait_failed("OCIRepository", NAMESPACE, name, "FetchFailed", "URLInvalid");
        assert_eq!(condition_of(&object, "Stalled")["status"], "True");
    }
    assert_eq!(plain.connections(), 0);
    world.finish();
}
