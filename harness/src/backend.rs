//! Chooses the backend.

use vmm::kvm::{Kvm, OpenError};
use vmm::processors::Backend;
use vmm::soft::Soft;

/// The value of `--backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The best that this host offers.
    Auto,
    /// The software processor.
    Soft,
    /// The host's processor, by KVM.
    Kvm,
}

/// Quality of this host's KVM.
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

    /// The backend for `auto`: KVM if it executes guests natively, otherwise `soft`.
    pub fn best(self, soft: Soft) -> Box<dyn Backend> {
        match self {
            Self::Sound(kvm) => Box::new(kvm),
            Self::Poor(_) | Self::None(_) => Box::new(soft),
        }
    }

    /// The choice of `auto` on this host.
    pub fn best_name(&self) -> &'static str {
        match self {
            Self::Sound(_) => "kvm",
            Self::Poor(_) | Self::None(_) => "soft",
        }
    }
}

/// The backend of that choice, of which `soft` is the software processor. `auto` measures this host's KVM and passes what it found to `measured`. KVM slows device
/// time by `slowdown`, or by what was measured.
pub fn choose(
    choice: Choice,
    soft: Soft,
    slowdown: Option<u32>,
    measured: &dyn Fn(&Found),
) -> Result<Box<dyn Backend>, OpenError> {
    let slowed = |kvm: Kvm| match slowdown {
        Some(slowdown) => kvm.with_slowdown(slowdown),
        None => kvm,
    };
    match choice {
        Choice::Soft => Ok(Box::new(soft)),
        Choice::Kvm => Ok(Box::new(slowed(Kvm::open()?))),
        Choice::Auto => {
            let found = match Found::look() {
                Found::Sound(kvm) => Found::Sound(slowed(kvm)),
                other => other,
            };
            measured(&found);
            Ok(found.best(soft))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_is_had_anywhere_and_auto_always_ends_in_a_backend() {
        let soft = Soft::default();
        assert_eq!(choose(Choice::Soft, soft, None, &|_| {}).unwrap().name(), "soft");
        let best = std::cell::Cell::new("");
        let backend = choose(Choice::Auto, soft, None, &|found| best.set(found.best_name())).unwrap();
        assert_eq!(backend.name(), best.get());
    }
}
