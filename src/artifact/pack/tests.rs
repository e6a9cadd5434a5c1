use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::*;
use crate::artifact::build::{Ignoring, Unpacked, unpack};

fn unpacked(packed: &Packed) -> Unpacked {
    unpack(
        std::slice::from_ref(&packed.layer),
        packed.config_descriptor.media_type == media_type::OCI_CONFIG,
        Ignoring::AsFlux(None),
        Caps::default(),
        None,
    )
    .unwrap()
}

fn names(packed: &Packed) -> Vec<String> {
    unpacked(packed).tree.nodes().iter().map(|n| n.path.to_string()).collect()
}

fn write(directory: &Path, name: &str, content: &[u8], mode: u32) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The same content twice, written in another order, with other modes and times.
fn example(reversed: bool) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut files = vec![
        ("app/deployment.yaml", &b"kind: Deployment\n"[..], [0o644, 0o600]),
        ("app/run.sh", b"#!/bin/sh\n", [0o755, 0o700]),
        ("a-first", b"1", [0o644, 0o664]),
        ("\u{fc}nicode.yaml", b"u", [0o644, 0o444]),
        ("README.md", b"#", [0o644, 0o640]),
    ];
    if reversed {
        files.reverse();
    }
    for (name, content, modes) in files {
        write(directory.path(), name, content, modes[usize::from(reversed)]);
    }
    fs::create_dir(directory.path().join("empty")).unwrap();
    fs::set_permissions(
        directory.path().join("empty"),
        fs::Permissions::from_mode(if reversed { 0o700 } else { 0o777 }),
    )
    .unwrap();
    directory
}

#[test]
fn equal_content_gives_equal_bytes() {
    let options = Options {
        source: Some("https://git.example/app".into()),
        revision: Some("main@sha1:0123".into()),
        ..Options::default()
    };
    let (one, other) = (example(false), example(true));
    let one = pack(Input::Path(one.path()), &options).unwrap();
    let other = pack(Input::Path(other.path()), &options).unwrap();
    assert!(one.layer == other.layer && one.config == other.config && one.manifest == other.manifest);
    assert_eq!(
        one.manifest_digest.to_string(),
        "sha256:cc09516fa1d2b663a70ec60c2562eb7ef425c8ed5c296049ad14746aa0d9d791"
    );
    assert_eq!(
        String::from_utf8(one.config.clone()).unwrap(),
        format!(
            r#"{{"architecture":"","config":{{}},"created":"1970-01-01T00:00:00Z","os":"","rootfs":{{"diff_ids":["{}"],"type":"layers"}}}}"#,
            one.diff_id
        )
    );
    assert_eq!(
        String::from_utf8(one.manifest.clone()).unwrap(),
        format!(
            concat!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
                r#""config":{{"mediaType":"application/vnd.cncf.flux.config.v1+json","digest":"{}","size":{}}},"#,
                r#""layers":[{{"mediaType":"application/vnd.cncf.flux.content.v1.tar+gzip","digest":"{}","size":{}}}],"#,
                r#""annotations":{{"org.opencontainers.image.created":"1970-01-01T00:00:00Z","#,
                r#""org.opencontainers.image.revision":"main@sha1:0123","org.opencontainers.image.source":"https://git.example/app"}}}}"#
            ),
            Digest::sha256(&one.config),
            one.config.len(),
            Digest::sha256(&one.layer),
            one.layer.len()
        )
    );
}

#[test]
fn packs_as_each_kind_and_compression() {
    let directory = example(false);
    for (kind, compression, layer_type, config_type, passes, golden) in [
        (
            ArtifactKind::Flux,
            Compression::Gzip,
            media_type::FLUX_LAYER,
            media_type::FLUX_CONFIG,
            true,
            "sha256:8528e2d497a752aaf65c953844e833b04430e25bd0b990b8446e49a8241868f5",
        ),
        (
            ArtifactKind::Flux,
            Compression::Zstd,
            FLUX_LAYER_ZSTD,
            media_type::FLUX_CONFIG,
            false,
            "sha256:91f67f3e56e9cd975b21f56b42d1270168cacb6b649f4eedaf9f270a2e66bf01",
        ),
        (
            ArtifactKind::Image,
            Compression::Gzip,
            media_type::OCI_LAYER_GZIP,
            media_type::OCI_CONFIG,
            true,
            "sha256:9c1415aa19987cc799637c5c14a72154e7b76bb516110cc9ed4f24c45dafe7c0",
        ),
        (
            ArtifactKind::Image,
            Compression::Zstd,
            media_type::OCI_LAYER_ZSTD,
            media_type::OCI_CONFIG,
            false,
            "sha256:dacd5b5031a02488d68910efbe688ec9a998718e77443a66a02465c3e3bb3f7f",
        ),
    ] {
        let packed = pack(Input::Path(directory.path()), &Options { kind, compression, ..Options::default() }).unwrap();
        assert_eq!(packed.layer_descriptor.media_type, layer_type);
        assert_eq!(packed.config_descriptor.media_type, config_type);
        assert_eq!((packed.files, packed.left_out), (5, 0));
        let unpacked = unpacked(&packed);
        assert_eq!(unpacked.pass_through.is_ok(), passes);
        let names: Vec<_> = unpacked.tree.nodes().iter().map(|n| (&*n.path, n.executable())).collect();
        assert_eq!(
            names,
            [
                ("README.md", false),
                ("a-first", false),
                ("app", false),
                ("app/deployment.yaml", false),
                ("app/run.sh", true),
                ("empty", false),
                ("\u{fc}nicode.yaml", false)
            ]
        );
        let limits = crate::unpack::decompress::Limits {
            diff_id: true,
            ..crate::unpack::decompress::Limits::in_memory(1 << 20)
        };
        let tar = crate::unpack::decompress::decompress(&packed.layer, limits).unwrap();
        assert_eq!(tar.diff_id, Some(packed.diff_id));
        let config: serde_json::Value = serde_json::from_slice(&packed.config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], packed.diff_id.to_string());
        if kind == ArtifactKind::Image {
            assert_eq!((config["os"].as_str(), config["architecture"].as_str()), (Some("linux"), Some("amd64")));
        }
        let entries: Vec<_> = ::tar::Archive::new(tar.data.as_slice().unwrap())
            .entries()
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.path().unwrap().display().to_string(), e.header().mode().unwrap()))
            .collect();
        assert_eq!(entries[0], (".".into(), 0o755));
        assert_eq!(entries[5], ("app/run.sh".into(), 0o755));
        assert_eq!(entries[4], ("app/deployment.yaml".into(), 0o644));
        assert_eq!(packed.manifest_digest.to_string(), golden);
    }
}

#[test]
fn packs_one_file_and_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "app.yaml", b"kind: X\n", 0o600);
    let file = pack(Input::Path(&directory.path().join("app.yaml")), &Options::default()).unwrap();
    assert_eq!((names(&file), file.files), (vec!["app.yaml".to_string()], 1));
    let stdin = pack(Input::Stdin(b"kind: X\n"), &Options::default()).unwrap();
    assert_eq!(names(&stdin), [STDIN_NAME]);
    assert!(unpacked(&stdin).pass_through.is_ok());
}

#[test]
fn leaves_out_what_does_not_belong() {
    let directory = tempfile::tempdir().unwrap();
    for name in [".git/config", ".gitignore", "logo.png", "keep.yaml", "docs/x.md", "docs/keep.md", ".github/w.yaml"] {
        write(directory.path(), name, b"x", 0o644);
    }
    write(directory.path(), "docs/.sourceignore", b"*.md\n!keep.md\n", 0o644);
    symlink("/etc/passwd", directory.path().join("link.yaml")).unwrap();
    symlink("docs", directory.path().join("linked")).unwrap();
    let packed = pack(Input::Path(directory.path()), &Options::default()).unwrap();
    assert_eq!(
        names(&packed),
        [".github", ".github/w.yaml", "docs", "docs/.sourceignore", "docs/keep.md", "keep.yaml"]
    );
    assert_eq!(packed.left_out, 2);
}

#[test]
fn annotations_of_the_user_count_over_ours() {
    let annotated = |value: &str| {
        let annotations =
            BTreeMap::from([(ANNOTATION_CREATED.to_string(), value.to_string()), ("a".into(), "b".into())]);
        pack(Input::Stdin(b""), &Options { annotations, ..Options::default() })
    };
    let packed = annotated("2026-11-23T10:00:00Z").unwrap();
    let config: serde_json::Value = serde_json::from_slice(&packed.config).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&packed.manifest).unwrap();
    assert_eq!(config["created"], "2026-11-23T10:00:00Z");
    assert_eq!(manifest["annotations"]["org.opencontainers.image.created"], "2026-11-23T10:00:00Z");
    assert_eq!(manifest["annotations"]["a"], "b");
    assert_eq!(annotated("yesterday").unwrap_err().class(), Class::Client);
}

#[test]
fn says_which_path_cannot_be_packed() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = pack(Input::Path(&missing), &Options::default()).unwrap_err();
    assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
    for (name, why) in [("a\nb", "control characters"), ("a\\b", "backslash")] {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), name, b"", 0o644);
        let error = pack(Input::Path(directory.path()), &Options::default()).unwrap_err();
        assert!(matches!(error, PackError::Name { .. }) && error.to_string().contains(why), "{error}");
    }
    write(directory.path(), "big", &[0; 10_000], 0o644);
    let caps = Caps { layer_bytes: 10_000, ..Caps::default() };
    let error = pack(Input::Path(directory.path()), &Options { caps, ..Options::default() }).unwrap_err();
    assert_eq!(error.class(), Class::Limit);
    assert_eq!(pack(Input::Path(Path::new("/dev/null")), &Options::default()).unwrap_err().class(), Class::Client);
}
