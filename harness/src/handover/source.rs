//! Reads model files, and what `baton blob extract` has made.

use super::{Image, ImageError, Model};
use crate::scenario::{Bytes, ScenarioError, wrong_at};
use std::path::{Path, PathBuf};

/// Name of the model in an extracted directory.
pub const MODEL: &str = "model.toml";
/// Name of the pages: an image of RAM with zeroes everywhere else, packed with zstd.
pub const PAGES: &str = "pages.img.zst";
/// Largest model file, in bytes.
const MAX_MODEL: u64 = 64 << 20;

/// A model, and the memory that it hands over, if that is known.
#[derive(Debug)]
pub struct Source {
    /// The model.
    pub model: Model,
    /// The pages.
    pub pages: Option<Image>,
}

/// Why a model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The operating system refused to open or read a file.
    #[error("{}: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A file is not of the expected kind.
    #[error("{}: {reason}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The model's text is wrong.
    #[error(transparent)]
    Text(ScenarioError),
}

impl Source {
    /// Reads a model file, or a directory that has a model and pages.
    pub fn load(path: &Path) -> Result<Self, SourceError> {
        if !path.is_dir() {
            return Ok(Self {
                model: load(path)?,
                pages: None,
            });
        }
        let file = path.join(PAGES);
        let pages = Image::open(&file).map_err(|error| match error {
            ImageError::Unreadable(error) => unreadable(&file, &error),
            ImageError::Wrong(reason) => SourceError::Wrong {
                file: file.clone(),
                reason,
            },
        })?;
        Ok(Self {
            model: load(&path.join(MODEL))?,
            pages: Some(pages),
        })
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> SourceError {
    SourceError::Unreadable {
        file: file.to_owned(),
        reason: error.to_string(),
    }
}

fn load(path: &Path) -> Result<Model, SourceError> {
    let wrong = |reason: String| SourceError::Wrong {
        file: path.to_owned(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|error| unreadable(path, &error))?
        .len();
    if size > MAX_MODEL {
        let (size, most) = (Bytes(size), Bytes(MAX_MODEL));
        return Err(wrong(format!("{size}, a model has at most {most}")));
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("is no text in UTF-8".into()))?;
    toml::from_str(&text).map_err(|error| {
        let file = path.display().to_string();
        let span = error.span().unwrap_or(0..0);
        SourceError::Text(wrong_at(&file, &text, span, error.message().replace('\n', "; ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.toml");
        let error = |path: &Path| Source::load(path).unwrap_err().to_string();
        assert!(error(&file).starts_with(&file.display().to_string()));
        std::fs::write(&file, b"\xff").unwrap();
        assert!(error(&file).contains("UTF-8"));
        std::fs::write(&file, "abi = \"kho-v4\"\nscrach = []\n").unwrap();
        assert!(error(&file).contains("m.toml:2:1: "), "{}", error(&file));
        // A directory without pages.
        assert!(error(folder.path()).contains(PAGES));
        std::fs::write(&file, "abi = \"kho-v4\"\n").unwrap();
        assert!(Source::load(&file).unwrap().pages.is_none());
    }
}
