//! The `larder` program: crypto provider, command line, exit code.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // The confined child that runs a rendering program comes first: it must not open, read or start anything else.
    if let Some(code) = larder::apply::confine::enter_if_asked(std::env::args_os()) {
        return code;
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        unreachable!("nothing installed a provider before main");
    }
    let arguments = larder::cli::Arguments::parse();
    match larder::cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
