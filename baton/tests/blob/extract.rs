//! What is extracted is built again.

use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Place, SETUP_DATA, built, json, refused, said};

/// Extracts the handover at an address, builds it into a new image, extracts that, and compares the two directories.
fn extracted_twice(place: &Place, image: &str, at: u64) {
    let (first, again, second) = (place.path("first"), place.path("again"), place.path("second"));
    let told = said(&["extract", image, "--at", &at.to_string(), "-o", &first], 0);
    assert!(told.contains("kept, RAM of"), "{told}");
    let size = std::fs::metadata(image).expect("an image").len();
    let ram = format!("{size} B");
    let built = json(&["build", &first, "--into", &again, "--ram", &ram], 0);
    let at = built["source"]["setup_data"].as_u64().expect("an address");
    said(&["extract", &again, "--at", &at.to_string(), "-o", &second], 0);
    for name in ["model.toml", "pages.img.zst"] {
        let read = |folder: &str| std::fs::read(Path::new(folder).join(name)).expect("a file");
        assert!(read(&first) == read(&second), "{name} of {image}");
    }
    let packed = File::open(place.path("first/pages.img.zst")).expect("pages");
    let pages = zstd::decode_all(packed).expect("a zstd file");
    assert_eq!(pages.len() as u64, size);
}

#[test]
fn what_is_extracted_from_a_kernels_handover_is_built_again() {
    for version in ["6.17.8", "6.19.11", "7.2.12", "7.3.4"] {
        let place = Place::new();
        let image = place.captured(version);
        extracted_twice(&place, &image, SETUP_DATA);
        let model = std::fs::read_to_string(place.path("first/model.toml")).expect("a model");
        assert!(model.contains("name = \"kmx\""), "{version}: {model}");
        assert_eq!(model.contains("folios = ["), version != "6.17.8", "{version}");
    }
}

#[test]
fn pages_of_an_extracted_handover_are_built_too() {
    let place = Place::new();
    let image = built(&place, "kho-v4");
    let file = File::options().write(true).open(&image).expect("an image");
    file.write_all_at(b"what the file holds", 0x40_0000)
        .expect("a page");
    let (extracted, again) = (place.path("extracted"), place.path("again"));
    said(&["extract", &image, "-o", &extracted], 0);
    let again_exists = refused(&["extract", &image, "-o", &extracted], 3);
    assert!(again_exists.contains("exists"), "{again_exists}");
    said(&["build", &extracted, "--into", &again, "--ram", "16 MiB"], 0);
    let mut bytes = [0; 19];
    let file = File::open(&again).expect("an image");
    file.read_exact_at(&mut bytes, 0x40_0000).expect("a page");
    assert_eq!(&bytes, b"what the file holds");
    // Without its pages the model builds a file of zeroes, and the difference is found.
    let model = format!("{extracted}/model.toml");
    let empty = place.path("empty");
    said(&["build", &model, "--into", &empty, "--ram", "16 MiB"], 0);
    let differences = json(&["diff", &image, &empty], 1);
    let changed = |one: &Value| one["kind"].get("changed").is_some();
    assert!(
        differences["differences"]
            .as_array()
            .expect("a list")
            .iter()
            .any(changed)
    );
    let refusal = refused(
        &[
            "build",
            &place.path("model.toml"),
            "--into",
            &place.path("x"),
            "--ram",
            "16 MiB",
        ],
        2,
    );
    assert!(refusal.contains("names no ABI"), "{refusal}");
}
