//! source_ignore
