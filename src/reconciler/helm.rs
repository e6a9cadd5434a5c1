//! HelmCharts over OCI: the chart layer as it is, or repackaged with other values.
//!
//! Without `valuesFiles` the artifact is the chart's own layer, byte for byte. With them the files are merged in order into a
//! new `values.yaml`, and the version gets the object's generation as build metadata, as Flux does it (flux.md section 3).

use std::collections::BTreeMap;

use serde_json::Value;

use super::failure::Failure;
use crate::{
    apply::yaml_text,
    artifact::{
        build::{self, ArtifactError, Built, Caps, Ignoring, Tree},
        choose::Chosen,
    },
    class::{Class, chain},
    objects::condition::kinds,
    oci::version::Version,
    store::{Blob, Durability, Store},
};

/// The largest Chart.yaml or values file that is read, in bytes (Flux's `--helm-chart-file-max-size`).
const MAX_FILE: u64 = 5 << 20;

/// The longest name and version of a chart, in bytes.
const MAX_FIELD: usize = 128;

/// What a HelmChart asks for beyond its layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WantedChart {
    /// The chart's name in its repository.
    pub name: String,
    /// Other values.
    pub values: Option<Values>,
}

/// `valuesFiles`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Values {
    /// Paths in the chart, later ones over earlier ones.
    pub files: Vec<String>,
    /// Leave out what does not exist.
    pub ignore_missing: bool,
    /// The object's generation: the version's build metadata.
    pub generation: i64,
}

/// What a chart says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chart {
    /// `name` of Chart.yaml.
    pub name: String,
    /// `version` of Chart.yaml; with other values, and the generation behind it.
    pub version: String,
}

fn failed(reason: &'static str, class: Class, message: impl Into<String>) -> Failure {
    Failure::new(kinds::BUILD_FAILED, reason, class, message)
}

fn unusable(error: &ArtifactError) -> Failure {
    failed("ChartPullError", error.class(), format!("the chart cannot be used: {}", chain(error)))
}

/// Builds the chart's artifact. Synchronous: run it behind `blocking::cpu`.
pub fn build(
    store: &Store,
    chosen: &Chosen,
    layers: &[Blob],
    wanted: &WantedChart,
    caps: Caps,
) -> Result<(Built, Chart), Failure> {
    let built = build::build(store, chosen, layers, Ignoring::Nothing, caps).map_err(|e| unusable(&e))?;
    let tree = open(store, &built.blob, caps)?;
    let (root, chart, metadata) = describe(&tree)?;
    let Some(values) = &wanted.values else {
        return Ok((Built { tree: Some(tree), ..built }, chart));
    };
    let merged = merged_values(&tree, &root, values)?;
    let version = format!("{}+{}", chart.version.split('+').next().unwrap_or_default(), values.generation);
    let mut metadata = metadata;
    metadata["version"] = Value::String(version.clone());
    let replaced = BTreeMap::from([
        (format!("{root}/Chart.yaml"), yaml_text::write(&metadata).into_bytes()),
        (format!("{root}/values.yaml"), yaml_text::write(&merged).into_bytes()),
    ]);
    let packed = || -> Result<Blob, ArtifactError> {
        let mut scratch = store.scratch()?;
        build::rewrite_with(&tree, &replaced, |bytes| scratch.write(bytes).map_err(ArtifactError::from))?;
        Ok(scratch.commit(Durability::Now)?)
    };
    let blob = packed().map_err(|e| {
        failed("ChartPackageError", e.class(), format!("the chart cannot be packaged anew: {}", chain(&e)))
    })?;
    let tree = open(store, &blob, caps)?;
    let built = Built { blob, passed_through: false, tree: Some(tree), dropped: built.dropped };
    Ok((built, Chart { version, ..chart }))
}

fn open(store: &Store, blob: &Blob, caps: Caps) -> Result<Tree, Failure> {
    let unpacked = build::unpack(std::slice::from_ref(blob), false, Ignoring::Nothing, caps, Some(store));
    unpacked.map(|u| u.tree).map_err(|e| unusable(&e.of(&[blob.digest()])))
}

/// The chart's folder, and what its Chart.yaml says.
fn describe(tree: &Tree) -> Result<(String, Chart, Value), Failure> {
    let wrong = |what: &str| failed("ChartPullError", Class::Layer, format!("the layer is not a chart: {what}"));
    let mut roots = tree.nodes().iter().filter_map(|n| n.path.strip_suffix("/Chart.yaml")).filter(|r| !r.contains('/'));
    let root = roots.next().ok_or_else(|| wrong("it has no <name>/Chart.yaml"))?.to_string();
    if roots.next().is_some() {
        return Err(wrong("it has more than one <name>/Chart.yaml"));
    }
    let metadata = read(tree, &format!("{root}/Chart.yaml"))?.ok_or_else(|| wrong("Chart.yaml is missing"))?;
    let field = |name: &str| match metadata[name].as_str() {
        // Both become part of a path, and of a URL.
        Some(text) if !text.is_empty() && text.len() <= MAX_FIELD => Ok(text),
        Some(text) if !text.is_empty() => Err(wrong(&format!("the {name} in Chart.yaml is over {MAX_FIELD} bytes"))),
        _ => Err(wrong(&format!("Chart.yaml has no {name}"))),
    };
    let (name, version) = (field("name")?, field("version")?);
    if !is_name(name) {
        let rule = "letters, digits, '.', '_' and '-', and no '.' at the beginning";
        return Err(wrong(&format!("the name {name:?} in Chart.yaml is not a chart's: {rule}")));
    }
    version.parse::<Version>().map_err(|error| wrong(&format!("the version in Chart.yaml: {error}")))?;
    let chart = Chart { name: name.to_owned(), version: version.to_owned() };
    Ok((root, chart, metadata))
}

/// Whether a chart may be called so: Helm's `^[a-zA-Z0-9._-]+$`, and no hidden file.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed)
}

/// A YAML file of the chart; `None` if there is none.
fn read(tree: &Tree, path: &str) -> Result<Option<Value>, Failure> {
    let wrong = |class: Class, what: String| failed("ChartPullError", class, format!("{path}: {what}"));
    let Some(node) = tree.find(path).filter(|n| !n.is_dir()) else { return Ok(None) };
    if node.len() > MAX_FILE {
        return Err(wrong(Class::Limit, format!("{} bytes, the cap is {MAX_FILE}", node.len())));
    }
    let content = tree.content(node).map_err(|e| wrong(e.class(), e.to_string()))?;
    let text = std::str::from_utf8(&content).map_err(|_| wrong(Class::Layer, "is not UTF-8".into()))?;
    let parsed = yaml_text::read(text).map_err(|e| wrong(Class::Layer, e))?;
    Ok(Some(parsed))
}

fn merged_values(tree: &Tree, root: &str, values: &Values) -> Result<Value, Failure> {
    let mut merged = Value::Object(serde_json::Map::new());
    for file in &values.files {
        match read(tree, &format!("{root}/{}", file.trim_start_matches("./")))? {
            Some(Value::Object(over)) => merge(&mut merged, Value::Object(over)),
            // An empty values file says nothing.
            Some(Value::Null) => {}
            Some(_) => {
                let message = format!("values file '{file}' is not a mapping");
                return Err(failed("ValuesFilesError", Class::Spec, message));
            }
            None if values.ignore_missing => {}
            None => {
                let message = format!("no values file found at path '{file}' in the chart");
                return Err(failed("ValuesFilesError", Class::Spec, message));
            }
        }
    }
    Ok(merged)
}

/// Lays `over` over `base`: mappings are merged, everything else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn later_values_go_over_earlier_ones_and_mappings_merge() {
        let mut base = json!({"a": 1, "b": {"c": 1, "d": [1, 2]}, "e": {"f": 1}});
        merge(&mut base, json!({"b": {"d": [3], "g": null}, "e": 5}));
        assert_eq!(base, json!({"a": 1, "b": {"c": 1, "d": [3], "g": null}, "e": 5}));
    }
}
