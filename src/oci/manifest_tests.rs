use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::media_type::*, *};

const A: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

fn descriptor(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": A, "size": 2})
}

fn image(media_type: &str, config: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config),
        "layers": [descriptor(OCI_LAYER_GZIP)],
    })
}

fn index(children: &[(&str, Option<&str>)]) -> Value {
    let manifests: Vec<Value> = children
        .iter()
        .map(|(media_type, platform)| {
            let mut child = descriptor(media_type);
            if let Some(platform) = platform {
                let mut parts = platform.split('/');
                child["platform"] = json!({"os": parts.next(), "architecture": parts.next(), "variant": parts.next()});
            }
            child
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
}

fn parse(value: &Value, content_type: Option<&str>) -> Result<Document, ManifestError> {
    Document::parse(value.to_string().as_bytes(), content_type)
}

fn without(mut value: Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key);
    value
}

fn with(mut value: Value, key: &str, field: Value) -> Value {
    value[key] = field;
    value
}

fn parsed_index(value: &Value) -> Index {
    match parse(value, None).unwrap() {
        Document::Index(index) => index,
        Document::Image(_) => panic!("an index"),
    }
}

#[test]
fn reads_the_four_forms_by_body_by_header_and_by_shape() {
    let image_body = image(OCI_MANIFEST, OCI_CONFIG);
    let index_body = index(&[(OCI_MANIFEST, Some("linux/amd64"))]);
    for (body, header, want) in [
        (image_body.clone(), Some(OCI_MANIFEST), OCI_MANIFEST),
        (image_body.clone(), None, OCI_MANIFEST),
        (image_body.clone(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), OCI_MANIFEST),
        (image_body.clone(), Some("application/json"), OCI_MANIFEST),
        (image_body.clone(), Some("Text/Plain;charset=utf-8"), OCI_MANIFEST),
        (image_body.clone(), Some("application/octet-stream"), OCI_MANIFEST),
        (image_body.clone(), Some(""), OCI_MANIFEST),
        (image(DOCKER_MANIFEST, DOCKER_CONFIG), Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
        (without(image_body.clone(), "mediaType"), Some(OCI_MANIFEST), OCI_MANIFEST),
        (without(image_body.clone(), "mediaType"), Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
        (with(image_body.clone(), "mediaType", json!("")), None, OCI_MANIFEST),
        (without(image_body.clone(), "mediaType"), Some("application/json"), OCI_MANIFEST),
        (with(image_body.clone(), "manifests", Value::Null), None, OCI_MANIFEST),
        (index_body.clone(), Some(OCI_INDEX), OCI_INDEX),
        (with(index_body.clone(), "mediaType", json!(DOCKER_INDEX)), Some(DOCKER_INDEX), DOCKER_INDEX),
        (without(index_body.clone(), "mediaType"), Some(DOCKER_INDEX), DOCKER_INDEX),
        (without(index_body.clone(), "mediaType"), None, OCI_INDEX),
        (with(index_body.clone(), "layers", Value::Null), None, OCI_INDEX),
    ] {
        let document = parse(&body, header).unwrap_or_else(|e| panic!("{e}: {body} {header:?}"));
        assert_eq!(document.media_type(), want, "{body} {header:?}");
        assert_eq!(matches!(document, Document::Index(_)), is_index(want));
    }
}

#[test]
fn keeps_artifact_type_subject_and_annotations() {
    let body = with(image(OCI_MANIFEST, OCI_EMPTY), "artifactType", json!("application/x"));
    let body = with(body, "subject", descriptor(OCI_MANIFEST));
    let body = with(body, "annotations", json!({"org.opencontainers.image.revision": "main@sha1:1"}));
    let document = parse(&body, None).unwrap();
    assert_eq!(document.annotations()["org.opencontainers.image.revision"], "main@sha1:1");
    assert_eq!(document.subject().unwrap().media_type, OCI_MANIFEST);
    let Document::Image(image) = document else { panic!("an image manifest") };
    assert_eq!(image.artifact_type.as_deref(), Some("application/x"));
    assert_eq!((image.is_container_image(), image.is_helm_chart()), (false, false));
}

#[test]
fn tells_container_images_and_charts_by_their_config() {
    for (config, container, helm) in [
        (OCI_CONFIG, true, false),
        (DOCKER_CONFIG, true, false),
        (HELM_CONFIG, false, true),
        (FLUX_CONFIG, false, false),
        (OCI_EMPTY, false, false),
        ("application/vnd.oci.image.config.v1+JSON", false, false),
    ] {
        let Document::Image(image) = parse(&image(OCI_MANIFEST, config), None).unwrap() else { panic!("an image") };
        assert_eq!((image.is_container_image(), image.is_helm_chart()), (container, helm), "{config}");
    }
}

#[test]
fn refuses_what_could_be_read_in_two_ways() {
    let image_body = image(OCI_MANIFEST, OCI_CONFIG);
    let index_body = index(&[(OCI_MANIFEST, Some("linux/amd64"))]);
    let ambiguous = |kind, field| ManifestError::Ambiguous { kind, field };
    let disagree =
        |body: &str, header: &str| ManifestError::Disagree { body: body.to_string(), header: header.to_string() };
    for (body, header, want) in [
        (with(image_body.clone(), "manifests", json!([])), None, ambiguous(MANIFEST, "manifests")),
        (without(with(image_body.clone(), "manifests", json!([])), "mediaType"), None, ambiguous(INDEX, "layers")),
        (with(index_body.clone(), "layers", json!([])), None, ambiguous(INDEX, "layers")),
        (with(index_body.clone(), "config", descriptor(OCI_CONFIG)), None, ambiguous(INDEX, "config")),
        (with(image_body.clone(), "fsLayers", json!([])), None, ambiguous(MANIFEST, "fsLayers")),
        (with(image_body.clone(), "history", json!([])), None, ambiguous(MANIFEST, "history")),
        (with(index_body.clone(), "mediaType", json!(OCI_MANIFEST)), None, ambiguous(MANIFEST, "manifests")),
        (with(image_body.clone(), "mediaType", json!(OCI_INDEX)), None, ambiguous(INDEX, "layers")),
        (without(index_body.clone(), "mediaType"), Some(OCI_MANIFEST), ambiguous(MANIFEST, "manifests")),
        (image_body.clone(), Some(DOCKER_MANIFEST), disagree(OCI_MANIFEST, DOCKER_MANIFEST)),
        (image_body.clone(), Some(OCI_INDEX), disagree(OCI_MANIFEST, OCI_INDEX)),
        (image_body.clone(), Some("application/foo"), disagree(OCI_MANIFEST, "application/foo")),
        (
            image_body.clone(),
            Some("Application/vnd.oci.image.manifest.v1+json"),
            disagree(OCI_MANIFEST, "Application/vnd.oci.image.manifest.v1+json"),
        ),
        (
            without(image_body.clone(), "mediaType"),
            Some("application/foo"),
            ManifestError::MediaType("application/foo".into()),
        ),
        (
            with(image_body.clone(), "mediaType", json!("application/vnd.oci.artifact.manifest.v1+json")),
            None,
            ManifestError::MediaType("application/vnd.oci.artifact.manifest.v1+json".into()),
        ),
    ] {
        let error = parse(&body, header).unwrap_err();
        assert_eq!(error, want, "{body} {header:?}");
        assert_eq!(error.class(), Class::Manifest);
    }
}

#[test]
fn refuses_schema_1_web_pages_and_half_documents() {
    let image_body = image(OCI_MANIFEST, OCI_CONFIG);
    let schema1 = json!({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []});
    for (body, header, want) in [
        (schema1.clone(), None, ManifestError::Schema1),
        (schema1.clone(), Some(DOCKER_SCHEMA1_SIGNED), ManifestError::Schema1),
        (image_body.clone(), Some(DOCKER_SCHEMA1), ManifestError::Schema1),
        (with(image_body.clone(), "mediaType", json!(DOCKER_SCHEMA1)), None, ManifestError::Schema1),
        (without(image_body.clone(), "schemaVersion"), None, ManifestError::SchemaVersion(None)),
        (with(image_body.clone(), "schemaVersion", json!(3)), None, ManifestError::SchemaVersion(Some(3))),
        (image_body.clone(), Some("text/html; charset=utf-8"), ManifestError::Html),
        (without(image_body.clone(), "config"), None, ManifestError::Missing { kind: MANIFEST, field: "config" }),
        (without(image_body.clone(), "layers"), None, ManifestError::Missing { kind: MANIFEST, field: "layers" }),
        (json!({"schemaVersion": 2}), None, ManifestError::Missing { kind: MANIFEST, field: "config" }),
        (json!({"schemaVersion": 2}), Some(OCI_INDEX), ManifestError::Missing { kind: INDEX, field: "manifests" }),
    ] {
        assert_eq!(parse(&body, header), Err(want), "{body} {header:?}");
    }
    let page = b"\n <!DOCTYPE html><html><body>Log in</body></html>";
    assert_eq!(Document::parse(page, None), Err(ManifestError::Html));
    assert!(ManifestError::Html.to_string().contains("web page"));
}

#[test]
fn refuses_text_that_is_no_json_object_or_has_a_key_twice() {
    let twice = image(OCI_MANIFEST, OCI_CONFIG).to_string().replacen('{', r#"{"layers":[],"#, 1);
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    let loud = format!(r#"{{"schemaVersion":"{}"}}"#, "x".repeat(100_000));
    for text in ["", " ", "null", "[]", "[2]", "{", "\"x\"", "\u{feff}{}", &twice, &deep, &loud] {
        let error = Document::parse(text.as_bytes(), None).unwrap_err();
        assert!(matches!(error, ManifestError::Json(_)), "{error}");
        assert_eq!(error.class(), Class::Manifest);
        assert!(error.to_string().len() < 300, "{error}");
    }
    let escape = Document::parse(b"{\"schemaVersion\":\"\\u001b[2J\"}", None).unwrap_err().to_string();
    assert!(!escape.contains('\u{1b}'), "{escape:?}");
}

#[test]
fn bounds_bytes_layers_and_children() {
    let layers = |n| with(image(OCI_MANIFEST, OCI_CONFIG), "layers", json!(vec![descriptor(OCI_LAYER_GZIP); n]));
    let children = |n| index(&vec![(OCI_MANIFEST, None); n]);
    assert!(parse(&layers(MAX_LAYERS), None).is_ok());
    assert!(parse(&children(MAX_CHILDREN), None).is_ok());
    for (body, field, count, cap) in [
        (layers(513), "layers", 513, 512),
        (children(1001), "manifests", 1001, 1000),
        (children(10_000), "manifests", 10_000, 1000),
    ] {
        let error = parse(&body, None).unwrap_err();
        assert_eq!(error, ManifestError::TooMany { field, count, cap });
        assert_eq!(error.class(), Class::Limit);
    }
    let mut text = image(OCI_MANIFEST, OCI_CONFIG).to_string();
    text.push_str(&" ".repeat(MAX_BYTES - text.len()));
    assert!(Document::parse(text.as_bytes(), None).is_ok());
    text.push(' ');
    let error = Document::parse(text.as_bytes(), None).unwrap_err();
    assert_eq!((error.class(), error), (Class::Size, ManifestError::TooLarge(MAX_BYTES + 1)));
}

#[test]
fn an_index_resolves_to_linux_amd64_or_on_conditions_to_another() {
    const M: &str = OCI_MANIFEST;
    // Which child, and how: e(xact), o(nly), i(f it is no image).
    for (children, want) in [
        (vec![(M, Some("linux/arm64")), (M, Some("linux/amd64"))], Some((1, 'e'))),
        (vec![(M, Some("linux/amd64")), (M, Some("linux/amd64/v3"))], Some((0, 'e'))),
        (vec![(DOCKER_MANIFEST, Some("linux/amd64"))], Some((0, 'e'))),
        (vec![(OCI_INDEX, Some("linux/amd64"))], Some((0, 'e'))),
        (vec![(M, Some("windows/amd64")), (M, Some("linux/arm64")), (M, Some("linux/s390x"))], Some((1, 'i'))),
        (vec![(M, Some("linux/arm64"))], Some((0, 'o'))),
        (vec![(M, Some("linux/arm64")), (M, Some("unknown/unknown"))], Some((0, 'o'))),
        (vec![(OCI_LAYER_TAR, Some("linux/amd64")), (M, Some("linux/arm64"))], Some((1, 'o'))),
        (vec![(M, None)], Some((0, 'o'))),
        (vec![(M, Some("/"))], Some((0, 'o'))),
        (vec![(M, None), (M, None)], Some((0, 'i'))),
        (vec![(M, None), (M, Some("linux/arm64"))], Some((1, 'i'))),
        (vec![(M, None), (M, Some("linux/amd64"))], Some((1, 'e'))),
        (vec![(M, Some("windows/amd64")), (M, None)], Some((1, 'i'))),
        (vec![(M, Some("windows/amd64"))], None),
        (vec![(M, Some("unknown/unknown"))], None),
        (vec![("text/plain", None)], None),
        (vec![], None),
    ] {
        let index = parsed_index(&index(&children));
        let got = index.resolve().ok().map(|resolution| {
            let position = index.manifests.iter().position(|m| std::ptr::eq(m, resolution.descriptor())).unwrap();
            let kind = match resolution {
                Resolution::Exact(_) => 'e',
                Resolution::Only(..) => 'o',
                Resolution::IfNotImage(..) => 'i',
            };
            (position, kind)
        });
        assert_eq!(got, want, "{children:?}");
    }
}

#[test]
fn attestations_do_not_count() {
    let mut body = index(&[(OCI_MANIFEST, Some("linux/amd64")), (OCI_MANIFEST, Some("linux/arm64"))]);
    body["manifests"][0]["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = parsed_index(&body);
    assert!(matches!(index.resolve().unwrap(), Resolution::Only(child, _) if child == &index.manifests[1]));
}

#[test]
fn another_platforms_image_is_refused_with_a_list_and_its_artifact_taken_with_a_warning() {
    let several = parsed_index(&index(&[(OCI_MANIFEST, Some("linux/arm64")), (OCI_MANIFEST, Some("linux/arm/v7"))]));
    let single = parsed_index(&index(&[(OCI_MANIFEST, Some("linux/arm64"))]));
    let child = |config| match parse(&image(OCI_MANIFEST, config), None).unwrap() {
        Document::Image(image) => image,
        Document::Index(_) => panic!("an image"),
    };
    let warning = format!("the index has no manifest for linux/amd64; taken: linux/arm64 ({A})");
    let settle = |index: &Index, config| index.settle(index.resolve().unwrap(), &child(config));
    assert_eq!(settle(&several, FLUX_CONFIG), Ok(Some(warning.clone())));
    assert_eq!(settle(&single, OCI_CONFIG), Ok(Some(warning)));
    let error = settle(&several, DOCKER_CONFIG).unwrap_err();
    assert_eq!(error.to_string(), "the index has no manifest for linux/amd64; it has linux/arm64, linux/arm/v7");
    let exact = parsed_index(&index(&[(OCI_MANIFEST, Some("linux/amd64"))]));
    assert_eq!(settle(&exact, OCI_CONFIG), Ok(None));
    let many = parsed_index(&index(&vec![(OCI_MANIFEST, Some("windows/amd64")); 12]));
    let error = many.resolve().unwrap_err().to_string();
    assert!(error.ends_with("windows/amd64, windows/amd64 and 2 more"), "{error}");
    let none = parsed_index(&index(&[])).resolve().unwrap_err().to_string();
    assert_eq!(none, "the index has no manifest for linux/amd64; it has none at all");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Document::parse(&bytes, None);
    }

    #[test]
    fn a_document_with_any_one_byte_changed_parses_or_is_refused(at in 0usize..600, byte in any::<u8>()) {
        let mut text = index(&[(OCI_MANIFEST, Some("linux/amd64")), (OCI_MANIFEST, None)]).to_string().into_bytes();
        let at = at % text.len();
        text[at] = byte;
        if let Ok(Document::Index(index)) = Document::parse(&text, None) {
            let _ = index.resolve();
        }
    }
}
