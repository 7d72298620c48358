//! `baton blob` through the program: on handovers captured from kernels, on handovers it builds, and on files that are
//! none.

mod extract;

use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn baton(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command
        .arg("blob")
        .args(arguments)
        .output()
        .expect("baton starts")
}

/// Asserts the exit status and gives what was said on standard output.
fn said(arguments: &[&str], status: i32) -> String {
    let output = baton(arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {complaint}");
    String::from_utf8(output.stdout).expect("text")
}

/// Asserts that it is refused in one line with this status, and gives the line.
fn refused(arguments: &[&str], status: i32) -> String {
    let output = baton(arguments);
    let complaint = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {complaint}");
    assert!(output.stdout.is_empty());
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    complaint
}

fn json(arguments: &[&str], status: i32) -> Value {
    let text = said(&[arguments, &["--json"]].concat(), status);
    let document: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(document["schema"], "baton-blob");
    assert_eq!(document["command"], arguments[0]);
    document
}

/// A directory for a test, and paths in it as text.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.path().join(name), bytes).expect("a file");
        self.path(name)
    }

    /// A sparse image of RAM with the pages of kho-core's fixture of a kernel version, and a `setup_data` node at
    /// [`SETUP_DATA`].
    fn captured(&self, version: &str) -> String {
        let path = fixtures().join(format!("{version}.pages.zst"));
        let packed = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let bytes = zstd::decode_all(packed).expect("a zstd file");
        let mut numbers = bytes[8..]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let mut next = || numbers.next().expect("a number");
        let entry: Vec<u64> = (0..4).map(|_| next()).collect();
        let ranges: Vec<(u64, u64)> = (0..next()).map(|_| (next(), next())).collect();
        let count = next();
        let image = File::create(self.path(version)).expect("an image");
        let end = ranges.iter().map(|(start, size)| start + size).max();
        image.set_len(end.expect("RAM")).expect("a sparse file");
        let pages = &bytes[8 * (1 + 4 + 1 + 2 * ranges.len() + 1)..];
        assert_eq!(pages.len() as u64, count * (8 + 4096));
        for page in pages.chunks_exact(8 + 4096) {
            let (address, contents) = page.split_first_chunk().expect("an address");
            image
                .write_all_at(contents, u64::from_le_bytes(*address))
                .expect("a page");
        }
        let node: Vec<u8> = [0, 32 << 32 | 10]
            .iter()
            .chain(&entry)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        image.write_all_at(&node, SETUP_DATA).expect("setup_data");
        self.path(version)
    }
}

const SETUP_DATA: u64 = 0x5010;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../kho-core/tests/fixtures")
}

/// Something of everything that every ABI from kho-v3 on can hand over.
const MODEL: &str = r#"
scratch = [{ start = 0x800000, size = "2 MiB" }]
reserve_mem = [{ name = "trace", start = 0x600000, size = "64 KiB" }]
blocks = [{ address = 0x700000, order = 2 }]
kexec = { previous_release = "7.1.0", count = 1 }

[[luo.session]]
name = "vm"

[[luo.session.file]]
token = 0x42
memfd = { size = "40 KiB" }

[[luo.session.file]]
token = 0x43
memfd = { size = "2 MiB", folios = [{ address = 0x400000, order = 9, index = 0 }] }
"#;

fn built(place: &Place, abi: &str) -> String {
    let model = place.write("model.toml", MODEL);
    let image = place.path(abi);
    said(
        &["build", &model, "--abi", abi, "--into", &image, "--ram", "16 MiB"],
        0,
    );
    image
}

#[test]
fn captured_handovers_are_found_shown_and_sound() {
    for (version, abi, words) in [
        ("6.17.8", "kho-v1", ["kho_test", "reserve_mem \"kmx\""]),
        ("6.19.11", "kho-v1", ["session \"kmx\"", "memfd-v1"]),
        ("7.3.4", "kho-v4", ["token 0x4242", "8 MiB file data"]),
    ] {
        let place = Place::new();
        let image = place.captured(version);
        let shown = said(&["show", &image], 0);
        assert!(shown.contains(abi), "{shown}");
        assert!(
            shown.contains(&format!("setup_data at {SETUP_DATA:#x}")),
            "{shown}"
        );
        for word in words {
            assert!(shown.contains(word), "{version}: {word}");
        }
        // Not searched for again: an unoptimised search takes a while.
        let at = SETUP_DATA.to_string();
        assert!(said(&["verify", &image, "--at", &at], 0).contains("\nsound: 0 errors"));
        let both = ["--at", &at, "--at-second", &at];
        let compared = said(&[&["diff", &image, &image, "--records"], &both[..]].concat(), 0);
        assert!(compared.contains("no differences"));
    }
}

#[test]
fn an_address_of_the_fdt_or_of_setup_data_is_enough() {
    let place = Place::new();
    let image = place.captured("7.3.4");
    let found = json(&["show", &image], 0);
    let fdt = found["source"]["fdt"]["start"].as_u64().unwrap();
    for at in [format!("{fdt:#x}"), fdt.to_string(), format!("{SETUP_DATA:#x}")] {
        assert_eq!(
            json(&["show", &image, "--at", &at], 0)["handover"],
            found["handover"]
        );
    }
    let complaint = refused(&["show", &image, "--at", "0x1000"], 2);
    assert!(
        complaint.contains("0x1000") && complaint.contains("FDT magic"),
        "{complaint}"
    );
    refused(&["show", &image, "--at", "0xfffffffffffffff0"], 2);
}

#[test]
fn an_unknown_version_is_named_and_cannot_steer_the_terminal() {
    let place = Place::new();
    let image = built(&place, "kho-v4");
    let at = json(&["show", &image], 0)["source"]["fdt"]["start"]
        .as_u64()
        .unwrap();
    set_version(&image, at, b"\x1b[2J");
    for arguments in [&["show", &image, "--at", &at.to_string()][..], &["show", &image]] {
        let complaint = refused(arguments, 2);
        assert!(
            complaint.contains("\\u{1b}[2J") && !complaint.contains('\x1b'),
            "{complaint}"
        );
        assert!(complaint.contains(&format!("{at:#x}")), "{complaint}");
    }
}

#[test]
fn a_search_names_the_unknown_versions_that_it_meets() {
    let place = Place::new();
    let image = built(&place, "kho-v4");
    let source = |image: &str| json(&["show", image], 0)["source"].take();
    let at = |source: &Value| source["fdt"]["start"].as_u64().unwrap();
    let first = source(&image);
    // A second handover, of a version that is still to come, beside the first.
    let model = place.write("second.toml", "blocks = [{ address = 0xa00000, order = 0 }]\n");
    let second = json(&["build", &model, "--abi", "kho-v4", "--into", &image], 0)["source"].take();
    set_version(&image, at(&second), b"kho-v9");
    let named = format!("the KHO FDT at {:#x} is \"kho-v9\"", at(&second));
    let told = format!(
        "setup_data at {:#x} points to it",
        second["setup_data"].as_u64().unwrap()
    );
    let shown = said(&["show", &image], 0);
    assert!(shown.contains(&named) && shown.contains(&told), "{shown}");
    let both = source(&image);
    assert_eq!(at(&both), at(&first));
    assert_eq!(both["unread_fdts"][0]["fdt"], second["fdt"]["start"]);
    assert_eq!(both["unread_fdts"][0]["setup_data"], second["setup_data"]);
    // And when there is no other.
    set_version(&image, at(&first), b"kho-v8");
    let complaint = refused(&["show", &image], 2);
    assert!(
        complaint.contains("\"kho-v8\"") && complaint.contains("\"kho-v9\""),
        "{complaint}"
    );
}

/// Overwrites the beginning of the version of the KHO FDT at an address.
fn set_version(image: &str, fdt: u64, version: &[u8]) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, fdt).unwrap();
    let old = page.windows(6).position(|window| window == b"kho-v4").unwrap();
    file.write_all_at(version, fdt + old as u64).unwrap();
}

#[test]
fn a_packed_image_is_the_same_image() {
    let place = Place::new();
    let image = built(&place, "kho-v4");
    let packed = zstd::encode_all(File::open(&image).unwrap(), 1).unwrap();
    let cut = place.write("cut.zst", &packed[..packed.len() / 2]);
    let packed = place.write("image.zst", packed);
    assert_eq!(
        json(&["show", &image], 0)["handover"],
        json(&["show", &packed], 0)["handover"]
    );
    assert!(refused(&["show", &cut], 2).contains("unpacked"));
    let model = place.path("model.toml");
    assert!(refused(&["build", &model, "--abi", "kho-v4", "--into", &packed], 2).contains("raw"));
}

#[test]
fn what_is_built_is_shown() {
    for (abi, version) in [("kho-v3", "luo-v1"), ("kho-v4", "luo-v5")] {
        let place = Place::new();
        let image = built(&place, abi);
        let shown = said(&["show", &image, "--all"], 0);
        for word in [
            abi,
            version,
            "session \"vm\"",
            "reserve_mem \"trace\"",
            "\"7.1.0\"",
            "2 MiB of scratch",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
        let document = json(&["show", &image], 0);
        let blobs = document["handover"]["sub_blobs"].as_array().unwrap();
        let luo = blobs.iter().find(|blob| blob["name"] == "LUO").unwrap();
        let files = &luo["content"]["luo"]["sessions"][0]["files"];
        assert_eq!(files[0]["token"], 0x42);
        assert_eq!(
            files[0]["content"]["memfd"]["folios"].as_array().unwrap().len(),
            10
        );
        assert_eq!(files[1]["content"]["memfd"]["folios"][0]["address"], 0x40_0000);
        let verified = json(&["verify", &image], 0);
        assert_eq!(
            (&verified["sound"], &verified["worst"]),
            (&Value::Bool(true), &"note".into())
        );
    }
}

#[test]
fn every_abi_is_built_and_what_it_lacks_is_said() {
    let place = Place::new();
    let model = place.write("plain.toml", "blocks = [{ address = 0x400000, order = 3 }]");
    for abi in ["kho-v1-6.17", "kho-v1", "kho-v2", "kho-v3", "kho-v4"] {
        let image = place.path(abi);
        said(
            &["build", &model, "--abi", abi, "--into", &image, "--ram", "8 MiB"],
            0,
        );
        assert!(
            said(&["extents", &image], 0).contains("0x400000       0x408000      32 KiB  claimed by nobody")
        );
    }
    let model = place.write("luo.toml", "[luo]");
    let image = place.path("none.img");
    let complaint = refused(
        &[
            "build",
            &model,
            "--abi",
            "kho-v1-6.17",
            "--into",
            &image,
            "--ram",
            "8 MiB",
        ],
        2,
    );
    assert!(complaint.contains("has no LUO"), "{complaint}");
    assert!(!Path::new(&image).exists());
}

#[test]
fn the_documented_model_is_one() {
    let place = Place::new();
    let document = include_str!("../../../docs/blob.md");
    let (_, rest) = document.split_once("```toml\n").expect("a model");
    let (text, _) = rest.split_once("```").expect("its end");
    let model = place.write("model.toml", text);
    let image = place.path("image");
    let built = json(
        &[
            "build", &model, "--abi", "kho-v4", "--into", &image, "--ram", "160 MiB",
        ],
        0,
    );
    assert_eq!(built["sound"], true);
}

#[test]
fn a_model_that_breaks_a_rule_is_built_and_judged() {
    let place = Place::new();
    let model = place.write("hole.toml", MODEL.replace("index = 0", "index = 512"));
    let image = place.path("image");
    let judged = said(
        &[
            "build", &model, "--abi", "kho-v4", "--into", &image, "--ram", "16 MiB",
        ],
        1,
    );
    assert!(
        judged.contains("error file-consistent") && judged.contains("BROKEN: 1 error,"),
        "{judged}"
    );
}

#[test]
fn building_keeps_what_is_in_the_image() {
    let place = Place::new();
    let image = place.path("image");
    let file = File::create_new(&image).unwrap();
    file.set_len(16 << 20).unwrap();
    // Every second page of the first MiB that may be used holds something.
    let used: Vec<u64> = (0..128).map(|page| (1 << 20) + page * 0x2000).collect();
    for at in &used {
        file.write_all_at(b"mine", *at).unwrap();
    }
    let model = place.write("model.toml", MODEL);
    said(&["build", &model, "--abi", "kho-v4", "--into", &image], 0);
    for at in &used {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, *at).unwrap();
        assert_eq!(&bytes, b"mine");
    }
    // A second handover goes beside the first.
    let first = json(&["show", &image], 0);
    let second = json(&["build", &model, "--abi", "kho-v3", "--into", &image], 0);
    assert_eq!(
        second["source"]["other_fdts"],
        Value::from(vec![first["source"]["fdt"]["start"].clone()])
    );
    let at = second["source"]["fdt"]["start"].to_string();
    let compared = said(&["diff", &image, &image, "--at-second", &at], 1);
    assert!(compared.contains("~ KHO version: kho-v4 -> kho-v3"), "{compared}");
}

#[test]
fn a_damaged_handover_is_found_out() {
    let place = Place::new();
    let image = built(&place, "kho-v4");
    let found = json(&["show", &image], 0);
    let file = File::options().write(true).open(&image).unwrap();
    // The first folio of the first file goes where nothing is preserved.
    let blobs = found["handover"]["sub_blobs"].as_array().unwrap();
    let luo = blobs.iter().find(|blob| blob["name"] == "LUO").unwrap();
    let memfd = &luo["content"]["luo"]["sessions"][0]["files"][0]["content"]["memfd"];
    let record = memfd["list"]["runs"][0].as_u64().unwrap();
    file.write_all_at(&0xe00_u64.to_le_bytes()[..6], record).unwrap();
    let verified = said(&["verify", &image], 1);
    assert!(
        verified.contains("error data-preserved") && verified.contains("BROKEN"),
        "{verified}"
    );
    let document = json(&["verify", &image], 1);
    assert_eq!(document["sound"], false);
    let findings = document["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["rule"] == "data-preserved"));
}

#[test]
fn differences_of_neighbouring_pages_are_one_line() {
    let place = Place::new();
    let one = built(&place, "kho-v4");
    let other = place.path("other");
    std::fs::copy(&one, &other).unwrap();
    let folio = json(&["extents", &one], 0)["extents"]
        .as_array()
        .unwrap()
        .iter()
        .find(|extent| extent["owner"] == "data of token 0x42 in session \"vm\"")
        .unwrap()["start"]
        .as_u64()
        .unwrap();
    let file = File::options().write(true).open(&other).unwrap();
    file.write_all_at(&[1; 0x3000], folio + 0x2000).unwrap();
    let compared = said(&["diff", &one, &other], 1);
    let line = "~ session \"vm\" / token 0x42 / pages 2 to 4: 3 pages, contents\n";
    assert!(
        compared.contains(line) && compared.contains("3 differences:"),
        "{compared}"
    );
    assert!(said(&["diff", &one, &other, "--records"], 0).contains("no differences"));
    assert!(
        !json(&["diff", &one, &other], 1)["differences"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[test]
fn the_picture_shows_all_owners_and_no_markup_of_the_guest() {
    let place = Place::new();
    let text = MODEL.replace("\"vm\"", "\"<vm>&\"");
    let model = place.write("model.toml", text);
    let (image, map) = (place.path("image"), place.path("map.svg"));
    said(
        &[
            "build", &model, "--abi", "kho-v4", "--into", &image, "--ram", "16 MiB",
        ],
        0,
    );
    said(&["extents", &image, "--map", &map], 0);
    let svg = std::fs::read_to_string(&map).unwrap();
    for word in [
        "data of token 0x42 in session \"&lt;vm&gt;&amp;\"",
        "reserve_mem \"trace\"",
        "scratch",
        "claimed by nobody",
        "records",
        "preserved-memory map",
        "a row is 1 MiB, a pixel 1 KiB",
        "<title>0x400000-0x500000 ",
    ] {
        assert!(svg.contains(word), "{word}");
    }
    assert!(!svg.contains("<vm>") && svg.ends_with("</svg>\n"));
    refused(&["show", &image, "--map", "no/such/directory/map.svg"], 3);
}

#[test]
fn an_fdt_alone_can_only_be_shown() {
    let place = Place::new();
    let image = built(&place, "kho-v4");
    let at = json(&["show", &image], 0)["source"]["fdt"]["start"]
        .as_u64()
        .unwrap();
    let mut page = vec![0; 4096];
    File::open(&image).unwrap().read_exact_at(&mut page, at).unwrap();
    let fdt = place.write("kho.dtb", &page);
    let shown = said(&["show", &fdt], 0);
    assert!(
        shown.contains("compatible  \"kho-v4\"") && shown.contains("\"LUO\""),
        "{shown}"
    );
    assert_eq!(json(&["show", &fdt], 0)["fdt"]["label"], "FDT");
    assert!(refused(&["verify", &fdt], 2).contains("FDT alone"));
    // Its structure block is cut off.
    page[3 + 8] = 0xff;
    refused(&["show", &place.write("bad.dtb", &page)], 2);
}

#[test]
fn files_that_are_no_image_are_refused() {
    let place = Place::new();
    let zeroes = place.write("zeroes", vec![0; 1 << 20]);
    for command in ["show", "verify", "extents"] {
        assert!(refused(&[command, &place.path("missing")], 3).contains("missing"));
        assert!(refused(&[command, &zeroes], 2).contains("no handover"));
        refused(&[command, &place.write("empty", "")], 2);
        refused(&[command, &place.0.path().display().to_string()], 2);
    }
    refused(&["diff", &zeroes, &zeroes], 2);
    assert_eq!(baton(&["show", &zeroes, "--at", "here"]).status.code(), Some(2));
    assert_eq!(baton(&["look", &zeroes]).status.code(), Some(2));
}

#[test]
fn bad_models_are_one_line_with_their_place() {
    let place = Place::new();
    let image = place.write("image", vec![0; 4 << 20]);
    for (text, words) in [
        ("scratch = []\nblocs = []\n", [":2:1: ", "blocs"]),
        ("blocks = [\n { address = -1 }]\n", [":2:", "-1"]),
        (
            "blocks = [{ address = 0x1800, order = 0 }]\n",
            ["0x1800", "aligned"],
        ),
        (
            "[[luo.session]]\nname = \"a\"\nfile = [{ token = 1, memfd = { size = \"1 GiB\" } }]",
            ["token 0x1", "1 GiB"],
        ),
    ] {
        let model = place.write("bad.toml", text);
        let complaint = refused(&["build", &model, "--abi", "kho-v4", "--into", &image], 2);
        assert!(words.iter().all(|word| complaint.contains(word)), "{complaint}");
    }
    let model = place.write("good.toml", "");
    refused(
        &[
            "build",
            &model,
            "--abi",
            "kho-v4",
            "--into",
            &place.path("missing"),
        ],
        3,
    );
    refused(
        &[
            "build", &model, "--abi", "kho-v4", "--into", &image, "--ram", "1 MiB",
        ],
        2,
    );
    assert_eq!(
        baton(&["build", &model, "--abi", "kho-v9", "--into", &image])
            .status
            .code(),
        Some(2)
    );
    assert_eq!(std::fs::read(&image).unwrap().len(), 4 << 20);
}
