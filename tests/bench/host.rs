//! The machine that is measured on.

use serde::Serialize;

/// What the machine is.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Machine {
    /// Processor model.
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
    /// Release of the host's kernel.
    pub kernel: String,
}

/// Describes this machine; unknown fields are empty.
pub fn machine() -> Machine {
    let processor = cpuinfo("model name").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(1, Into::into);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned();
    Machine {
        processor,
        processors,
        kernel,
    }
}

/// Average number of runnable tasks over the last minute.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}

/// The processor's frequency in kHz.
pub fn processor_khz() -> Option<u64> {
    let (mhz, fraction) = cpuinfo("cpu MHz")?
        .split_once('.')
        .map(|(whole, part)| (whole.to_owned(), part.to_owned()))?;
    Some(mhz.parse::<u64>().ok()? * 1000 + fraction.get(..3)?.parse::<u64>().ok()?)
}

/// Memory that can be used without taking it from others, in bytes.
pub fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn cpuinfo(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
