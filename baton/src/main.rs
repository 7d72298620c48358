//! The `baton` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    // A reader that has seen enough, as of `baton doctor | head`, ends the program and is no fault of it.
    sigpipe::reset();
    baton::cli::main()
}
