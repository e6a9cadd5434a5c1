//! Integration tests of the library and the binary, in one binary.

mod server;
