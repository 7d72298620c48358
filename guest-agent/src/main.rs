//! PID 1 of the guest.
fn main() {
    eprintln!("agent: not built yet");
    std::process::exit(1);
}
