//! Names of entries, cleaned: the one place where a name is judged.

use std::fmt;

use super::{MAX_COMPONENT, MAX_DEPTH};

/// A cleaned name.
pub struct Clean {
    /// The name without `./`, `//` and a slash at its end.
    pub path: Box<str>,
    /// Whether it was clean as written; a leading `./` is fine, a slash at the end too.
    pub as_written: bool,
}

/// Why a name cannot be used.
#[derive(Debug)]
pub enum Unclean {
    /// It must not be unpacked.
    Refused(&'static str),
    /// It is over a cap.
    Limit(String),
}

impl fmt::Display for Unclean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::Limit(why) => write!(f, "it {why}"),
        }
    }
}

/// Cleans a name: relative, below the root, no backslash, no zero, UTF-8, within the caps. The root is `""`.
pub fn clean(name: &[u8]) -> Result<Clean, Unclean> {
    let refused = |why| Err(Unclean::Refused(why));
    let Ok(text) = str::from_utf8(name) else { return refused("its name is not UTF-8") };
    if text.is_empty() {
        return refused("its name is empty");
    }
    if text.starts_with('/') {
        return refused("its name is absolute");
    }
    if text.contains('\\') {
        return refused("its name has a backslash");
    }
    if text.contains('\0') {
        return refused("its name has a zero byte");
    }
    let body = text.strip_suffix('/').unwrap_or(text);
    let body = body.strip_prefix("./").unwrap_or(if body == "." { "" } else { body });
    let mut depth = 0;
    let mut as_written = true;
    for component in body.split('/') {
        match component {
            ".." => return refused("its name has a component .."),
            "" | "." => as_written &= body.is_empty(),
            _ => depth += 1,
        }
        if component.len() > MAX_COMPONENT {
            return Err(Unclean::Limit(format!(
                "has a component of {} bytes, the cap is {MAX_COMPONENT}",
                component.len()
            )));
        }
    }
    if depth > MAX_DEPTH {
        return Err(Unclean::Limit(format!("has {depth} components, the cap is {MAX_DEPTH}")));
    }
    let path = if as_written {
        body.into()
    } else {
        let parts: Vec<&str> = body.split('/').filter(|c| !matches!(*c, "" | ".")).collect();
        parts.join("/").into()
    };
    Ok(Clean { path, as_written })
}
