//! What this host's KVM is good for, in words.

use harness::backend::Found;

/// One line on the host's KVM: whether it can be used, how fast it executes kernel code and how many workarounds it
/// needs.
pub fn kvm(found: &Found) -> String {
    match found {
        Found::Sound(kvm) => format!(
            "available, runs guest kernels at {} without workarounds{}",
            speed(kvm.measured().kernel_speed),
            slowed(kvm.workarounds().slowdown)
        ),
        Found::Poor(kvm) => {
            let emulates = if kvm.workarounds().emulated_kernel {
                "emulates guest kernel code"
            } else {
                "runs guest kernel code"
            };
            let count = kvm.workarounds().count();
            let workarounds = if count == 1 { "workaround" } else { "workarounds" };
            format!(
                "KVM here {emulates} at {} and needs {count} {workarounds}{}",
                speed(kvm.measured().kernel_speed),
                slowed(kvm.workarounds().slowdown)
            )
        }
        Found::None(error) => format!("KVM is not available: {error}"),
    }
}

/// What follows from a slow processor, if it is one.
fn slowed(slowdown: u32) -> String {
    if slowdown > 1 {
        format!("; device time is slowed {slowdown} times (--slowdown sets another factor)")
    } else {
        String::new()
    }
}

/// Instructions per second for people.
fn speed(per_second: f64) -> String {
    if per_second >= 1e9 {
        format!("{:.1} G instructions/s", per_second / 1e9)
    } else {
        format!("{:.1} M instructions/s", per_second / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_goes_without_saying() {
        assert_eq!(slowed(1), "");
        assert!(slowed(25).contains("slowed 25 times"));
    }

    #[test]
    fn speeds_read_well() {
        assert_eq!(speed(1_130_000.0), "1.1 M instructions/s");
        assert_eq!(speed(1.26e9), "1.3 G instructions/s");
    }
}
