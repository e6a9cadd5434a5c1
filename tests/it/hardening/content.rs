//! The M and L rows: manifests and layers that are not what they should be.

use std::io::Write as _;

use larder::digest::Digest;
use serde_json::{Value, json};

use super::{
    upstream::{CONFIG, INDEX, LAYER, MANIFEST, REPOSITORY, Upstream, descriptor, manifest},
    world::{LAYER_OPERATION, NAMESPACE, Outcome, PULL, Row, World, fails, run_rows},
};
use crate::support::{
    fixtures::{Files, files, gzip, gzip_members, tar_of, zstd},
    larder::{Larder, condition_of, fetch_artifact, text, write_objects},
    registry::{Fault, Kind, of},
};

#[test]
fn a_chart_that_says_what_no_url_may_hold_of_itself_is_none() {
    let up = Upstream::start();
    let rows = [
        ("query", "?x=#", "1.0.0", Some("is not a chart's")),
        ("space", "w w", "1.0.0", Some("is not a chart's")),
        ("line", "w\nx", "1.0.0", Some("is not a chart's")),
        ("letter", "\u{e4}", "1.0.0", Some("is not a chart's")),
        ("slash", "a/b", "1.0.0", Some("is not a chart's")),
        ("hidden", "..", "1.0.0", Some("is not a chart's")),
        ("version", "app", "1.0.0?x", Some("is not a semantic version")),
        ("word", "app", "latest", Some("is not a semantic version")),
        ("good", "App_1.x-y", "v1.2.3-rc.1+b.4", None),
    ];
    let root = tempfile::tempdir().expect("temporary folder");
    let of = |kind: &str, name: &str, spec: Value| {
        json!({ "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": kind,
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec })
    };
    let url = format!("oci://{}/charts", up.authority());
    let mut objects = vec![of("HelmRepository", "charts", json!({ "type": "oci", "url": url, "insecure": true }))];
    for (n, (row, name, version, _)) in rows.iter().enumerate() {
        let about = json!({ "apiVersion": "v2", "name": name, "version": version }).to_string();
        let bytes = gzip(&tar_of(&files(&[("app/Chart.yaml", &about)])));
        let layer = up.add_blob("charts/app", &bytes);
        up.add_blob("charts/app", b"{}");
        let chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
        let document = manifest(&json!([descriptor(chart, &layer, bytes.len())]));
        let tag = format!("0.0.{n}");
        up.add_manifest("charts/app", Some(&tag), MANIFEST, document.to_string().as_bytes());
        let source = json!({ "kind": "HelmRepository", "name": "charts" });
        let spec = json!({ "chart": "app", "version": tag, "interval": "10m", "sourceRef": source });
        objects.push(of("HelmChart", row, spec));
    }
    write_objects(root.path(), "charts.yaml", &objects);
    let larder = Larder::reconciling(root.path(), &[]);
    for (row, name, version, says) in rows {
        let Some(says) = says else {
            let ready = larder.wait_ready("HelmChart", NAMESPACE, row);
            let path = format!("helmchart/{NAMESPACE}/{row}/{name}-{version}-");
            assert!(text(&ready, "/status/artifact/path").starts_with(&path), "{ready}");
            fetch_artifact(&ready);
            continue;
        };
        let failed = larder.wait_failed("HelmChart", NAMESPACE, row, "BuildFailed", "ChartPullError");
        assert!(text(condition_of(&failed, "BuildFailed"), "/message").contains(says), "{row}: {failed}");
        assert!(failed["status"]["artifact"].is_null(), "{row}: {failed}");
    }
}

fn new_files() -> Files {
    files(&[("new", "content")])
}

/// A layer that would be good.
fn layer(up: &Upstream) -> Value {
    let bytes = gzip(&tar_of(&new_files()));
    descriptor(LAYER, &up.add_blob(REPOSITORY, &bytes), bytes.len())
}

/// A manifest of one layer whose `field` is `value`.
fn with_field(name: &'static str, field: &'static str, value: Value) -> Row {
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    Row::new(name, move |up| {
        let mut layer = layer(up);
        layer[field] = value.clone();
        up.push_manifest(&manifest(&json!([layer])));
        asked.store(up.count(Kind::BlobGet), std::sync::atomic::Ordering::SeqCst);
        fails(PULL, "manifest", "")
    })
    .check(move |up, _| {
        let before = counted.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(up.count(Kind::BlobGet), before, "no request for a blob");
        assert!(up.seen().iter().all(|seen| !seen.path.contains("passwd")), "{:?}", up.seen());
    })
}

fn document(
    name: &'static str,
    class: &'static str,
    says: &'static str,
    make: impl Fn(&Upstream) -> (Value, &'static str) + Send + Sync + 'static,
) -> Row {
    Row::new(name, move |up| {
        let (document, media_type) = make(up);
        up.push_document(&document, media_type);
        fails(PULL, class, says)
    })
}

fn index(children: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children })
}

#[test]
fn a_manifest_that_cannot_be_used_changes_nothing() {
    let world = World::start(&[]);
    let honeypot = format!("http://{}/blob", world.honeypot.address);
    let hex = "a".repeat(64);
    let rows = vec![
        Row::new("m1-over-four-mebibytes", |up| {
            let mut document = manifest(&json!([layer(up)]));
            document["annotations"] = json!({ "x": "y".repeat(4 << 20) });
            up.push_manifest(&document);
            fails(PULL, "size", "4194304")
        }),
        Row::new("m1-over-four-mebibytes-unstated", |up| {
            up.push_manifest(&manifest(&json!([layer(up)])));
            up.fault(of(Kind::ManifestGet), usize::MAX, Fault::Endless);
            fails(PULL, "size", "4194304")
        }),
        document("m3-manifests-and-layers", "manifest", "", |up| {
            let mut document = manifest(&json!([layer(up)]));
            document["manifests"] = json!([]);
            (document, MANIFEST)
        }),
        document("m3-index-with-layers", "manifest", "", |up| {
            let mut document = index(&[descriptor(MANIFEST, &Digest::sha256(b"x"), 1)]);
            document["layers"] = json!([layer(up)]);
            (document, INDEX)
        }),
        document("m3-other-content-type", "manifest", "", |up| (manifest(&json!([layer(up)])), INDEX)),
        document("m3-schema-1", "manifest", "schema", |_| {
            let document = json!({ "schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [] });
            (document, "application/vnd.docker.distribution.manifest.v1+prettyjws")
        }),
        Row::new("m4-child-without-platform", |up| {
            // The only child of an index need not say for whom it is, where it is configuration.
            let child = up.push_manifest(&manifest(&json!([layer(up)])));
            let size = manifest(&json!([layer(up)])).to_string().len();
            up.push_document(&index(&[descriptor(MANIFEST, &child, size)]), INDEX);
            Outcome::Succeeds(new_files())
        })
        .keeps_manifests(),
        document("m4-index-too-deep", "limit", "nest deeper", |up| {
            let mut text = manifest(&json!([layer(up)])).to_string();
            let mut media_type = MANIFEST;
            for _ in 0..3 {
                let digest = up.add_manifest(REPOSITORY, None, media_type, text.as_bytes());
                let mut child = descriptor(media_type, &digest, text.len());
                child["platform"] = json!({ "os": "linux", "architecture": "amd64" });
                text = index(&[child]).to_string();
                media_type = INDEX;
            }
            (serde_json::from_str(&text).unwrap(), INDEX)
        })
        .keeps_manifests(),
        document("m4-ten-thousand-children", "limit", "1000", |_| {
            let child = descriptor(MANIFEST, &Digest::sha256(b"x"), 1);
            (index(&vec![child; 10_000]), INDEX)
        }),
        with_field("m5-a-path", "digest", json!("sha256:../../etc/passwd")),
        with_field("m5-short", "digest", json!(format!("sha256:{}", &hex[1..]))),
        with_field("m5-upper-case", "digest", json!(format!("sha256:{}", "A".repeat(64)))),
        with_field("m5-md5", "digest", json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
        with_field("m5-empty", "digest", json!("")),
        with_field("m5-none", "digest", json!(null)),
        with_field("m6-negative", "size", json!(-1)),
        with_field("m6-two-to-the-63", "size", json!(1_u64 << 63)),
        with_field("m6-beyond-64-bits", "size", json!(1e30)),
        with_field("m6-a-half", "size", json!(1.5)),
        with_field("m6-a-text", "size", json!("12")),
        Row::new("m6-zero-but-not-empty", |up| {
            let mut layer = layer(up);
            layer["size"] = json!(0);
            up.push_manifest(&manifest(&json!([layer])));
            fails(PULL, "manifest", "")
        }),
        Row::new("m7-urls", {
            let honeypot = honeypot.clone();
            move |up| {
                let mut layer = layer(up);
                layer["urls"] = json!([honeypot]);
                up.push_manifest(&manifest(&json!([layer])));
                Outcome::Succeeds(new_files())
            }
        }),
        Row::new("m7-non-distributable", move |up| {
            let mut layer = layer(up);
            layer["urls"] = json!([honeypot]);
            layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
            up.push_manifest(&manifest(&json!([layer])));
            Outcome::Succeeds(new_files())
        }),
        Row::new("m-no-layers", |up| {
            up.push_manifest(&manifest(&json!([])));
            fails(LAYER_OPERATION, "layer", "no layers")
        }),
        document("m-config-missing-digest", "manifest", "", |up| {
            let mut document = manifest(&json!([layer(up)]));
            document["config"] = json!({ "mediaType": CONFIG });
            (document, MANIFEST)
        }),
    ];
    run_rows(&world, rows);
    world.finish();
}

fn layer_row(name: &'static str, class: &'static str, says: &'static str, bytes: Vec<u8>) -> Row {
    Row::new(name, move |up| {
        up.push_layer(&bytes);
        fails(LAYER_OPERATION, class, says)
    })
    .keeps_layer()
}

#[test]
fn a_layer_that_cannot_be_used_changes_nothing() {
    let world = World::start(&[]);
    // 10 GiB of zeros in 10 MiB: one member of 64 MiB, 160 times.
    let bomb = gzip(&vec![0; 64 << 20]).repeat(160);
    // A frame whose window is 2^31 bytes, with one empty raw block.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 0x01, 0x00, 0x00].to_vec();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(4096, 7);
    let mut cut = gzip(&tar_of(&new_files()));
    cut.truncate(cut.len() - 12);
    let mut zstd_bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..40 {
        zstd_bomb.write_all(&vec![0; 8 << 20]).unwrap();
    }
    let zstd_bomb = zstd_bomb.finish().unwrap();
    let rows = vec![
        layer_row("l1-gzip-bomb", "limit", "268435456", bomb),
        layer_row("l1-zstd-bomb", "limit", "268435456", zstd_bomb),
        Row::new("l4-same-tar-other-bytes", |up| {
            // The time in gzip's header: the same tar to its readers, another digest.
            let good = gzip(&tar_of(&new_files()));
            let mut other = good.clone();
            other[4] = 1;
            up.push_layer(&good);
            up.fault(of(Kind::BlobGet), usize::MAX, Fault::Body(other));
            fails(PULL, "digest", "")
        }),
        Row::new("l4-bytes-after-the-end", |up| {
            let good = gzip(&tar_of(&new_files()));
            let mut other = good.clone();
            other.extend_from_slice(&gzip(&[0; 512]));
            up.push_layer(&good);
            up.fault(of(Kind::BlobGet), usize::MAX, Fault::Body(other));
            fails(PULL, "size", "")
        }),
        layer_row("l5-window", "limit", "", window),
        Row::new("l6-zstd-called-gzip", |up| {
            up.push_layer(&zstd(&tar_of(&new_files())));
            Outcome::Succeeds(new_files())
        }),
        Row::new("l6-plain-called-gzip", |up| {
            up.push_layer(&tar_of(&new_files()));
            Outcome::Succeeds(new_files())
        }),
        Row::new("l6-many-members", |up| {
            up.push_layer(&gzip_members(&tar_of(&new_files()), &[100, 700]));
            Outcome::Succeeds(new_files())
        }),
        layer_row("l6-elf", "layer", "", elf),
        layer_row("l6-gzip-of-elf", "tar", "", gzip(b"\x7fELF\x02\x01\x01")),
        layer_row("l6-cut", "layer", "", cut),
        layer_row("l6-one-byte", "layer", "", vec![0x1f]),
        Row::new("l6-empty", |up| {
            up.push_layer(b"");
            fails(LAYER_OPERATION, "layer", "")
        })
        .keeps_layer(),
        Row::new("l-missing", |up| {
            up.push_manifest(&manifest(&json!([descriptor(LAYER, &Digest::sha256(b"not here"), 8)])));
            fails(PULL, "notfound", "")
        }),
    ];
    run_rows(&world, rows);
    world.finish();
}
