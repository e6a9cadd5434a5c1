//! What tests of several modules here need.

use http::{HeaderMap, HeaderValue};

/// A request's header lines, in this order.
pub(super) fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        map.append(*name, HeaderValue::from_static(value));
    }
    map
}
