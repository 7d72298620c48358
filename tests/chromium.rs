//! Debian's Chromium without a window, for tests of reports.

use std::path::PathBuf;

/// Debian's package with nothing but this. The whole browser makes no window narrower than 500 pixels.
const NAME: &str = "chromium-headless-shell";

/// Arguments of every call. Without its sandbox, because that does not work as root and in most containers; it shows
/// nothing but files that the tests wrote. It says on standard error what pages write to their console, and asks
/// nobody on the network.
pub const ARGUMENTS: [&str; 7] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=10000",
];

/// The user prefers dark colours.
pub const DARK: &str = "--blink-settings=preferredColorScheme=0";

/// The browser, which `test` needs. Without it says so.
///
/// # Panics
/// In CI, when there is none.
#[must_use]
pub fn program(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(NAME))
        .find(|place| place.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs Chromium");
        crate::skipped(&format!("{test}: needs Chromium (run `images/setup test`)"));
    }
    found
}
