//! Time from `baton run` to the first guest instruction, with a real kernel image whose first instructions power the
//! machine off.
//!
//! Everything before is as in any run: the program starts, reads scenario and kernels, opens and measures KVM if
//! requested, builds the initramfs with the next kernel in it, and loads the kernel. The time ends when the program
//! reports the end of the first phase, a few instructions later.

use crate::exits::power_off;
use crate::samples::Spread;
use harness::plan::Plan;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What the program says then.
const PASSED: &str = "boot-old of generation 0 passed";
/// Offset of the number of setup sectors (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
/// Offset of the 64-bit entry point behind the setup part.
const ENTRY: usize = 0x200;

/// The files of a start, which can be measured repeatedly.
#[derive(Debug)]
pub struct Start {
    program: PathBuf,
    scenario: PathBuf,
    kernel: PathBuf,
    next_kernel: PathBuf,
}

impl Start {
    /// Writes the kernel into `work`.
    pub fn prepare(program: &Path, scenario: &Path, plan: &Plan, work: &Path) -> Result<Self, String> {
        let image = switched_off(&plan.old_kernel.image)?;
        let kernel = work.join("power-off");
        std::fs::write(&kernel, image).map_err(|error| format!("{}: {error}", kernel.display()))?;
        Ok(Self {
            program: program.to_owned(),
            scenario: scenario.to_owned(),
            kernel,
            next_kernel: plan.kernel(1).path.clone(),
        })
    }

    /// Seconds, of `runs` runs and one before them.
    pub fn measure(&self, backend: &str, runs: u32) -> Result<Option<Spread>, String> {
        let seconds: Result<Vec<f64>, String> = (0..=runs).map(|_| self.once(backend)).collect();
        Ok(Spread::of(seconds?.into_iter().skip(1)))
    }

    fn once(&self, backend: &str) -> Result<f64, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.program.display());
        let begin = Instant::now();
        let mut child = Command::new(&self.program)
            .arg("run")
            .arg(&self.scenario)
            .args(["--backend", backend, "--kernel"])
            .arg(&self.kernel)
            .arg("--next-kernel")
            .arg(&self.next_kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (mut seconds, mut said) = (None, String::new());
        // Read to the end, so that a full pipe does not block the program.
        for line in BufReader::new(child.stderr.take().ok_or("no standard error")?).lines() {
            let line = line.map_err(failed)?;
            if seconds.is_none() && line.contains(PASSED) {
                seconds = Some(begin.elapsed().as_secs_f64());
            }
            said = line;
        }
        child.wait().map_err(failed)?;
        seconds.ok_or_else(|| format!("{} on {backend}: {said}", self.program.display()))
    }
}

/// This image with code at its entry point that powers the machine off.
fn switched_off(image: &[u8]) -> Result<Vec<u8>, String> {
    let mut image = image.to_vec();
    let sectors = image.get(SETUP_SECTS).copied().unwrap_or(0);
    let entry = (usize::from(sectors) + 1) * 512 + ENTRY;
    let code = power_off();
    let room = image.get_mut(entry..entry + code.len());
    room.ok_or("the kernel image ends before its entry point")?
        .copy_from_slice(&code);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_point_is_found() {
        let image = ::tests::image::bzimage(::tests::image::SPIN);
        let changed = switched_off(&image).unwrap();
        assert_eq!(&changed[1024 + ENTRY..][..power_off().len()], power_off());
        assert_eq!(changed.len(), image.len());
        assert!(switched_off(&image[..1024]).is_err());
    }
}
