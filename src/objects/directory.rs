//! Objects from a directory of YAML and JSON files.
