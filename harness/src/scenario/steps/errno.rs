//! Names of error numbers, as in errno(3).

use rustix::io::Errno as Number;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What stands before the number of an error that has no name here.
const UNNAMED: &str = "errno ";

/// The error of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Errno(i32);

/// Those that a step may expect.
const NAMES: [(&str, Number); 26] = [
    ("EPERM", Number::PERM),
    ("ENOENT", Number::NOENT),
    ("EINTR", Number::INTR),
    ("EIO", Number::IO),
    ("ENXIO", Number::NXIO),
    ("E2BIG", Number::TOOBIG),
    ("EBADF", Number::BADF),
    ("EAGAIN", Number::AGAIN),
    ("ENOMEM", Number::NOMEM),
    ("EACCES", Number::ACCESS),
    ("EFAULT", Number::FAULT),
    ("EBUSY", Number::BUSY),
    ("EEXIST", Number::EXIST),
    ("ENODEV", Number::NODEV),
    ("EINVAL", Number::INVAL),
    ("ENFILE", Number::NFILE),
    ("EMFILE", Number::MFILE),
    ("ENOTTY", Number::NOTTY),
    ("ETXTBSY", Number::TXTBSY),
    ("EFBIG", Number::FBIG),
    ("ENOSPC", Number::NOSPC),
    ("ERANGE", Number::RANGE),
    ("ENOSYS", Number::NOSYS),
    ("EOVERFLOW", Number::OVERFLOW),
    ("EOPNOTSUPP", Number::OPNOTSUPP),
    ("EADDRNOTAVAIL", Number::ADDRNOTAVAIL),
];

impl Errno {
    /// The error of this number.
    pub fn of(number: i32) -> Self {
        Self(number)
    }

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = NAMES.iter().find(|(_, number)| number.raw_os_error() == self.0);
        match named {
            Some((name, _)) => write!(f, "{name}"),
            None => write!(f, "{UNNAMED}{}", self.0),
        }
    }
}

impl From<Errno> for String {
    fn from(errno: Errno) -> Self {
        errno.to_string()
    }
}

impl TryFrom<String> for Errno {
    type Error = UnknownErrno;
    fn try_from(text: String) -> Result<Self, UnknownErrno> {
        let named = NAMES.iter().find(|(name, _)| *name == text);
        let number = || text.strip_prefix(UNNAMED)?.parse().ok();
        named
            .map(|(_, number)| number.raw_os_error())
            .or_else(number)
            .map(Self)
            .ok_or(UnknownErrno { text })
    }
}

/// A text that names no error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("found error \"{text}\", expected \"errno NUMBER\" or one of {}", NAMES.map(|(name, _)| name).join(", "))]
pub struct UnknownErrno {
    text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_names() {
        assert_eq!(Errno::of(16).to_string(), "EBUSY");
        assert_eq!(Errno::of(133).to_string(), "errno 133");
        for (name, number) in NAMES {
            assert_eq!(Errno::of(number.raw_os_error()).to_string(), name);
        }
        for errno in [Errno::of(16), Errno::of(133)] {
            assert_eq!(Errno::try_from(errno.to_string()), Ok(errno));
        }
        let message = Errno::try_from("EBUSSY".to_owned()).unwrap_err().to_string();
        assert!(
            message.contains("EBUSSY") && message.contains("EBUSY"),
            "{message}"
        );
    }
}
