//! Which kinds the API server knows. One list a group and version, kept until a kind is missed in it, or is not served where
//! it says.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Deserialize;

use super::{
    api::{Api, CallError, Resource},
    error::ApplyError,
};
use crate::apply::object::Id;

type Known = Arc<HashMap<String, Arc<Resource>>>;

/// The kinds by group and version.
#[derive(Default)]
pub struct Kinds(Mutex<HashMap<(String, String), Known>>);

impl Kinds {
    /// A kind; `None` if the server does not know it now.
    pub async fn find(
        &self,
        api: &Api,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Result<Option<Arc<Resource>>, CallError> {
        let place = (group.to_owned(), version.to_owned());
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&place).cloned();
        if let Some(resource) = known.and_then(|known| known.get(kind).cloned()) {
            return Ok(Some(resource));
        }
        let path = match group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        let listed: Listed = match api.document(&path).await {
            Ok(listed) => listed,
            Err(error) if error.is_not_found() => Listed::default(),
            Err(error) => return Err(error),
        };
        let main = listed.resources.into_iter().filter(|r| !r.name.contains('/'));
        let known: Known = Arc::new(
            main.map(|found| {
                let resource = Resource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    kind: found.kind.clone(),
                    plural: found.name,
                    namespaced: found.namespaced,
                };
                (found.kind, Arc::new(resource))
            })
            .collect(),
        );
        let resource = known.get(kind).cloned();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place, known);
        Ok(resource)
    }

    /// Asks again about the kinds of a group when one of them is wanted: what is known of one has turned out to be wrong.
    pub fn forget(&self, group: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _), _| known != group);
    }

    /// The same where an error says that a kind is not served as it was known to be.
    pub fn doubt(&self, error: &ApplyError) {
        if let Some(group) = error.unserved() {
            self.forget(group);
        }
    }

    /// A kind in the version that an inventory has, or, where that is served no more, in one that is: its objects are the same.
    pub async fn find_any(&self, api: &Api, id: &Id) -> Result<Option<Arc<Resource>>, CallError> {
        let found = self.find(api, &id.group, &id.version, &id.kind).await?;
        if found.is_some() || id.group.is_empty() {
            return Ok(found);
        }
        let group: Group = match api.document(&format!("/apis/{}", id.group)).await {
            Ok(group) => group,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        for Version { version } in group.versions {
            if let Some(found) = self.find(api, &id.group, &version, &id.kind).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[derive(Deserialize)]
struct Group {
    versions: Vec<Version>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Default, Deserialize)]
struct Listed {
    resources: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    name: String,
    kind: String,
    namespaced: bool,
}
