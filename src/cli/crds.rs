//! `larder crds`

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::output::{self, DocumentFormat};
use crate::{
    apply::yaml_text,
    objects::crd::{DEFINITIONS, Definition, widen},
};

/// More than all CRDs of a large cluster.
const MAX_INPUT: u64 = 64 << 20;

/// Print the CRDs of Larder's kinds, or a patch that widens Flux's own
///
/// The CRDs are Flux's, field by field, but for two things: a GitRepository's URL may begin with oci://, and a
/// Kustomization has `validation`. Where Flux's are installed they stay; --patch widens them by these two.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  A cluster without Flux:
    larder crds | kubectl apply --server-side -f -
  A cluster with Flux:
    kubectl get crd -o json | larder crds --patch - | kubectl replace -f -
  Flux's manifests in Git, so that its next upgrade keeps the patch:
    mkdir -p flux-system/larder && larder crds --patch > flux-system/larder/kustomization.yaml
    (and in flux-system/kustomization.yaml: `components: [larder]`)")]
pub struct Arguments {
    /// Print a kustomize component that widens Flux's CRDs; with FILE (YAML or JSON, `-` is standard input), print
    /// those of Flux's CRDs that are in it, widened, with every field that they have
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    patch: Option<Option<String>>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: DocumentFormat,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.patch {
        None => print(DEFINITIONS.iter().map(Definition::crd).collect(), arguments.output),
        Some(None) => output::print_document(&widen::component(), arguments.output.into()),
        Some(Some(file)) => {
            let mut crds = installed(&read(file)?);
            if crds.is_empty() {
                let names = DEFINITIONS.iter().map(Definition::name).collect::<Vec<_>>();
                bail!("{} has none of Flux's CRDs: {} are looked for", shown(file), names.join(", "));
            }
            for (definition, crd) in &mut crds {
                for change in widen::widen(definition, crd)? {
                    output::say(format_args!("{} now {change}", definition.name()));
                }
                without_servers(crd);
            }
            print(crds.into_iter().map(|(_, crd)| crd).collect(), arguments.output)
        }
    }
}

/// Takes out what the API server wrote: kubectl keeps a copy of what it replaces, and the next `kubectl apply` would hold it
/// against that.
fn without_servers(crd: &mut Value) {
    if let Some(fields) = crd.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = crd["metadata"].as_object_mut() {
        for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink"] {
            metadata.remove(field);
        }
    }
}

fn print(crds: Vec<Value>, format: DocumentFormat) -> anyhow::Result<()> {
    match format {
        DocumentFormat::Yaml => output::print(&yaml_text::write_all(&crds)),
        DocumentFormat::Json => {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": crds});
            output::print_document(&list, output::Format::Json)
        }
    }
}

fn shown(file: &str) -> &str {
    if file == "-" { "the standard input" } else { file }
}

fn read(file: &str) -> anyhow::Result<Vec<Value>> {
    let mut text = String::new();
    let read = if file == "-" {
        std::io::stdin().lock().take(MAX_INPUT + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(Path::new(file)).and_then(|f| f.take(MAX_INPUT + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {}", shown(file)))?;
    if text.len() as u64 > MAX_INPUT {
        bail!("{} is larger than 64 MiB: give Flux's CRDs alone", shown(file));
    }
    // Of JSON, which kubectl writes, this reads any amount.
    match serde_json::from_str(&text) {
        Ok(value) => Ok(vec![value]),
        Err(_) => yaml_text::read_all(&text)
            .map_err(|error| anyhow::anyhow!("{} is neither YAML nor JSON: {error}", shown(file))),
    }
}

/// Flux's CRDs among documents, those in lists too.
fn installed(documents: &[Value]) -> Vec<(&'static Definition, Value)> {
    let items = documents.iter().flat_map(|document| match &document["items"] {
        Value::Array(items) => items.as_slice(),
        _ => std::slice::from_ref(document),
    });
    let crds = items.filter_map(|item| {
        let definition = Definition::named(item["metadata"]["name"].as_str()?)?;
        (item["kind"] == "CustomResourceDefinition").then(|| (definition, item.clone()))
    });
    crds.collect()
}
