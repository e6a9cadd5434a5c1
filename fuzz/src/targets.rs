//! What each target does with its bytes, and what must hold of the result. Nothing may panic, whatever the bytes.

use std::{collections::BTreeMap, io::Read, sync::LazyLock};

use larder::{
    digest::Digest,
    objects, oci,
    registry::{challenge as challenges, docker_config as docker_configs},
    server::{query as queries, range as ranges, registry::access as accesses, route as routes},
    store::{Durability, Store},
    trust::{self, Evidence, Policy},
    unpack::{
        data::Limits,
        decompress as formats,
        entries::{self, Rules},
        source_ignore::IgnoreRules,
    },
};

/// A target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by its name, which is also its corpus's.
pub const ALL: &[Target] = &[
    ("access", access),
    ("authorization", authorization),
    ("challenge", challenge),
    ("decompress", decompress),
    ("docker_config", docker_config),
    ("error_body", error_body),
    ("ignore", ignore),
    ("image_config", image_config),
    ("journal", journal),
    ("manifest", manifest),
    ("ns", ns),
    ("objects", objects),
    ("query", query),
    ("range", range),
    ("reference", reference),
    ("route", route),
    ("signature", signature),
    ("tar", tar),
];

/// What one decompression may give: far above what a corpus file expands to, so that a broken cap is seen.
const CAP: u64 = 1 << 20;

/// The users and rules of local repositories: first line a repository, second a pattern, the rest an htpasswd file.
pub fn access(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (name, rest) = text.split_once('\n').unwrap_or((text, ""));
    let (pattern, users) = rest.split_once('\n').unwrap_or((rest, ""));
    if let Ok(parsed) = pattern.parse::<accesses::Pattern>() {
        let matches = parsed.matches(name);
        assert!(!parsed.matches("") || pattern.bytes().all(|b| b == b'*'));
        assert!(matches || !pattern.bytes().all(|b| b == b'*'));
        assert!(pattern.contains('*') || matches == (name == pattern));
    }
    let _ = pattern.parse::<accesses::Subject>();
    match accesses::htpasswd::Users::parse(users) {
        Ok(users) => assert!(!users.contains("") && !users.contains(accesses::TOKEN_USER)),
        Err(error) => assert!(!error.to_string().contains("$2")),
    }
}

/// `Authorization`.
pub fn authorization(data: &[u8]) {
    use accesses::authorization::Credentials;
    match accesses::authorization::parse(data) {
        Some(Credentials::Basic { user, password }) => {
            assert!(!user.contains(':'));
            assert!(!user.chars().chain(password.expose().chars()).any(char::is_control));
        }
        Some(Credentials::Bearer(token)) => assert!(token.expose().bytes().all(|b| b.is_ascii_graphic())),
        None => {}
    }
}

/// `WWW-Authenticate`.
pub fn challenge(data: &[u8]) {
    let Ok(header) = str::from_utf8(data) else { return };
    for found in challenges::parse(header) {
        assert!(!found.scheme.is_empty());
        assert_eq!(found.scheme, found.scheme.to_ascii_lowercase());
    }
}

/// gzip, zstd and plain tar: never more than the cap comes out.
pub fn decompress(data: &[u8]) {
    if let Ok(found) = formats::decompress(data, Limits::in_memory(CAP)) {
        let length = found.data.as_slice().map_or(0, <[u8]>::len) as u64;
        assert!(length <= CAP);
        if let Ok(again) = formats::decompress_reader(data, Limits::in_memory(CAP)) {
            assert_eq!(found.data.as_slice(), again.data.as_slice(), "both ways to decompress agree");
        }
    }
}

/// A Docker `config.json`.
pub fn docker_config(data: &[u8]) {
    if let Ok(config) = docker_configs::parse(data) {
        let registry = "registry.example.com".parse().expect("a registry");
        let repository = "team/app".parse().expect("a repository");
        let _ = config.lookup(&registry, &repository);
    }
}

/// A registry's error body.
pub fn error_body(data: &[u8]) {
    let _ = oci::error_body::summary(data);
}

/// `.sourceignore`: first line a path, the rest rules.
pub fn ignore(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (path, rules) = text.split_once('\n').unwrap_or((text, ""));
    for (own, spec) in [("", Some(rules)), (rules, None)] {
        let Ok(built) = IgnoreRules::build([("a", own.as_bytes())], spec) else { continue };
        let _ = (built.excludes(path, false), built.excludes(path, true));
    }
}

/// An image config.
pub fn image_config(data: &[u8]) {
    let _ = oci::image_config::ImageConfig::parse(data);
}

/// The journal is a trust cache: whatever lies there, a blob comes back right or not at all.
pub fn journal(data: &[u8]) {
    const CONTENT: &[u8] = b"the right bytes";
    let folder = tempfile::tempdir().expect("temporary folder");
    let digest = {
        let store = Store::open(folder.path()).expect("a new store");
        let digest = Digest::sha256(CONTENT);
        store.put(digest, CONTENT, Durability::Now).expect("put");
        digest
    };
    let journal = folder.path().join("journal");
    assert!(journal.is_file(), "the journal lies elsewhere now");
    std::fs::write(&journal, data).expect("journal");
    let store = Store::open(folder.path()).expect("a store with any journal opens");
    if let Some(blob) = store.get(&digest).expect("readable") {
        assert_eq!(blob.to_vec().expect("readable"), CONTENT);
    }
}

/// A manifest or index; the first byte chooses what the server called it.
pub fn manifest(data: &[u8]) {
    use oci::media_type::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
    let Some((first, body)) = data.split_first() else { return };
    let types = [None, Some(OCI_MANIFEST), Some(OCI_INDEX), Some(DOCKER_MANIFEST), Some(DOCKER_INDEX)];
    match oci::Document::parse(body, types[usize::from(*first) % types.len()]) {
        Ok(oci::Document::Index(index)) => drop(index.resolve().map(|_| ())),
        Ok(oci::Document::Image(image)) => {
            for layer in &image.layers {
                assert_eq!(layer.digest.to_string().parse::<Digest>().as_ref(), Ok(&layer.digest));
            }
        }
        Err(error) => drop(error.to_string()),
    }
}

/// A file of objects.
pub fn objects(data: &[u8]) {
    for document in objects::documents::parse_documents(data) {
        if let Ok(value) = document.value {
            drop(objects::manifest::read(&value));
        }
    }
}

/// Where a mirrored request leads: a query, a line break, and a path behind an upstream's prefix.
pub fn ns(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (query, path) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(query) = queries::Query::parse(Some(query)) {
        let rest = query.without("ns");
        let again = queries::Query::parse(Some(&rest)).expect("what was written reads");
        assert!(!again.has("ns"));
        if let Ok(Some(registry)) = query.get("ns").map(|ns| ns.and_then(|ns| ns.parse::<oci::Registry>().ok())) {
            let name = registry.to_string();
            assert_eq!(name.parse().as_ref(), Ok(&registry), "one spelling for each");
            assert!(name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'@' | b'?' | b'#' | b'_')));
        }
    }
    // The same resource, with and without a prefix in front.
    match (routes::parse_below(path), routes::parse(&format!("/v2/{path}"))) {
        (_, Ok(routes::Route::Base | routes::Route::Catalog)) => {}
        (below, whole) => assert!(below == whole || path.len() + 4 > routes::MAX_PATH, "{path:?}"),
    }
}

/// A URL's query.
pub fn query(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(query) = queries::Query::parse(Some(text)) {
        for name in ["ns", "digest", "mount", "from"] {
            let _ = query.get(name);
        }
    }
}

/// `Range`; the first two bytes are the representation's length.
pub fn range(data: &[u8]) {
    let Some((length, value)) = data.split_at_checked(2) else { return };
    let length = u64::from(u16::from_le_bytes([length[0], length[1]]));
    if let ranges::Selection::Part { first, last } = ranges::select(value, length) {
        assert!(first <= last && last < length, "{first}-{last} of {length}");
    }
}

/// References and object URLs.
pub fn reference(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for parsed in [oci::Reference::parse(text), oci::Reference::parse_object_url(text)].into_iter().flatten() {
        let registry = parsed.registry.to_string();
        assert_eq!(registry.parse().as_ref(), Ok(&parsed.registry), "{registry}");
        let path = parsed.repository.as_str();
        assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
        assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()), "{path}");
    }
}

/// The path of a request to the registry listener.
pub fn route(data: &[u8]) {
    let Ok(path) = str::from_utf8(data) else { return };
    let _ = routes::parse(path);
}

/// A key and a trusted root of which nobody has the private halves.
static POLICIES: LazyLock<Vec<Policy>> = LazyLock::new(|| {
    let key = Policy::keys([("cosign.pub", include_str!("cosign.pub"))]).expect("a key");
    // Not in a build without the feature.
    let root = Policy::keyless(&[], include_str!("trusted_root.json")).ok();
    [Some(key), root].into_iter().flatten().collect()
});

/// What may be a signature: by the first byte a bundle, or a layer: its payload, and the names and values of its annotations,
/// each after a zero byte. The corpus has good ones, of other manifests; whatever they are changed to, they are none of this
/// one.
pub fn signature(data: &[u8]) {
    let digest = Digest::sha256(b"never signed");
    let Some((first, rest)) = data.split_first() else { return };
    let evidence = if first & 1 == 0 {
        if let Ok(trust::Content::Envelope { payload_type, payload, .. }) = trust::Content::parse(rest) {
            let _ = trust::signed_by_statement(&payload_type, &payload, &digest);
        }
        Evidence::Bundle(rest.to_vec().into())
    } else {
        let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
        let mut parts = rest.split(|byte| *byte == 0);
        let payload = parts.next().unwrap_or_default();
        let mut annotations = BTreeMap::new();
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            annotations.insert(text(name), text(value));
        }
        let _ = trust::signed_by_layer(payload, &digest);
        Evidence::Layer { payload: payload.to_vec().into(), annotations }
    };
    for policy in POLICIES.iter() {
        assert!(policy.judge(&digest, std::slice::from_ref(&evidence)).is_err());
    }
    if let Ok(text) = str::from_utf8(rest) {
        let _ = Policy::keys([("x.pub", text)]);
        let _ = Policy::keyless(&[], text);
    }
}

/// A tar, the first byte says whether it is a container image's layer. What passes through must be, for another reader,
/// the same files with the same bytes.
pub fn tar(data: &[u8]) {
    let Some((first, archive)) = data.split_first() else { return };
    let image = first & 1 == 1;
    let Ok(index) = entries::index(archive, Rules { image, entries: 10_000 }) else { return };
    let mut ours = BTreeMap::new();
    for entry in &index.entries {
        let path: &str = &entry.path;
        assert!(!path.starts_with('/') && path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path:?}");
        if let entries::Kind::File { offset, len } = entry.kind {
            let bytes = archive.get(offset as usize..(offset + len) as usize).expect("inside the archive");
            ours.insert(path.to_owned(), bytes.to_vec());
        }
    }
    if image || index.pass_through.is_err() {
        return;
    }
    let mut theirs = BTreeMap::new();
    for entry in ::tar::Archive::new(archive).entries().expect("a reader") {
        let mut entry = entry.expect("an entry that passes through is read by others");
        if entry.header().entry_type().is_file() {
            let path = String::from_utf8(entry.path_bytes().into_owned()).expect("UTF-8");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("all of it");
            theirs.insert(path.trim_start_matches("./").to_owned(), bytes);
        }
    }
    assert_eq!(ours, theirs);
}
