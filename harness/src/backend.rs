//! Choosing what executes guest code, and saying why.

use std::fmt;
use vmm::backend::Soft;
use vmm::kvm::{Kvm, OpenError};
use vmm::processors::Backend;

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The best that this host offers.
    Auto,
    /// The software processor.
    Soft,
    /// The host's processor, by KVM.
    Kvm,
}

/// What this host's KVM is good for.
#[derive(Debug)]
pub enum Found {
    /// It executes guest kernels natively.
    Sound(Kvm),
    /// It emulates them, or needs workarounds for another reason.
    Poor(Kvm),
    /// There is none, or it cannot be used.
    None(OpenError),
}

impl Found {
    /// Opens and measures the host's KVM.
    pub fn look() -> Self {
        match Kvm::open() {
            Ok(kvm) if kvm.workarounds().count() == 0 => Self::Sound(kvm),
            Ok(kvm) => Self::Poor(kvm),
            Err(error) => Self::None(error),
        }
    }

    /// The backend for `auto`: KVM where it is sound.
    pub fn best(self) -> Box<dyn Backend> {
        match self {
            Self::Sound(kvm) => Box::new(kvm),
            Self::Poor(_) | Self::None(_) => Box::new(Soft),
        }
    }

    /// What `auto` takes here.
    pub fn best_name(&self) -> &'static str {
        match self {
            Self::Sound(_) => "kvm",
            Self::Poor(_) | Self::None(_) => "soft",
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sound(kvm) => write!(
                f,
                "available, runs guest kernels at {} without workarounds",
                speed(kvm.measured().kernel_speed)
            ),
            Self::Poor(kvm) => {
                let emulates = if kvm.workarounds().emulated_kernel {
                    "emulates guest kernel code"
                } else {
                    "runs guest kernel code"
                };
                let count = kvm.workarounds().count();
                let workarounds = if count == 1 { "workaround" } else { "workarounds" };
                write!(
                    f,
                    "KVM here {emulates} at {} and needs {count} {workarounds}",
                    speed(kvm.measured().kernel_speed)
                )
            }
            Self::None(error) => write!(f, "not available: {error}"),
        }
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

/// The backend of that choice. `note` is told what `auto` made of the host.
pub fn choose(choice: Choice, note: &dyn Fn(&str)) -> Result<Box<dyn Backend>, OpenError> {
    match choice {
        Choice::Soft => Ok(Box::new(Soft)),
        Choice::Kvm => Ok(Box::new(Kvm::open()?)),
        Choice::Auto => {
            let found = Found::look();
            note(&format!("backend {}: {found}", found.best_name()));
            Ok(found.best())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_is_had_anywhere_and_auto_always_ends_in_a_backend() {
        assert_eq!(choose(Choice::Soft, &|_| {}).unwrap().name(), "soft");
        let said = std::cell::RefCell::new(String::new());
        let backend = choose(Choice::Auto, &|text| *said.borrow_mut() = text.to_owned()).unwrap();
        assert!(said.borrow().contains(backend.name()), "{}", said.borrow());
    }

    #[test]
    fn speeds_read_well() {
        assert_eq!(speed(1_130_000.0), "1.1 M instructions/s");
        assert_eq!(speed(1.26e9), "1.3 G instructions/s");
    }
}
