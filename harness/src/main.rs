//! The baton program.
fn main() {
    eprintln!("baton: nothing can be run yet");
    std::process::exit(3);
}
