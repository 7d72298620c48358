//! Guest kernels: finds the bootable image for a version or a path.

mod header;
mod locate;
mod symbols;

pub use locate::{cached, kernel_directory};
pub use symbols::Symbols;

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use xxhash_rust::xxh3::xxh3_64;

/// The version that runs by default.
pub const DEFAULT_VERSION: &str = "7.3.4";

/// Largest bzImage that is accepted, in bytes.
const MAX_IMAGE_BYTES: u64 = 256 << 20;
/// Largest System.map that is read, in bytes.
const MAX_MAP_BYTES: u64 = 64 << 20;

/// Why a kernel cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// A version that has not been built.
    #[error(
        "kernel {version} is not built (looked in {directory}): run `images/build {version}` or `make images`"
    )]
    NotBuilt {
        /// The version asked for.
        version: String,
        /// Where it would be.
        directory: PathBuf,
    },
    /// Neither a version nor a file.
    #[error("kernel \"{name}\" is neither a known version ({known}) nor the path of a bzImage")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Versions that are known here.
        known: String,
    },
    /// The file cannot be read.
    #[error("kernel {path}: cannot be read: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file is not a kernel that can be booted.
    #[error("kernel {path}: not a usable bzImage: {reason}")]
    NotBzImage {
        /// Which file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
}

/// A bootable kernel. Its serialised form holds image and symbols, so neither file is needed again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(into = "Saved", from = "Saved")]
pub struct KernelImage {
    /// What was asked for: a version or a path.
    pub name: String,
    /// The bzImage.
    pub path: PathBuf,
    /// Its contents.
    pub image: Arc<Vec<u8>>,
    /// XXH3 (64 bits) of its contents.
    pub hash: u64,
    /// Release in the image's header; empty if it has none.
    pub release: String,
    map_path: Option<PathBuf>,
    symbols: Arc<OnceLock<Option<Symbols>>>,
}

/// A kernel as it is serialised.
#[derive(Serialize, Deserialize)]
struct Saved {
    name: String,
    path: PathBuf,
    image: Vec<u8>,
    release: String,
    /// Text of its System.map.
    symbols: Option<String>,
}

impl From<KernelImage> for Saved {
    fn from(kernel: KernelImage) -> Self {
        Self {
            symbols: kernel.symbols().map(|symbols| symbols.text().to_owned()),
            name: kernel.name,
            path: kernel.path,
            image: kernel.image.as_ref().clone(),
            release: kernel.release,
        }
    }
}

impl From<Saved> for KernelImage {
    fn from(saved: Saved) -> Self {
        Self {
            name: saved.name,
            path: saved.path,
            // Compute the hash anew, because one stored beside the image could be wrong.
            hash: xxh3_64(&saved.image),
            image: Arc::new(saved.image),
            release: saved.release,
            map_path: None,
            symbols: Arc::new(OnceLock::from(saved.symbols.map(Symbols::parse))),
        }
    }
}

impl KernelImage {
    /// A kernel without files, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn in_memory(name: &str, symbols: &str) -> Self {
        Self::from(Saved {
            name: name.into(),
            path: name.into(),
            image: name.into(),
            release: name.into(),
            symbols: Some(symbols.into()),
        })
    }

    /// Finds and reads the kernel `name`: a version of `images/kernels.toml` (built already), or the path of a bzImage.
    pub fn resolve(name: &str) -> Result<Self, KernelError> {
        let path = locate::locate(name)?;
        let image = read(&path)?;
        let release = header::release(&image).map_err(|reason| KernelError::NotBzImage {
            path: path.clone(),
            reason,
        })?;
        Ok(Self {
            name: name.to_owned(),
            hash: xxh3_64(&image),
            image: Arc::new(image),
            release,
            map_path: locate::system_map(&path),
            path,
            symbols: Arc::default(),
        })
    }

    /// Symbol and offset of a kernel address, such as `clear_page_erms+0x7`; `None` without a System.map, which is
    /// read at the first call.
    pub fn symbol(&self, address: u64) -> Option<String> {
        self.symbols()?.lookup(address)
    }

    /// Address of a kernel symbol; `None` without a System.map or if it lacks the symbol.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.symbols()?.address(name)
    }

    fn symbols(&self) -> Option<&Symbols> {
        let load = || Symbols::load(self.map_path.as_deref()?, MAX_MAP_BYTES);
        self.symbols.get_or_init(load).as_ref()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    let unreadable = |reason: String| KernelError::Unreadable {
        path: path.into(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|e| unreadable(e.to_string()))?
        .len();
    if size > MAX_IMAGE_BYTES {
        return Err(unreadable(format!(
            "{size} bytes, expected at most {MAX_IMAGE_BYTES}"
        )));
    }
    std::fs::read(path).map_err(|e| unreadable(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_kernel_says_what_is_known() {
        let message = KernelImage::resolve("7.no.such").unwrap_err().to_string();
        assert!(
            message.contains("7.no.such") && message.contains("bzImage"),
            "{message}"
        );
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0; 4096]).unwrap();
        let message = KernelImage::resolve(&file.path().display().to_string())
            .unwrap_err()
            .to_string();
        assert!(message.contains("not a usable bzImage"), "{message}");
    }
}
