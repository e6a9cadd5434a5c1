//! The spec's JSON error bodies (distribution-spec 1.1, "Error Codes").
