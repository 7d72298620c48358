//! Packs the inputs of the fuzz targets for the repository, and unpacks them for the fuzzer: `corpus pack|unpack FROM TO`.
//! Both folders have one folder for each target; packed inputs are in zstd's format, because captures are mostly zeroes.

use std::error::Error;
use std::fs;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [how, from, to] = arguments.as_slice() else {
        return Err("expected pack or unpack, and two folders".into());
    };
    let recode: fn(&[u8]) -> std::io::Result<Vec<u8>> = match how.as_str() {
        "pack" => |input| zstd::encode_all(input, 19),
        "unpack" => |packed| zstd::decode_all(packed),
        other => return Err(format!("expected pack or unpack, found {other}").into()),
    };
    for target in fs::read_dir(from)? {
        let target = target?;
        let folder = Path::new(to).join(target.file_name());
        fs::create_dir_all(&folder)?;
        for input in fs::read_dir(target.path())? {
            let input = input?;
            fs::write(folder.join(input.file_name()), recode(&fs::read(input.path())?)?)?;
        }
    }
    Ok(())
}
