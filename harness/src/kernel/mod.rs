//! Guest kernels: finds the bootable image for a version or a path.

mod elf;
mod fit;
mod header;
mod locate;
mod symbols;

pub use fit::{Fit, RunningKernel};
pub(crate) use locate::beside;
pub use locate::{build_script, cached, kernel_directory};
pub use symbols::Symbols;

use serde::{Deserialize, Serialize};
use std::io::Read;
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
    #[error("kernel {version} is not built (looked in {directory}): run `baton kernel build {version}`")]
    NotBuilt {
        /// The version asked for.
        version: String,
        /// Where it would be.
        directory: PathBuf,
    },
    /// Neither a version nor a file.
    #[error(
        "kernel \"{name}\" is neither a known version ({known}) nor the path of a bzImage or of a build directory"
    )]
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
    /// Its symbol file lacks a symbol that the scenario names.
    #[error("kernel {path}: no symbol {symbol} in its System.map or vmlinux{}", if *.known { "" } else { ", which was not found" })]
    NoSymbol {
        /// Which bzImage.
        path: PathBuf,
        /// The symbol.
        symbol: String,
        /// Whether there is such a file.
        known: bool,
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
    map_path: Option<PathBuf>,
    /// Text of its System.map, and the build id beside it.
    symbols: Option<(String, Option<String>)>,
}

impl From<KernelImage> for Saved {
    fn from(kernel: KernelImage) -> Self {
        Self {
            symbols: kernel
                .symbols()
                .map(|symbols| (symbols.text().to_owned(), symbols.build_id().map(str::to_owned))),
            map_path: kernel.map_path,
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
            map_path: saved.map_path,
            symbols: Arc::new(OnceLock::from(saved.symbols.map(|(text, build_id)| {
                let symbols = Symbols::parse(text);
                match build_id {
                    Some(build_id) => symbols.with_build_id(build_id),
                    None => symbols,
                }
            }))),
        }
    }
}

impl KernelImage {
    /// A kernel of which only the name is known, for a plan that nobody runs.
    pub(crate) fn named(name: &str) -> Self {
        Self::from(Saved {
            name: name.into(),
            path: name.into(),
            image: Vec::new(),
            release: String::new(),
            map_path: None,
            symbols: None,
        })
    }

    /// A kernel without files, for tests.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn in_memory(name: &str, symbols: &str) -> Self {
        Self::from(Saved {
            name: name.into(),
            path: name.into(),
            image: name.into(),
            release: name.into(),
            map_path: None,
            symbols: Some((symbols.into(), None)),
        })
    }

    /// Finds and reads the kernel `name`: a version or series that is built, the path of a bzImage, or that of a folder
    /// that a kernel was built in.
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
            map_path: locate::symbol_file(&path),
            path,
            symbols: Arc::default(),
        })
    }

    /// Symbol and offset of an address in a kernel that ran, such as `clear_page_erms+0x7`; `None` if the symbol file
    /// does not fit it, or has no symbol there.
    pub fn symbol(&self, fit: &Fit, address: u64) -> Option<String> {
        self.symbols()?.lookup(address.checked_sub(fit.offset()?)?)
    }

    /// Address of a symbol in a kernel that runs; `None` if the symbol file does not fit it, or lacks the symbol.
    pub fn address_of(&self, fit: &Fit, name: &str) -> Option<u64> {
        self.symbols()?.address(name)?.checked_add(fit.offset()?)
    }

    /// Address of a symbol as the kernel was linked; `None` if it has no symbol file, or that lacks the symbol.
    pub fn linked_address(&self, name: &str) -> Option<u64> {
        self.symbols()?.address(name)
    }

    /// Whether, and at which offset, the symbol file fits a kernel that runs. The file is read at the first call.
    pub fn fit(&self, kernel: &RunningKernel<'_>) -> Fit {
        let Some(symbols) = self.symbols() else {
            return Fit::Unknown;
        };
        match fit::offset(symbols, &header::version(&self.image), kernel) {
            Ok(offset) => Fit::At(offset),
            Err(reason) => Fit::Refused {
                file: self.map_path.clone().unwrap_or_default(),
                reason,
            },
        }
    }

    /// The same; the error says what is missing.
    pub(crate) fn require_symbol(&self, name: &str) -> Result<u64, KernelError> {
        let missing = || KernelError::NoSymbol {
            path: self.path.clone(),
            symbol: name.to_owned(),
            known: self.symbols().is_some(),
        };
        self.linked_address(name).ok_or_else(missing)
    }

    /// Reads the symbol file now. Otherwise it is read when a symbol is wanted, which a confined process cannot do.
    pub fn read_symbols(&self) {
        self.symbols();
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
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
    let size = file.metadata().map_err(|e| unreadable(e.to_string()))?.len();
    let mut image = Vec::new();
    let read = (&file).take(MAX_IMAGE_BYTES.min(size)).read_to_end(&mut image);
    read.map_err(|e| unreadable(e.to_string()))?;
    // A vmlinux with debug information is larger than any image.
    if size > MAX_IMAGE_BYTES && !header::is_elf(&image) {
        return Err(unreadable(format!(
            "{size} bytes, expected at most {MAX_IMAGE_BYTES}"
        )));
    }
    Ok(image)
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
        std::fs::write(file.path(), b"\x7fELF\x02\x01").unwrap();
        let message = KernelImage::resolve(&file.path().display().to_string())
            .unwrap_err()
            .to_string();
        assert!(message.contains("give arch/x86/boot/bzImage"), "{message}");
    }

    #[test]
    fn symbols_that_were_read_need_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let (image, map) = (folder.path().join("bzImage"), folder.path().join("System.map"));
        std::fs::write(&image, crate::testing::bzimage(&[0xeb, 0xfe])).unwrap();
        std::fs::write(&map, "ffffffff81000000 T _text\n").unwrap();
        let kernel = || KernelImage::resolve(&image.display().to_string()).unwrap();
        let (read, unread) = (kernel(), kernel());
        read.read_symbols();
        std::fs::remove_file(&map).unwrap();
        assert_eq!(read.linked_address("_text"), Some(0xffff_ffff_8100_0000));
        assert_eq!(unread.linked_address("_text"), None);
    }
}
