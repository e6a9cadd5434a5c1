//! The way through the program: a working copy of the artifact, the kustomization that Flux would write into it
//! (fluxcd/pkg `kustomize` generator), and what the program makes of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    documents, emit, program,
    reach::{self, is_remote},
    render::{RenderError, Request, build_time},
    tree::{self, Manifests},
    yaml::Budget,
};
use crate::objects::{KustomizationSpec, kustomization::Image};

/// A folder of one run, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Self, RenderError> {
        let path = parent.join(format!("render-{:016x}", fastrand::u64(..)));
        let unable = |source| RenderError::Disk { path: path.clone(), source };
        fs::create_dir(&path).map_err(unable)?;
        // Landlock and the program's messages know the real name.
        let path = fs::canonicalize(&path).map_err(unable)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is cleared by the scratch folder's owner at the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds `folder` of the artifact by the program. `manifests` are its resources if it has no kustomization file.
pub fn build(request: &Request<'_>, folder: &Path, manifests: Option<&Manifests>) -> Result<Vec<Value>, RenderError> {
    let relative = folder.strip_prefix(&request.root).unwrap_or(Path::new(""));
    let existing = tree::kustomization_file(folder);
    let map = match (&existing, manifests) {
        (Some(file), _) => {
            let shown = file.strip_prefix(&request.root).unwrap_or(file);
            let mut map = reach::read(file, shown, &mut Budget::default())?;
            // Flux does this so that a kustomization of generators alone is not taken for an empty one.
            if map.get("resources").is_none_or(|r| r.as_array().is_some_and(Vec::is_empty) || r.is_null()) {
                map.insert("buildMetadata".into(), json!(["originAnnotations"]));
            }
            map
        }
        (None, Some(manifests)) => generated(folder, manifests)?,
        (None, None) => Map::new(),
    };
    let shown = relative.join(existing.as_deref().and_then(Path::file_name).unwrap_or("kustomization.yaml".as_ref()));
    let map = extended(map, request.spec, folder, &shown)?;
    reach::judge(&request.root, relative, &map)?;

    let scratch = Scratch::new(&request.scratch)?;
    let copy = scratch.0.join("tree");
    tree::copy(&request.root, &copy)?;
    let file = copy.join(&shown);
    let unable = |source| RenderError::Disk { path: file.clone(), source };
    if existing.is_some() {
        // The copy has the original's mode, which may forbid writing.
        fs::remove_file(&file).map_err(unable)?;
    }
    fs::write(&file, emit::mapping(map)).map_err(unable)?;

    let place = program::Workspace { tree: &copy, own: &scratch.0 };
    let output = program::build(request, &place, &copy.join(relative), build_time(request.spec))?;
    documents::parse(&output, "the output of kustomize", &mut Budget::default())
}

/// The kustomization of a plain folder.
fn generated(folder: &Path, manifests: &Manifests) -> Result<Map<String, Value>, RenderError> {
    let mut resources = Vec::new();
    for path in &manifests.resources {
        let relative = path.strip_prefix(folder).unwrap_or(path);
        let text = relative.to_str().ok_or_else(|| RenderError::Manifest {
            place: relative.display().to_string(),
            why: "its name is not UTF-8".into(),
            hint: "rename it",
        })?;
        resources.push(Value::String(format!("./{text}")));
    }
    let mut map = Map::new();
    if resources.is_empty() {
        // kustomize takes one with no field for an empty file, which is an error.
        map.insert("namespace".into(), "_placeholder".into());
    } else {
        map.insert("resources".into(), resources.into());
    }
    Ok(map)
}

/// `map` with what the spec asks for besides. Unknown fields stay.
fn extended(
    mut map: Map<String, Value>,
    spec: &KustomizationSpec,
    folder: &Path,
    shown: &Path,
) -> Result<Map<String, Value>, RenderError> {
    for (name, value) in [("apiVersion", "kustomize.config.k8s.io/v1beta1"), ("kind", "Kustomization")] {
        map.entry(name).or_insert_with(|| value.into());
    }
    for (name, value) in
        [("namespace", &spec.target_namespace), ("namePrefix", &spec.name_prefix), ("nameSuffix", &spec.name_suffix)]
    {
        if let Some(value) = value.as_deref().filter(|text| !text.is_empty()) {
            map.insert(name.into(), value.into());
        }
    }
    for patch in &spec.patches {
        let mut entry = Map::new();
        for field in ["patch", "target"] {
            if let Some(value) = patch.get(field) {
                entry.insert(field.into(), value.clone());
            }
        }
        list(&mut map, "patches", shown)?.push(Value::Object(entry));
    }
    for component in &spec.components {
        let absolute = Path::new(component).is_absolute();
        if absolute || is_remote(component) {
            return Err(RenderError::Field {
                field: "components",
                why: format!(
                    "component path {:?} must be local and relative",
                    component.chars().take(80).collect::<String>()
                ),
            });
        }
        if spec.ignore_missing_components && !folder.join(component).exists() {
            continue;
        }
        list(&mut map, "components", shown)?.push(component.as_str().into());
    }
    for image in &spec.images {
        merge_image(list(&mut map, "images", shown)?, image);
    }
    if !spec.build_metadata.is_empty() {
        map.insert("buildMetadata".into(), spec.build_metadata.clone().into());
    }
    Ok(map)
}

fn list<'m>(map: &'m mut Map<String, Value>, name: &str, shown: &Path) -> Result<&'m mut Vec<Value>, RenderError> {
    let value = map.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().ok_or_else(|| RenderError::Kustomization {
        file: shown.display().to_string(),
        why: format!("{name} is not a list"),
    })
}

/// Into the entry of the same name, where tag and digest change as one.
fn merge_image(images: &mut Vec<Value>, image: &Image) {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty()).map(Value::String);
    let (name, tag, digest) = (given(&image.new_name), given(&image.new_tag), given(&image.digest));
    let place = match images.iter().position(|entry| entry.get("name").is_some_and(|n| n == image.name.as_str())) {
        Some(place) => place,
        None => {
            images.push(json!({"name": image.name}));
            images.len() - 1
        }
    };
    let Some(entry) = images[place].as_object_mut() else { return };
    if let Some(name) = name {
        entry.insert("newName".into(), name);
    }
    if tag.is_some() || digest.is_some() {
        for (field, value) in [("newTag", tag), ("digest", digest)] {
            match value {
                Some(value) => entry.insert(field.into(), value),
                None => entry.remove(field),
            };
        }
    }
}

/// `spec.images`, entries of one name merged as they would be in a generated kustomization.
pub fn merged_images(spec: &KustomizationSpec) -> Vec<Image> {
    let mut images = Vec::new();
    for image in &spec.images {
        merge_image(&mut images, image);
    }
    let text = |entry: &Value, field: &str| entry.get(field).and_then(Value::as_str).map(str::to_owned);
    let image = |entry: &Value| Image {
        name: text(entry, "name").unwrap_or_default(),
        new_name: text(entry, "newName"),
        new_tag: text(entry, "newTag"),
        digest: text(entry, "digest"),
    };
    images.iter().map(image).collect()
}
