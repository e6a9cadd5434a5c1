//! What an operator tells the mirror through the admin listener: `POST /v1/forget`, `/v1/prefetch`, `/v1/pin` and
//! `DELETE /v1/pin`, each with `?ref=`, the middle two with `platform=os/architecture[/variant]` any number of times or
//! `platform=all`.

use http::{Method, StatusCode};

use super::query::Query;
use crate::{class::Class, mirror::Platforms, oci::Reference};

/// An order for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub what: What,
    /// Which image: with a tag or a digest.
    pub reference: Reference,
}

/// What to do with an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Forget where its tag leads: `{"forgotten":bool}`.
    Forget,
    /// Fetch it for these platforms: what is held of it.
    Prefetch(Platforms),
    /// Fetch it and keep it from eviction: what is held of it.
    Pin(Platforms),
    /// Let it go again: `{"removed":bool}`.
    Unpin,
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderFailure {
    /// The class of failure.
    pub class: Class,
    /// What failed, where, and why.
    pub message: String,
}

/// The most platforms of one order.
const MAX_PLATFORMS: usize = 16;

/// The path's methods, where it is an order's.
pub(super) fn methods(path: &str) -> Option<&'static str> {
    match path {
        "/v1/forget" | "/v1/prefetch" => Some("POST"),
        "/v1/pin" => Some("POST, DELETE"),
        _ => None,
    }
}

/// The order that a request is; the message for a person where it is none.
pub(super) fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Order, String> {
    let query = Query::parse(query).map_err(|error| error.to_string())?;
    let text = query.get("ref").map_err(|error| error.to_string())?.unwrap_or_default();
    let reference = Reference::parse(text).map_err(|error| format!("ref {text:?}: {error}"))?;
    if reference.selector.is_none() {
        return Err(format!("ref {text:?}: it has neither a tag nor a digest"));
    }
    let platforms = platforms(query.all("platform").collect())?;
    let what = match path {
        "/v1/forget" => What::Forget,
        "/v1/prefetch" => What::Prefetch(platforms),
        _ if *method == Method::DELETE => What::Unpin,
        _ => What::Pin(platforms),
    };
    Ok(Order { what, reference })
}

fn platforms(asked: Vec<&str>) -> Result<Platforms, String> {
    if asked.len() > MAX_PLATFORMS {
        return Err(format!("more than {MAX_PLATFORMS} platforms: ask for platform=all"));
    }
    match asked[..] {
        [] => Ok(Platforms::Own),
        ["all"] => Ok(Platforms::All),
        _ => {
            let named = |text: &&str| {
                (2..=3).contains(&text.split('/').count()) && text.split('/').all(|part| !part.is_empty())
            };
            match asked.iter().find(|text| !named(text)) {
                Some(wrong) => Err(format!("platform {wrong:?}: write os/architecture[/variant], or all alone")),
                None => Ok(Platforms::These(asked.into_iter().map(str::to_owned).collect())),
            }
        }
    }
}

/// The status for a failure: the upstream's own word as far as a caller here can do something about it.
pub(super) fn status(class: Class) -> StatusCode {
    match class {
        Class::NotFound => StatusCode::NOT_FOUND,
        Class::Client | Class::Spec => StatusCode::BAD_REQUEST,
        Class::Net | Class::Rate | Class::Disk => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_its_path_its_image_and_its_platforms() {
        let these = |all: &[&str]| Platforms::These(all.iter().map(|p| (*p).to_owned()).collect());
        for (method, path, query, expected) in [
            (Method::POST, "/v1/forget", "ref=ghcr.io/a/b:v1", Some(What::Forget)),
            (Method::POST, "/v1/prefetch", "ref=ghcr.io/a/b:v1", Some(What::Prefetch(Platforms::Own))),
            (Method::POST, "/v1/prefetch", "ref=ghcr.io/a/b:v1&platform=all", Some(What::Prefetch(Platforms::All))),
            (
                Method::POST,
                "/v1/pin",
                "ref=ghcr.io%2Fa%2Fb%3Av1&platform=linux/arm/v7&platform=linux/amd64",
                Some(What::Pin(these(&["linux/arm/v7", "linux/amd64"]))),
            ),
            (Method::DELETE, "/v1/pin", "ref=ghcr.io/a/b:v1", Some(What::Unpin)),
            (Method::POST, "/v1/forget", "", None),
            (Method::POST, "/v1/forget", "ref=ghcr.io/a/b", None),
            (Method::POST, "/v1/forget", "ref=ghcr.io/a/b:v1&ref=ghcr.io/a/c:v1", None),
            (Method::POST, "/v1/forget", "ref=https://ghcr.io/a/b:v1", None),
            (Method::POST, "/v1/prefetch", "ref=ghcr.io/a/b:v1&platform=linux", None),
            (Method::POST, "/v1/prefetch", "ref=ghcr.io/a/b:v1&platform=all&platform=linux/amd64", None),
            (Method::POST, "/v1/prefetch", "ref=ghcr.io/a/b:v1&platform=linux//v7", None),
        ] {
            let order = parse(&method, path, Some(query)).ok();
            assert_eq!(order.as_ref().map(|order| order.what.clone()), expected, "{path}?{query}");
            if let Some(order) = order {
                assert_eq!(order.reference.to_string(), "ghcr.io/a/b:v1");
            }
        }
    }
}
