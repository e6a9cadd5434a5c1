//! Packing a directory or file for `larder push`.
