//! The `larder` program: crypto provider, command line, exit code.

use std::{io::Write as _, process::ExitCode};

fn main() -> ExitCode {
    // The confined child that becomes a rendering program: it must not open, read or start anything before.
    if std::env::args_os().nth(1).is_some_and(|word| word == larder::apply::confine::WORD) {
        larder::apply::confine::enter();
    }
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        unreachable!("nothing installed a provider before main");
    }
    let arguments = larder::cli::parse();
    match larder::cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody can read it, the exit code still says so.
            let _ = writeln!(std::io::stderr(), "error: {}", larder::cli::explain(&error));
            if larder::cli::is_usage(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
