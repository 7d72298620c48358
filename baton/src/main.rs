//! The `baton` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // Restores SIGPIPE's default action: in `baton doctor | head` the program ends silently when head closes the pipe.
    sigpipe::reset();
    baton::cli::main()
}
